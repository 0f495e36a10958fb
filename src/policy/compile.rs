//! Policy files to a [`Policy`]: every problem of every file at once, and a warning for each route
//! that can never be reached because one earlier route takes all its requests (several earlier
//! routes that do so together are not noticed).
//!
//! It relies on the table reader of `config`. It does not know which apps are deployed.

use std::{collections::HashSet, path::Path};

use crate::{
    config::reader::{self, Table, Text},
    model::AppName,
    report::{Problem, Report, Severity},
};

use super::{
    Answer, Policy, REFUSED, Route, RouteName, Then, host::Pattern, path, redirect::Target,
};

/// Routes at most: the ones without a host are tried one after the other.
const MAX_ROUTES: usize = 10_000;
/// Fine is what an answer usually says.
const DEFAULT_STATUS: u16 = 200;
/// Bodies in a policy are short texts for people.
const DEFAULT_CONTENT_TYPE: &str = "text/plain; charset=utf-8";
/// Permanent, and the method stays what it was.
const DEFAULT_REDIRECT: u16 = 308;
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
/// Answers that end after their head.
const WITHOUT_BODY: [u16; 3] = [204, 205, 304];

/// Compiles policy files, given as shown name and text in the order in which they count. `None`
/// when there is an error in any of them; warnings alone do not stop it.
pub fn compile<'a>(
    sources: impl IntoIterator<Item = (&'a str, &'a str)>,
    report: &mut Report,
) -> Option<Policy> {
    let mut names = HashSet::new();
    let mut routes = Vec::new();
    let mut places = Vec::new();
    let mut complete = true;
    for (file, text) in sources {
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let read = reader::read(file, text, report, |root| {
            for (number, mut table) in (1..).zip(root.tables("route")) {
                if routes.len() == MAX_ROUTES {
                    table.error(table.span(), format!("more than {MAX_ROUTES} routes"));
                    break;
                }
                if let Some(route) = read_route(&mut table, stem, number, &mut names) {
                    routes.push(route);
                    places.push((table.file(), table.span()));
                }
                table.finish();
            }
            Some(())
        });
        complete &= read.is_some();
    }
    let policy = Policy::new(routes);
    for (at, (file, span)) in places.into_iter().enumerate() {
        if let Some(first) = policy.shadowed(at) {
            report.push(Problem {
                file,
                span,
                severity: Severity::Warning,
                message: format!("no request reaches this route: \"{first}\" takes them all"),
                hint: Some("put the narrower route first".into()),
            });
        }
    }
    complete.then_some(policy)
}

fn read_route(
    table: &mut Table<'_>,
    stem: &str,
    number: usize,
    names: &mut HashSet<RouteName>,
) -> Option<Route> {
    let name = name(table, stem, number);
    if let Some(name) = &name
        && (name.as_str() == REFUSED || !names.insert(name.clone()))
    {
        let message = match name.as_str() {
            REFUSED => format!("the name {REFUSED:?} is taken by the edgepoint"),
            name => format!("a second route named {name:?}"),
        };
        table.error_hint(table.span_of("name"), message, "give it another name");
    }
    let host = host(table);
    let path = prefix(table);
    let then = then(table);
    Some(Route { name: name?, host: host?, path: path?, then: then? })
}

fn name(table: &mut Table<'_>, stem: &str, number: usize) -> Option<RouteName> {
    if table.has("name") {
        return table.name("name");
    }
    let name = format!("{stem}-{number}");
    let report = |error| {
        let message = format!("{name:?}, made from the name of the file, is no name: {error}");
        table.error_hint(table.span(), message, "write name = \"...\", or rename the file");
    };
    RouteName::new(&name).map_err(report).ok()
}

fn host(table: &mut Table<'_>) -> Option<Pattern> {
    if !table.has("host") {
        return Some(Pattern::Any);
    }
    let Text { text, span } = table.text("host")?;
    if text == "*" {
        let message = "\"*\" is not a host";
        table.error_hint(Some(span), message, "leave host out to match every host");
        return None;
    }
    let report = |reason| {
        let hint = "such as \"shop.example.com\" or \"*.example.com\"";
        table.error_hint(Some(span), format!("bad host {text:?}: {reason}"), hint);
    };
    Pattern::parse(text).map_err(report).ok()
}

