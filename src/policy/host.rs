//! Host names: as requests send them (`Shop.Example.com.:8443`) and as routes name them
//! (`*.example.com`), both brought into one form, so that comparing them is comparing texts.
//!
//! Lower case, no port, no trailing dot. It does not resolve anything and knows no public suffixes.

use std::{borrow::Cow, net::Ipv6Addr};

/// Longest host name of the DNS, without the trailing dot.
const MAX_HOST: usize = 253;
/// Longest label of the DNS.
const MAX_LABEL: usize = 63;

/// Which hosts a route is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Every host, and none.
    Any,
    /// This one.
    Exact(Box<str>),
    /// Whatever has one or more labels before this one: `example.com` for `*.example.com`.
    Below(Box<str>),
}

impl Pattern {
    /// Reads what stands in a route, or says why it is no host.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (wild, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        if name.contains('*') {
            return Err("'*' stands for labels at the beginning only, as in \"*.example.com\"");
        }
        if name.starts_with("http:") || name.starts_with("https:") || name.contains('/') {
            return Err("a host has no scheme and no path");
        }
        let Some((host, port)) = split(name) else {
            return Err("letters, digits, '-', '_' and '.' are allowed");
        };
        if port.is_some() {
            return Err("the port of a request is not looked at, leave it out");
        }
        let host: Box<str> = host.as_ref().into();
        Ok(if wild { Self::Below(host) } else { Self::Exact(host) })
    }
}

/// The host that a request names, in the one form; `None` when that is no host.
pub(super) fn canonical(sent: &str) -> Option<Cow<'_, str>> {
    split(sent).map(|(host, _)| host)
}

/// Splits `host[:port]` and checks both.
pub(super) fn split(sent: &str) -> Option<(Cow<'_, str>, Option<&str>)> {
    if let Some(rest) = sent.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = if rest.is_empty() { None } else { Some(port(rest.strip_prefix(':')?)?) };
        return Some((Cow::Owned(format!("[{address}]")), port));
    }
    let (name, port) = match sent.split_once(':') {
        Some((name, digits)) => (name, Some(port(digits)?)),
        None => (sent, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= MAX_LABEL && label.bytes().all(plain)
    };
    if name.len() > MAX_HOST || !name.split('.').all(label) {
        return None;
    }
    let lower = if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    };
    Some((lower, port))
}

fn port(digits: &str) -> Option<&str> {
    let valid = digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.is_empty() || digits.parse::<u16>().is_ok());
    valid.then_some(digits)
}

/// The names that this one is below, nearest first: `b.c`, `c` for `a.b.c`.
pub(super) fn parents(host: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(host), |host| host.split_once('.').map(|(_, parent)| parent)).skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sent_host_has_one_form_or_is_none() {
        for (sent, expected) in [
            ("shop.example.com", Some("shop.example.com")),
            ("Shop.EXAMPLE.com.:8443", Some("shop.example.com")),
            ("localhost:", Some("localhost")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("[0:0:0:0:0:0:0:1]", Some("[::1]")),
            ("under_score.example", Some("under_score.example")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a.b..", None),
            ("a b", None),
            ("a\r\nb", None),
            ("user@host", None),
            ("host:http", None),
            ("host:99999", None),
            ("host/path", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("bücher.example", None),
            (&"a.".repeat(130), None),
            (&"a".repeat(64), None),
        ] {
            assert_eq!(canonical(sent).as_deref(), expected, "{sent:?}");
        }
    }

    #[test]
    fn parents_are_the_names_above() {
        assert_eq!(parents("a.b.c").collect::<Vec<_>>(), ["b.c", "c"]);
        assert_eq!(parents("localhost").count(), 0);
    }
}
