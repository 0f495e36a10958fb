//! Decisions, the problems of policy files, and the policies of the project themselves.

use super::*;
use crate::report::Report;

const ROUTES: &str = r#"
[[route]]
name = "cart"
host = "shop.example.com"
path = "/cart"
app = "cart"

[[route]]
name = "teapot"
host = "Shop.Example.COM."
path = "/tea"
answer = { status = 418, body = "short and stout", content_type = "text/html" }

[[route]]
name = "deep"
host = "*.deep.example.com"
app = "deep"

[[route]]
name = "shop"
host = "shop.example.com"
app = "shop"

[[route]]
name = "any-old"
path = "/old"
redirect = { to = "https://{host}/new{path}{query}", status = 302 }

[[route]]
name = "below"
host = "*.example.com"
app = "below"

[[route]]
name = "fixed"
path = "/fixed"
redirect = { to = "https://example.com" }

[[route]]
host = "[::1]"
app = "six"
"#;

fn compiled(text: &str) -> Result<Policy, Report> {
    let mut report = Report::new();
    let policy = compile([("policies/test.toml", text)], &mut report);
    assert_eq!(policy.is_some(), !report.has_errors(), "{report}");
    policy.ok_or(report)
}

/// The decision in one line: route, then app, status or location.
fn decided(policy: &Policy, host: Option<&str>, path: &str, query: Option<&str>) -> String {
    match policy.decide(host, path, query) {
        None => "none".into(),
        Some(Decision { route, action: Action::Refused }) => route.to_string(),
        Some(Decision { route, action: Action::App(app) }) => format!("{route}: {app}"),
        Some(Decision { route, action: Action::Answer(answer) }) => {
            format!("{route}: {}", answer.status)
        }
        Some(Decision { route, action: Action::Redirect { status, location } }) => {
            format!("{route}: {status} {location}")
        }
    }
}

#[test]
fn the_first_route_that_matches_host_and_path_wins() {
    let policy = compiled(ROUTES).unwrap();
    for (host, path, expected) in [
        (Some("shop.example.com"), "/cart", "cart: cart"),
        (Some("shop.example.com"), "/cart/x", "cart: cart"),
        (Some("shop.example.com"), "/cartoon", "shop: shop"),
        (Some("SHOP.example.com.:8443"), "/cart/", "cart: cart"),
        (Some("shop.example.com"), "/tea", "teapot: 418"),
        // An exact host does not come before a wildcard, an earlier route does.
        (Some("shop.example.com"), "/old", "shop: shop"),
        (Some("x.example.com"), "/old", "any-old: 302 https://x.example.com/new/old"),
        (Some("x.example.com"), "/", "below: below"),
        (Some("y.x.example.com"), "/", "below: below"),
        (Some("x.deep.example.com"), "/old", "deep: deep"),
        (Some("deep.example.com"), "/", "below: below"),
        (Some("example.com"), "/", "none"),
        (Some("badexample.com"), "/", "none"),
        (Some("[0::1]:80"), "/", "test-8: six"),
        (None, "/fixed", "fixed: 308 https://example.com"),
        (Some("not a host"), "/fixed", "fixed: 308 https://example.com"),
        (None, "/", "none"),
        // Without a valid host there is nowhere to send the client.
        (None, "/old", "refused"),
        (Some("evil.com/@x.example.com"), "/old", "refused"),
        (Some("a\r\nset-cookie: x"), "/old", "refused"),
    ] {
        assert_eq!(decided(&policy, host, path, None), expected, "{host:?} {path}");
    }
    let apps: Vec<&str> = policy.apps().into_iter().map(AppName::as_str).collect();
    assert_eq!(apps, ["below", "cart", "deep", "shop", "six"]);
    let Some(Decision { action: Action::Answer(answer), .. }) =
        policy.decide(Some("shop.example.com"), "/tea", None)
    else {
        panic!("no answer")
    };
    assert_eq!(
        (answer.content_type.as_str(), answer.body.as_str()),
        ("text/html", "short and stout")
    );
}

