//! Where a request's body ends, and what its `Connection` header asks to be dropped: heads that an
//! app could read otherwise than this edgepoint does. Pure.
//!
//! pingora is lenient here (it takes `3, 3` for a length, drops one of two framings, drops codings
//! before `chunked`) or refuses only after the app was woken.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};

/// So many names in `Connection` are too many; pingora takes fewer.
const MAX_NOMINATIONS: usize = 10;

/// Headers that a client cannot ask to have dropped: others stand behind them.
const PROTECTED: [&str; 4] = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// Whether the end of the body can be read in more than one way. One length in plain digits, or
/// `chunked` and nothing else, or neither: all other heads are refused.
pub fn is_ambiguous(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let digits = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    lengths.next().is_some()
        || codings.next().is_some()
        || (length.is_some() && coding.is_some())
        || length.is_some_and(|value| !digits(value.as_bytes()))
        || coding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// The same for a head that pingora has taken the length out of, as it does where there are both.
pub fn had_both(headers: &HeaderMap, sent: impl FnOnce() -> Bytes) -> bool {
    let is_length = |line: &[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes())
    };
    headers.contains_key(TRANSFER_ENCODING)
        && sent().split(|byte| *byte == b'\n').skip(1).any(is_length)
}

/// Whether `Connection` names what it must not, or what is no name.
pub fn drops_protected(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    names.enumerate().any(|(index, name)| {
        let parsed = HeaderName::from_bytes(name);
        index + 1 >= MAX_NOMINATIONS
            || parsed.is_err()
            || parsed.is_ok_and(|name| PROTECTED.contains(&name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn a_body_has_one_end_or_is_refused() {
        let (length, coding) = ("content-length", "transfer-encoding");
        for (list, expected) in [
            (&[][..], false),
            (&[(length, "0")], false),
            (&[(length, "18446744073709551615")], false),
            (&[(coding, "chunked")], false),
            (&[(coding, "Chunked")], false),
            (&[(length, "3"), (length, "3")], true),
            (&[(length, "3"), (length, "4")], true),
            (&[(length, "3, 3")], true),
            (&[(length, "3,")], true),
            (&[(length, "+3")], true),
            (&[(length, "-3")], true),
            (&[(length, "0x3")], true),
            (&[(length, "")], true),
            (&[(length, "3"), (coding, "chunked")], true),
            (&[(coding, "gzip, chunked")], true),
            (&[(coding, "chunked, chunked")], true),
            (&[(coding, "chunked"), (coding, "chunked")], true),
            (&[(coding, "identity")], true),
            (&[(coding, "xchunked")], true),
        ] {
            assert_eq!(is_ambiguous(&headers(list)), expected, "{list:?}");
        }
    }

    #[test]
    fn a_length_that_was_taken_out_is_found_in_what_was_sent() {
        let chunked = headers(&[("transfer-encoding", "chunked")]);
        for (sent, expected) in [
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("POST /content-length: HTTP/1.1\r\nX: content-length: 3\r\n\r\n", false),
            ("POST / HTTP/1.1\r\ncontent-LENGTH:3\r\n\r\n", true),
            ("POST / HTTP/1.1\nContent-Length: 3\n\n", true),
        ] {
            let sent = || Bytes::from_static(sent.as_bytes());
            assert_eq!(had_both(&chunked, sent), expected, "{:?}", sent());
            assert!(!had_both(&HeaderMap::new(), sent), "{:?}", sent());
        }
    }

    #[test]
    fn a_client_drops_only_its_own_headers() {
        for (value, expected) in [
            ("close", false),
            ("keep-alive, Upgrade", false),
            ("close, x-mine,, ", false),
            ("a,b,c,d,e,f,g,h,i", false),
            ("a,b,c,d,e,f,g,h,i,j", true),
            ("close, X-Forwarded-For", true),
            ("Host", true),
            ("x-forwarded-proto", true),
            (":authority", true),
            ("\"close\"", true),
            ("a b", true),
        ] {
            let list = headers(&[("connection", value)]);
            assert_eq!(drops_protected(&list), expected, "{value:?}");
        }
        let two = headers(&[("connection", "close"), ("connection", "x-forwarded-host")]);
        assert!(drops_protected(&two));
    }
}
