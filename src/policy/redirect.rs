//! The target of a redirect: a URL with `{host}`, `{path}` and `{query}` in it, checked when it is
//! loaded so that whatever a client sends, the result is one header value on the site meant.
//!
//! The site (scheme and authority) is written by the operator or is the request's valid host, never
//! taken from the path; bytes of the request outside visible ASCII are percent-encoded.

use std::fmt::Write as _;

use crate::report::did_you_mean;

use super::host;

/// A checked target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Host,
    Path,
    Query,
}

const PLACEHOLDERS: [&str; 3] = ["host", "path", "query"];

/// What is wrong with a target, and what would be right.
pub(super) struct BadTarget {
    pub message: String,
    pub hint: String,
}

fn bad(message: impl Into<String>, hint: impl Into<String>) -> BadTarget {
    BadTarget { message: message.into(), hint: hint.into() }
}

impl Target {
    /// Reads `https://example.com{path}{query}`.
    pub fn parse(text: &str) -> Result<Self, BadTarget> {
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
            let message = format!("the target must not hold {c:?}");
            return Err(bad(message, "percent-encode it, a blank as %20"));
        }
        let target = Self::split(text)?;
        target.check_site(text)?;
        Ok(target)
    }

    fn split(text: &str) -> Result<Self, BadTarget> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            let Some((name, after)) = after.split_once('}') else {
                return Err(bad("'{' is not closed", "write { as %7B if it is meant as it is"));
            };
            parts.push(match name {
                "host" => Part::Host,
                "path" => Part::Path,
                "query" => Part::Query,
                other => {
                    let hint = match did_you_mean(other, PLACEHOLDERS) {
                        Some(similar) => format!("did you mean {{{similar}}}?"),
                        None => "there are {host}, {path} and {query}".to_owned(),
                    };
                    return Err(bad(format!("unknown placeholder {{{other}}}"), hint));
                }
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self(parts))
    }

    /// The site must not depend on the path of the request: `/{path}` with a path of `//evil.com`,
    /// or `https://example.com.{path}`, would send clients where anybody likes.
    fn check_site(&self, text: &str) -> Result<(), BadTarget> {
        let hint = "such as \"https://example.com{path}{query}\" or \"/new{path}\"";
        let rest = match text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
            Some(rest) => rest,
            None if text == "/" => return Ok(()),
            None => {
                let second = text.strip_prefix('/').and_then(|rest| rest.chars().next());
                return match second {
                    Some('/' | '\\' | '{') => {
                        Err(bad("the target could leave the site: a text must follow '/'", hint))
                    }
                    Some(_) => Ok(()),
                    None => Err(bad("the target must begin with https://, http:// or '/'", hint)),
                };
            }
        };
        let ends = ["/", "?", "#", "{path}", "{query}"];
        let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        let authority = rest.get(..end).unwrap_or_default();
        let host = match authority.strip_prefix("{host}") {
            Some(port) => format!("host{port}"),
            None => authority.to_owned(),
        };
        let is_port_only =
            !authority.starts_with("{host}") || matches!(host.get(4..5), None | Some(":"));
        if !is_port_only || host::split(&host).is_none() {
            return Err(bad(format!("{authority:?} is not a host"), hint));
        }
        Ok(())
    }

    /// Whether it needs to know the host of the request.
    pub fn needs_host(&self) -> bool {
        self.0.contains(&Part::Host)
    }

    /// The value of the `Location` header. `host` must be in the one form of [`host::canonical`].
    pub fn location(&self, host: &str, path: &str, query: Option<&str>) -> String {
        let mut location = String::with_capacity(64 + path.len());
        for part in &self.0 {
            match part {
                Part::Text(text) => location.push_str(text),
                Part::Host => location.push_str(host),
                Part::Path => encode(path, &mut location),
                Part::Query => {
                    if let Some(query) = query {
                        location.push('?');
                        encode(query, &mut location);
                    }
                }
            }
        }
        location
    }
}

/// Appends the text; what is not visible ASCII is percent-encoded.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, expected: Result<&str, &str>) {
        let parsed = Target::parse(target).map_err(|bad| bad.message);
        let location = parsed.map(|target| target.location("h.example", "//p\r\n ä", Some("q=\n")));
        let (expected, context) = (expected.map(str::to_owned), target);
        assert_eq!(location, expected.map_err(str::to_owned), "{context}");
    }

    #[test]
    fn nothing_in_a_request_leaves_the_site_or_the_header() {
        for (target, expected) in [
            ("https://a.example{path}{query}", Ok("https://a.example//p%0D%0A%20%C3%A4?q=%0A")),
            ("http://{host}:8443{path}", Ok("http://h.example:8443//p%0D%0A%20%C3%A4")),
            ("https://{host}{query}", Ok("https://h.example?q=%0A")),
            ("https://[::1]:8443/", Ok("https://[::1]:8443/")),
            ("/new{path}", Ok("/new//p%0D%0A%20%C3%A4")),
            ("/", Ok("/")),
            ("/x?from={host}", Ok("/x?from=h.example")),
            ("/{path}", Err("the target could leave the site: a text must follow '/'")),
            ("//a.example", Err("the target could leave the site: a text must follow '/'")),
            ("/\\a.example", Err("the target could leave the site: a text must follow '/'")),
            ("{path}", Err("the target must begin with https://, http:// or '/'")),
            ("", Err("the target must begin with https://, http:// or '/'")),
            ("a.example", Err("the target must begin with https://, http:// or '/'")),
            ("javascript:x", Err("the target must begin with https://, http:// or '/'")),
            ("https://", Err("\"\" is not a host")),
            ("https://{path}", Err("\"\" is not a host")),
            ("https://{host}.evil/", Err("\"{host}.evil\" is not a host")),
            ("https://x{host}/", Err("\"x{host}\" is not a host")),
            ("https://a@b/", Err("\"a@b\" is not a host")),
            ("https://a b/", Err("the target must not hold ' '")),
            ("https://a/\r\n", Err("the target must not hold '\\r'")),
            ("https://a/{paht}", Err("unknown placeholder {paht}")),
            ("https://a/{path", Err("'{' is not closed")),
        ] {
            check(target, expected);
        }
    }

    #[test]
    fn a_location_is_visible_ascii_whatever_was_sent() {
        let target = Target::parse("https://a.example{path}{query}").ok().unwrap();
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        let location = target.location("", &format!("/{all}"), Some(&all));
        assert!(location.bytes().all(|byte| byte.is_ascii_graphic()), "{location}");
    }
}