#[test]
fn a_path_with_dot_segments_is_refused_before_any_route() {
    let policy = compiled(ROUTES).unwrap();
    for path in ["/cart/../admin", "/cart/%2e%2E/admin", "/..;/", "/cart%2f..", "*", "", "/a\rb"] {
        assert_eq!(decided(&policy, Some("shop.example.com"), path, None), "refused", "{path}");
    }
    // As sent: what an app may merge or decode is another path here.
    for path in ["//cart", "/%63art", "/cart%2fx"] {
        assert_eq!(decided(&policy, Some("shop.example.com"), path, None), "shop: shop", "{path}");
    }
}

#[test]
fn a_redirect_carries_path_and_query_and_nothing_else() {
    let policy = compiled(ROUTES).unwrap();
    for (path, query, expected) in [
        ("/old/a", Some("x=1&y"), "any-old: 302 https://h.io/new/old/a?x=1&y"),
        ("/old/a", Some(""), "any-old: 302 https://h.io/new/old/a?"),
        ("/old/ä", Some("\r\nx: y"), "any-old: 302 https://h.io/new/old/%C3%A4?%0D%0Ax:%20y"),
    ] {
        assert_eq!(decided(&policy, Some("H.io:80"), path, query), expected);
    }
}

#[test]
fn a_broken_route_is_reported_where_it_stands() {
    for (lines, expected) in [
        ("", "1:1 the route does nothing"),
        ("app = \"a\"\nanswer = {}", "3:1 answer and app exclude each other"),
        ("app = \"a\"\n[route.answer]", "3:8 answer and app exclude each other"),
        ("app = \"a\"\n[route.redirect]\nto = \"/x\"", "3:8 redirect and app exclude each other"),
        ("app = \"A\"", "2:7 bad name \"A\": only a-z, 0-9 and '-' are allowed"),
        ("app = 1", "2:7 expected a string, found an integer"),
        ("ap = \"a\"\nanswer = {}", "2:1 unknown key \"ap\""),
        ("name = \"\"\napp = \"a\"", "2:8 bad name \"\": it is empty"),
        ("name = \"refused\"\napp = \"a\"", "2:8 the name \"refused\" is taken by the edgepoint"),
        ("host = \"*\"\napp = \"a\"", "2:8 \"*\" is not a host"),
        (
            "host = \"a.*.b\"\napp = \"a\"",
            "2:8 bad host \"a.*.b\": '*' stands for labels at the beginning only, as in \
             \"*.example.com\"",
        ),
        (
            "host = \"a.example:80\"\napp = \"a\"",
            "2:8 bad host \"a.example:80\": the port of a request is not looked at, leave it out",
        ),
        (
            "host = \"https://a.example\"\napp = \"a\"",
            "2:8 bad host \"https://a.example\": a host has no scheme and no path",
        ),
        (
            "host = \"a b\"\napp = \"a\"",
            "2:8 bad host \"a b\": letters, digits, '-', '_' and '.' are allowed",
        ),
        ("host = 1\napp = \"a\"", "2:8 expected a string, found an integer"),
        ("path = \"cart\"\napp = \"a\"", "2:8 bad path \"cart\": the path does not begin with '/'"),
        ("path = \"/a?b\"\napp = \"a\"", "2:8 bad path \"/a?b\": a path ends before '?' and '#'"),
        ("path = \"/ä\"\napp = \"a\"", "2:8 bad path \"/ä\": only visible ASCII is sent in a path"),
        ("path = \"/a/../b\"\napp = \"a\"", "2:8 bad path \"/a/../b\": no request has such a path"),
        ("path = \"/a/\"\napp = \"a\"", "2:8 bad path \"/a/\": a prefix does not end with '/'"),
        ("path = \"/a/*\"\napp = \"a\"", "2:8 bad path \"/a/*\": '*' stands for nothing in a path"),
        ("answer = 1", "2:10 expected a table, found an integer"),
        ("[route.answer]\nstatus = 101", "3:10 101 is not between 200 and 599"),
        ("[route.answer]\nstatus = 600", "3:10 600 is not between 200 and 599"),
        ("[route.answer]\nstatus = 204\nbody = \"x\"", "4:8 an answer with status 204 has no body"),
        ("[route.answer]\ncontent_type = \"\"", "3:16 bad content type \"\""),
        ("[route.answer]\ncontent_type = \"a\\r\\nb: c\"", "3:16 bad content type \"a\\r\\nb: c\""),
        ("[route.answer]\nbody = 1", "3:8 expected a string, found an integer"),
        ("[route.answer]\nheaders = 1", "3:1 unknown key \"headers\""),
        ("redirect = \"/x\"", "2:12 expected a table, found a string"),
        ("[route.redirect]", "2:1 missing key \"to\""),
        ("[route.redirect]\nto = 1", "3:6 expected a string, found an integer"),
        ("[route.redirect]\nto = \"https://a{pfad}\"", "3:6 unknown placeholder {pfad}"),
        ("[route.redirect]\nto = \"https://a\\n\"", "3:6 the target must not hold '\\n'"),
        ("[route.redirect]\nto = \"/x\"\nstatus = 304", "4:10 304 does not redirect"),
        ("[route.redirect]\nto = \"/x\"\nstatus = 200", "4:10 200 is not between 300 and 399"),
        ("[route.redirect]\nto = \"/x\"\nfoo = 1", "4:1 unknown key \"foo\""),
        (
            "app = \"a\"\nname = \"x\"\n[[route]]\napp = \"b\"\nname = \"x\"\nhost = \"b\"",
            "6:8 a second route named \"x\"",
        ),
        (
            "app = \"a\"\nname = \"test-2\"\npath = \"/x\"\n[[route]]\napp = \"b\"",
            "5:1 a second route named \"test-2\"",
        ),
    ] {
        let report = compiled(&format!("[[route]]\n{lines}")).unwrap_err();
        let is_error =
            |found: &crate::report::Located| found.severity == crate::report::Severity::Error;
        let found: Vec<String> = report
            .located()
            .iter()
            .filter(|found| is_error(found))
            .map(|found| format!("{}:{} {}", found.line, found.column, found.message))
            .collect();
        assert_eq!(found, [expected], "{lines}");
    }
}

