//! What a request line asks for. A request in absolute form (`GET http://host/path`) becomes one in
//! origin form with that host (RFC 9112, 3.2.2), before anything is decided about it.

use pingora_core::Result;
use pingora_http::{
    RequestHeader,
    authority::{RawTargetAuthority, raw_target_authority},
};

/// Brings a head into origin form; false if its target is of no form that an app is asked in.
pub fn settle(header: &mut RequestHeader) -> Result<bool> {
    let (host, path) = match read(header.raw_path()) {
        Target::Origin => return Ok(true),
        Target::Other => return Ok(false),
        Target::Absolute { host, path } => (host.to_vec(), path),
    };
    header.set_raw_path(&path)?;
    header.insert_header(http::header::HOST, host)?;
    Ok(true)
}

#[derive(Debug, PartialEq, Eq)]
enum Target<'t> {
    /// A path, or `*`: nothing to do.
    Origin,
    /// An address on the web.
    Absolute { host: &'t [u8], path: Vec<u8> },
    /// Neither.
    Other,
}

fn read(sent: &[u8]) -> Target<'_> {
    if sent.first() == Some(&b'/') || sent == b"*" {
        return Target::Origin;
    }
    let is_web = |scheme: &[u8]| {
        scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
    };
    match raw_target_authority(sent) {
        RawTargetAuthority::Absolute { scheme, authority, path_and_query } if is_web(scheme) => {
            let root: &[u8] = if path_and_query.first() == Some(&b'/') { b"" } else { b"/" };
            Target::Absolute { host: authority, path: [root, path_and_query].concat() }
        }
        // pingora would decide about `/` and send what was asked for as it is.
        _ => Target::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_one_of_two_forms() {
        let absolute = |host: &'static str, path: &str| Target::Absolute {
            host: host.as_bytes(),
            path: path.as_bytes().to_vec(),
        };
        for (sent, expected) in [
            ("/", Target::Origin),
            ("/http://a/", Target::Origin),
            ("//a/b", Target::Origin),
            ("*", Target::Origin),
            ("http://a.example/x?y=z", absolute("a.example", "/x?y=z")),
            ("HTTPS://a.example:8443", absolute("a.example:8443", "/")),
            ("http://[::1]?y", absolute("[::1]", "/?y")),
            ("http:///x", Target::Other),
            ("http:/a", Target::Other),
            ("http://a\\b/", Target::Other),
            ("ftp://a/x", Target::Other),
            ("a.example:80", Target::Other),
            ("mailto:a", Target::Other),
            ("x", Target::Other),
            ("?x", Target::Other),
        ] {
            assert_eq!(read(sent.as_bytes()), expected, "{sent}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_replaces_the_other() {
        let mut header = RequestHeader::build("GET", b"http://a.example/x?y", None).unwrap();
        header.insert_header("Host", "b.example").unwrap();
        assert!(settle(&mut header).unwrap());
        assert_eq!((header.raw_path(), header.uri.path()), (&b"/x?y"[..], "/x"));
        let hosts: Vec<_> = header.headers.get_all("host").iter().collect();
        assert_eq!(hosts, ["a.example"]);
    }
}