fn prefix(table: &mut Table<'_>) -> Option<Box<str>> {
    if !table.has("path") {
        return Some("/".into());
    }
    let Text { text, span } = table.text("path")?;
    let problem = if !text.starts_with('/') {
        Some(("the path does not begin with '/'", format!("write {:?}", format!("/{text}"))))
    } else if text.contains(['?', '#']) {
        Some(("a path ends before '?' and '#'", "the query is not looked at".into()))
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let hint = "percent-encode it as clients send it, a blank as %20";
        Some(("only visible ASCII is sent in a path", hint.into()))
    } else if path::is_refused(text) {
        let hint = "requests with '.' and '..' segments are answered 400";
        Some(("no request has such a path", hint.into()))
    } else if text.len() > 1 && text.ends_with('/') {
        let short = text.trim_end_matches('/');
        let short = if short.is_empty() { "/" } else { short };
        let hint = format!("write {short:?}: it covers itself and all that is below it");
        Some(("a prefix does not end with '/'", hint))
    } else if text.contains('*') {
        let hint = "a path covers all that is below it: \"/cart\" covers \"/cart/x\"";
        Some(("'*' stands for nothing in a path", hint.into()))
    } else {
        None
    };
    match problem {
        None => Some(text.into()),
        Some((message, hint)) => {
            table.error_hint(Some(span), format!("bad path {text:?}: {message}"), hint);
            None
        }
    }
}

fn then(table: &mut Table<'_>) -> Option<Then> {
    const WAYS: [&str; 3] = ["app", "answer", "redirect"];
    let given: Vec<&str> = WAYS.into_iter().filter(|key| table.has(key)).collect();
    match given.as_slice() {
        [] => {
            let hint = "write app = \"...\", [route.answer] or [route.redirect]";
            table.error_hint(table.span(), "the route does nothing", hint);
        }
        [_] => {}
        [first, rest @ ..] => {
            for key in rest {
                let message = format!("{key} and {first} exclude each other");
                table.error_hint(table.key_span(key), message, "make a route of its own for one");
            }
        }
    }
    // All are read, so that all their problems are found.
    let app = table.name::<AppName>("app").map(Then::App);
    let answer = table.has("answer").then(|| answer(table.table("answer")));
    let redirect = if table.has("redirect") { redirect(table.table("redirect")) } else { None };
    app.or(answer.map(Then::Answer)).or(redirect)
}

fn answer(mut table: Table<'_>) -> Answer {
    let status = table.integer("status", 200..=599).unwrap_or(DEFAULT_STATUS);
    let body = table.text("body").map(|body| body.text.to_owned()).unwrap_or_default();
    if WITHOUT_BODY.contains(&status) && !body.is_empty() {
        let message = format!("an answer with status {status} has no body");
        table.error(table.span_of("body"), message);
    }
    let content_type = table.text("content_type").map_or(DEFAULT_CONTENT_TYPE, |content_type| {
        let text = content_type.text;
        if text.trim().is_empty() || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            let hint = "such as \"text/html; charset=utf-8\"";
            table.error_hint(Some(content_type.span), format!("bad content type {text:?}"), hint);
        }
        text
    });
    let content_type = content_type.to_owned();
    table.finish();
    Answer { status, content_type, body }
}

fn redirect(mut table: Table<'_>) -> Option<Then> {
    table.require("to", "to = \"https://example.com{path}{query}\"");
    let to = table.text("to").and_then(|Text { text, span }| {
        let report = |bad: super::redirect::BadTarget| {
            table.error_hint(Some(span), bad.message, bad.hint);
        };
        Target::parse(text).map_err(report).ok()
    });
    let status = table.integer("status", 300..=399).unwrap_or(DEFAULT_REDIRECT);
    if !REDIRECTS.contains(&status) {
        let hint = "one of 301, 302, 303, 307, 308";
        table.error_hint(table.span_of("status"), format!("{status} does not redirect"), hint);
    }
    table.finish();
    Some(Then::Redirect { status, to: to? })
}