#[test]
fn the_hint_of_a_table_has_its_whole_name() {
    let report = compiled("[[route]]\nredirect = \"https://a\"").unwrap_err();
    assert_eq!(
        report.to_string(),
        r#"policies/test.toml:2:12: expected a table, found a string
    2 | redirect = "https://a"
      |            ^^^^^^^^^^^
      = hint: begin it with [route.redirect]
"#
    );
}

#[test]
fn a_file_whose_name_makes_no_route_name_needs_names() {
    let mut report = Report::new();
    assert!(compile([("My Routes.toml", "[[route]]\napp = \"a\"")], &mut report).is_none());
    assert_eq!(
        report.to_string(),
        "My Routes.toml:1:1: \"My Routes-1\", made from the name of the file, is no name: only \
         a-z, 0-9 and '-' are allowed\n    1 | [[route]]\n      | ^^^^^^^^^\n      = hint: write \
         name = \"...\", or rename the file\n"
    );
}

#[test]
fn a_route_that_an_earlier_one_covers_is_warned_about() {
    for (first, second, warned) in [
        ("", "", true),
        ("", "host = \"a.b\"", true),
        ("", "host = \"*.b\"\npath = \"/x\"", true),
        ("host = \"*.b\"", "host = \"a.b\"", true),
        ("host = \"*.b\"", "host = \"*.a.b\"", true),
        ("host = \"*.b\"", "host = \"*.b\"", true),
        ("host = \"*.b\"", "host = \"b\"", false),
        ("host = \"*.a.b\"", "host = \"*.b\"", false),
        ("host = \"*.b\"", "", false),
        ("host = \"a.b\"", "host = \"A.B.\"", true),
        ("host = \"a.b\"", "host = \"*.b\"", false),
        ("path = \"/x\"", "path = \"/x/y\"", true),
        ("path = \"/x\"", "path = \"/xy\"", false),
        ("path = \"/x/y\"", "path = \"/x\"", false),
        ("host = \"a.b\"\npath = \"/x\"", "host = \"a.b\"", false),
        ("host = \"a.b\"", "host = \"c.b\"", false),
    ] {
        let text = format!("[[route]]\napp = \"a\"\n{first}\n[[route]]\napp = \"b\"\n{second}\n");
        let mut report = Report::new();
        assert!(compile([("f.toml", text.as_str())], &mut report).is_some(), "{report}");
        assert_eq!(!report.is_empty(), warned, "{text}{report}");
        assert_eq!(report.to_string().contains("warning: no request reaches this"), warned);
    }
}

