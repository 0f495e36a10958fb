//! Request paths: which of them a route's prefix covers, and which nobody should see.
//!
//! A path is compared **as it was sent**: nothing is decoded, no slashes are merged, so that the
//! app sees exactly what was decided about. What would make that dishonest, segments that an app
//! may resolve to another path, is refused instead of normalised. Prefixes choose an app; they are
//! no access control (`//admin` and `/%61dmin` are not `/admin` here, but may be to an app).

/// Whether `prefix` covers the path, by whole segments: `/cart` covers `/cart`, `/cart/` and
/// `/cart/x`, not `/cartoon`.
pub(super) fn covers(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether no route may see this path: it does not begin with `/`, holds a control character or a
/// blank, or has a segment `.` or `..`, also one that is percent-encoded, set off by an encoded
/// slash or a backslash, or followed by a parameter (`/..;x/`), as some app servers read it.
pub(super) fn is_refused(path: &str) -> bool {
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return true;
    }
    // Without a dot, plain or encoded, there is no dot segment. Nearly every path ends here.
    if !path.contains("/.") && !path.contains(['%', '\\']) {
        return false;
    }
    let mut dots = Some(0_usize);
    let mut rest = path.as_bytes();
    loop {
        let (byte, after) = next(rest);
        match byte {
            None | Some(b'/' | b'\\' | b';') => {
                if matches!(dots, Some(1 | 2)) {
                    return true;
                }
                // What follows a ';' is a parameter, whatever it is.
                dots = if byte == Some(b';') { None } else { Some(0) };
            }
            Some(b'.') => dots = dots.map(|dots| dots + 1),
            Some(_) => dots = None,
        }
        if byte.is_none() {
            return false;
        }
        rest = after;
    }
}

/// The next byte, decoded if it is one that matters here, and what follows it.
fn next(bytes: &[u8]) -> (Option<u8>, &[u8]) {
    match bytes {
        [b'%', b'2', b'e' | b'E', rest @ ..] => (Some(b'.'), rest),
        [b'%', b'2', b'f' | b'F', rest @ ..] => (Some(b'/'), rest),
        [b'%', b'5', b'c' | b'C', rest @ ..] => (Some(b'\\'), rest),
        [byte, rest @ ..] => (Some(*byte), rest),
        [] => (None, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_whole_segments() {
        for (prefix, path, expected) in [
            ("/", "/", true),
            ("/", "//cart", true),
            ("/cart", "/cart", true),
            ("/cart", "/cart/", true),
            ("/cart", "/cart/x", true),
            ("/cart", "/cartoon", false),
            ("/cart", "/Cart", false),
            ("/cart", "//cart", false),
            ("/cart", "/%63art", false),
            ("/cart", "/", false),
            ("/a/b", "/a", false),
        ] {
            assert_eq!(covers(prefix, path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn a_path_that_an_app_may_read_differently_is_refused() {
        for (path, expected) in [
            ("/", false),
            ("//", false),
            ("/cart", false),
            ("/.well-known/x", false),
            ("/a.b/..c/c../...", false),
            ("/%2e%2e%2e", false),
            ("/100%25/%2", false),
            ("/a;..", false),
            ("/..", true),
            ("/.", true),
            ("/cart/../admin", true),
            ("/cart/./admin", true),
            ("/cart/%2e%2E/admin", true),
            ("/cart/.%2e", true),
            ("/cart%2f..%2Fadmin", true),
            ("/cart\\..\\admin", true),
            ("/cart%5c..%5Cadmin", true),
            ("/..;/admin", true),
            ("/%2e%2e;x=1/admin", true),
            ("", true),
            ("*", true),
            ("cart", true),
            ("http://a/", true),
            ("/a b", true),
            ("/a\r\nb", true),
            ("/a\0", true),
        ] {
            assert_eq!(is_refused(path), expected, "{path:?}");
        }
    }
}
