//! Looks at the first bytes of a connection, before an HTTP server gets them: whoever speaks something else, or too slowly, or
//! too much, is to hear so in words.

use crate::problem::{Kind, Problem};

/// Headers of a request at most.
const HEADERS: usize = 64;

/// Of a body, as far as the HTTP server can count.
const LONGEST: u64 = u64::MAX / 2;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Not enough to say.
    More,
    /// The whole head of an HTTP/1 request, and perhaps some of its body.
    Whole,
    /// Nothing came, and nothing will.
    Nobody,
    /// A line of JSON, as the release before asks.
    Older,
    /// No request.
    Bad(Problem),
}

/// Looks at the bytes so far; `ended`: no more will come. A head has at most `limit` bytes.
#[must_use]
pub fn look(bytes: &[u8], limit: usize, ended: bool) -> Head {
    match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        None if bytes.is_empty() && ended => return Head::Nobody,
        Some(b'{') => return Head::Older,
        _ => {}
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) if head > limit => Head::Bad(too_long(limit)),
        Ok(httparse::Status::Complete(_)) => whole(&request),
        Ok(httparse::Status::Partial) if bytes.len() >= limit => Head::Bad(too_long(limit)),
        Ok(httparse::Status::Partial) if ended => {
            Head::Bad(Problem::new(Kind::BadRequest, "the request ended in the middle of its head"))
        }
        Ok(httparse::Status::Partial) => Head::More,
        Err(httparse::Error::TooManyHeaders) => {
            let detail = format!("a request has at most {HEADERS} headers");
            Head::Bad(Problem::new(Kind::HeadTooLong, detail))
        }
        Err(error) => Head::Bad(wrong(bytes, error)),
    }
}

/// What httparse does not look at, and the HTTP server would refuse without a word.
fn whole(request: &httparse::Request<'_, '_>) -> Head {
    let bad = |why: String| Head::Bad(Problem::new(Kind::BadRequest, why));
    if let Err(error) = request.path.unwrap_or_default().parse::<hyper::Uri>() {
        return bad(format!("the request's target: {error}"));
    }
    let named = |name: &str| -> Vec<&[u8]> {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii()).collect()
    };
    let hosts = named("host").len();
    if request.version == Some(1) && hosts != 1 {
        return bad(format!("a request has one header Host, this one has {hosts}"));
    }
    let lengths = named("content-length");
    let is_number =
        |value: &[u8]| std::str::from_utf8(value).is_ok_and(|text| text.parse::<u64>().is_ok_and(|n| n <= LONGEST));
    match lengths[..] {
        [] => {}
        [one] if is_number(one) && !one.starts_with(b"+") => {}
        [_] => return bad("the header Content-Length is no number".to_owned()),
        _ => return bad(format!("a request has one header Content-Length, this one has {}", lengths.len())),
    }
    let codings = named("transfer-encoding");
    match codings[..] {
        [] => Head::Whole,
        [_] if request.version == Some(0) => bad("HTTP/1.0 has no header Transfer-Encoding".to_owned()),
        [one] if one.eq_ignore_ascii_case(b"chunked") => Head::Whole,
        _ => bad("of the header Transfer-Encoding only \"chunked\" is known here".to_owned()),
    }
}

fn too_long(limit: usize) -> Problem {
    Problem::new(Kind::HeadTooLong, format!("a request's head has at most {limit} bytes"))
}

fn wrong(bytes: &[u8], error: httparse::Error) -> Problem {
    let line = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty()).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let version = match words[..] {
        [b"GET", target] if target.starts_with(b"/") => "HTTP/0.9".into(),
        [_, _, version] if version.starts_with(b"HTTP/") => String::from_utf8_lossy(version),
        _ => return Problem::new(Kind::BadRequest, format!("the bytes are no HTTP/1.1 request: {error}")),
    };
    // Of HTTP/1.1 something else is wrong.
    if matches!(&*version, "HTTP/1.0" | "HTTP/1.1") {
        return Problem::new(Kind::BadRequest, format!("the request's head: {error}"));
    }
    Problem::new(Kind::Version, format!("{version} is not spoken here, but HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1000;

    #[test]
    fn a_request_is_whole_once_its_head_has_ended() {
        let request = b"POST /v1/vms/web/takeover HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n";
        for cut in 1..request.len() {
            assert_eq!(look(&request[..cut], LIMIT, false), Head::More, "{cut}");
            assert!(
                matches!(look(&request[..cut], LIMIT, true), Head::Bad(p) if p.detail.contains("ended in the middle"))
            );
        }
        for rest in ["", "{}", "{}GET / HTTP/1.1\r\n"] {
            assert_eq!(look(&[&request[..], rest.as_bytes()].concat(), LIMIT, false), Head::Whole);
        }
        assert_eq!((look(b"", LIMIT, false), look(b"", LIMIT, true)), (Head::More, Head::Nobody));
    }

    #[test]
    fn whoever_speaks_something_else_is_told_which() {
        for line in ["{", "{\"command\":\"status\"}\n", " {}"] {
            assert_eq!(look(line.as_bytes(), LIMIT, false), Head::Older, "{line}");
        }
        let long = format!("GET /{}", "x".repeat(LIMIT));
        let long_but_whole = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(LIMIT));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
        let cases: [(&str, Kind, &str); 19] = [
            ("GET / HTTP/1.1\r\n\r\n", Kind::BadRequest, "one header Host"),
            ("GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n", Kind::BadRequest, "one header Host, this one has 2"),
            ("POST / HTTP/1.0\r\ncontent-length: -1\r\n\r\n", Kind::BadRequest, "no number"),
            ("POST / HTTP/1.0\r\ncontent-length: 18446744073709551615\r\n\r\n", Kind::BadRequest, "no number"),
            ("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", Kind::BadRequest, "HTTP/1.0 has no"),
            (
                "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                Kind::BadRequest,
                "only \"chunked\"",
            ),
            (
                "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nContent-Length: 3\r\n\r\n{}",
                Kind::BadRequest,
                "one header",
            ),
            ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +2\r\n\r\n{}", Kind::BadRequest, "no number"),
            ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: two\r\n\r\n{}", Kind::BadRequest, "no number"),
            ("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", Kind::BadRequest, "only \"chunked\""),
            ("GET /v1/vms\r\n", Kind::Version, "HTTP/0.9 is not spoken here"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind::Version, "HTTP/2.0 is not spoken here"),
            ("GET / HTTP/3\r\n\r\n", Kind::Version, "HTTP/3 is not spoken here"),
            ("\x16\x03\x01 hello\r\n", Kind::BadRequest, "no HTTP/1.1 request"),
            ("GET / HTTP/1.1\r\nno header\r\n\r\n", Kind::BadRequest, "the request's head"),
            ("GET no[where HTTP/1.1\r\n\r\n", Kind::BadRequest, "target"),
            (&many, Kind::HeadTooLong, "at most 64 headers"),
            (&long, Kind::HeadTooLong, "at most 1000 bytes"),
            (&long_but_whole, Kind::HeadTooLong, "at most 1000 bytes"),
        ];
        for (bytes, kind, words) in cases {
            match look(bytes.as_bytes(), LIMIT, false) {
                Head::Bad(problem) => {
                    assert!(problem.is(kind) && problem.detail.contains(words), "{bytes}: {problem:?}");
                }
                other => panic!("{bytes}: {other:?}"),
            }
        }
    }
}