#[test]
fn the_index_finds_what_trying_every_route_finds() {
    let hosts = ["", "a.io", "b.io", "*.io", "*.a.io", "*.b.a.io", "x.a.io"];
    let paths = ["/", "/x", "/x/y", "/z"];
    // Not random, but well mixed: a permutation of all pairs per seed.
    for seed in 1..200_usize {
        let pick = |n: usize| (n.wrapping_mul(seed * 2_654_435_761) >> 7) % 28;
        let mut text = String::new();
        let chosen: Vec<(&str, &str)> =
            (1..=9).map(|n| (hosts[pick(n) % 7], paths[pick(n) / 7])).collect();
        for (host, path) in &chosen {
            let host = if host.is_empty() { String::new() } else { format!("host = {host:?}\n") };
            text.push_str(&format!("[[route]]\n{host}path = {path:?}\napp = \"a\"\n"));
        }
        let policy = compiled(&text).unwrap();
        for host in ["io", "a.io", "b.io", "x.a.io", "y.a.io", "c.b.a.io", "other"] {
            for path in ["/", "/x", "/x/y/z", "/xy", "/z"] {
                let covers = |(pattern, prefix): &(&str, &str)| {
                    let host = match pattern.strip_prefix('*') {
                        Some(end) => host.ends_with(end),
                        None => pattern.is_empty() || *pattern == host,
                    };
                    host && path::covers(prefix, path)
                };
                let expected = chosen.iter().position(covers).map(|at| format!("test-{}", at + 1));
                let found = policy.decide(Some(host), path, None);
                let found = found.map(|decision| decision.route.to_string());
                assert_eq!(found, expected, "{host} {path}\n{text}");
            }
        }
    }
}

#[test]
fn no_part_of_a_file_makes_it_panic() {
    for end in 0..ROUTES.len() {
        let _ = compiled(ROUTES.get(..end).unwrap()).map_err(|report| report.to_string());
        let _ = compiled(ROUTES.get(end..).unwrap()).map_err(|report| report.to_string());
    }
}

#[test]
fn the_policies_of_the_project_do_what_they_say() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut files: Vec<(String, String)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    for (name, text) in &files {
        assert!(text.starts_with("# "), "{name} does not say what it is for");
    }
    let mut report = Report::new();
    let sources = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let policy = compile(sources, &mut report).unwrap_or_else(|| panic!("{report}"));
    assert!(report.is_empty(), "{report}");
    for (host, path, query, expected) in [
        ("anything", "/healthz-edge", None, "edge-health: 200"),
        ("counter.localhost:8080", "/healthz-edge", None, "edge-health: 200"),
        ("counter.localhost:8080", "/", None, "counter: counter"),
        ("node.localhost", "/x", None, "node: node"),
        ("chain.localhost", "/x", None, "chain: chain"),
        ("www.example.com", "/cart", Some("item=1"), "www: 308 https://example.com/cart?item=1"),
        ("example.com", "/", None, "none"),
    ] {
        assert_eq!(decided(&policy, Some(host), path, query), expected, "{host} {path}");
    }
}
