//! Heads, bodies and `traceparent`, whole and in pieces.

use std::{string::String, vec::Vec};

use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// What became of the bytes of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Read {
    contexts: Vec<Option<Context>>,
    ended: usize,
    foreign: bool,
    in_body: bool,
}

/// Hands pieces to a message as the kernel does: bodies skipped, the rest in words of up to eight bytes.
fn read_pieces<'a>(is_request: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let (mut message, mut read) = (Message::default(), Read::default());
    for piece in pieces {
        let mut left = piece;
        while !left.is_empty() && !read.foreign {
            let passed = message.body_bytes(left.len() as u32);
            let event = if passed > 0 {
                left = &left[passed as usize..];
                message.pass(passed)
            } else {
                let held = left.len().min(8);
                let mut word = [0; 8];
                word[..held].copy_from_slice(&left[..held]);
                let step = message.take(is_request, u64::from_le_bytes(word), held as u32);
                assert!((1..=held as u32).contains(&step.taken), "{step:?} of {held}");
                left = &left[step.taken as usize..];
                match step.event {
                    Event::Head => {
                        read.contexts.push(message.context());
                        message.expect_body()
                    }
                    event => event,
                }
            };
            read.ended += usize::from(event == Event::End);
            read.foreign |= event == Event::NotHttp;
        }
    }
    read.in_body = message.is_in_body();
    read
}

fn read(is_request: bool, bytes: &[u8]) -> Read {
    let whole = read_pieces(is_request, [bytes]);
    assert_eq!(whole, read_pieces(is_request, bytes.chunks(1)), "{}", String::from_utf8_lossy(bytes));
    whole
}

fn context(trace: &str, span: &str) -> Context {
    let word = |text: &str| u64::from_str_radix(text, 16).expect("hex");
    Context { trace: [word(&trace[..16]), word(&trace[16..])], span: word(span) }
}

/// A request with these lines after the first.
fn request(lines: &[&str]) -> Vec<u8> {
    let mut text = String::from("POST /a?b=c HTTP/1.1\r\n");
    for line in lines {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn context_of(lines: &[&str]) -> Option<Context> {
    let read = read(true, &request(lines));
    assert_eq!((read.foreign, read.ended), (false, 1), "{lines:?}");
    read.contexts[0]
}

#[test]
fn a_valid_traceparent_is_read_in_any_case_and_place() {
    let expected = Some(context(TRACE, SPAN));
    for name in ["traceparent", "Traceparent", "TRACEPARENT", "tRaCePaReNt"] {
        for (before, after) in [("", ""), (" ", ""), ("\t  ", " \t")] {
            let line = std::format!("{name}:{before}00-{TRACE}-{SPAN}-01{after}");
            assert_eq!(context_of(&["Host: x", &line, "Accept: */*"]), expected, "{line:?}");
            assert_eq!(context_of(&[&line]), expected, "{line:?}");
        }
    }
    // Not sampled, and of later versions.
    for value in ["00-T-S-00", "01-T-S-01", "cc-T-S-01-what-the-future-holds", "fe-T-S-01-"] {
        let value = value.replace('T', TRACE).replace('S', SPAN);
        assert_eq!(context_of(&[&std::format!("traceparent: {value}")]), expected, "{value}");
    }
}

#[test]
fn what_is_no_traceparent_names_no_trace() {
    let values = [
        "",
        "00",
        "00-T-S",
        "00-T-S-",
        "00-T-S-0",
        "00-T-S-011",
        "00-T-S-01-x",
        "00-T-S-01 x",
        "00-T-S-01,00-T-S-01",
        "ff-T-S-01",
        "0g-T-S-01",
        "00-T-S-0g",
        "00_T-S-01",
        "00-T_S-01",
        "00-00000000000000000000000000000000-S-01",
        "00-T-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-S-01",
        "00-0af7651916cd43dd8448eb211c80319-S-01",
        "00-xaf7651916cd43dd8448eb211c80319c-S-01",
        "00-T-b7ad6b716920333x-01",
        "cc-T-S-01x",
        "cc-T-S-01.x",
        "T-S",
    ];
    for value in values {
        let value = value.replace('T', TRACE).replace('S', SPAN);
        assert_eq!(context_of(&[&std::format!("traceparent: {value}")]), None, "{value}");
    }
    let good = std::format!("traceparent: 00-{TRACE}-{SPAN}-01");
    // Two, of which either could be meant.
    assert_eq!(context_of(&[&good, &good]), None);
    assert_eq!(context_of(&[&good, "traceparent: 00"]), None);
    assert_eq!(context_of(&["traceparent: 00", &good]), None);
    // Other headers.
    for line in [
        std::format!("x-{good}"),
        std::format!(" {good}"),
        std::format!("traceparents: 00-{TRACE}-{SPAN}-01"),
        std::format!("tracepare: 00-{TRACE}-{SPAN}-01"),
        std::format!("traceparent 00-{TRACE}-{SPAN}-01"),
        std::format!("traceparent : 00-{TRACE}-{SPAN}-01"),
        std::format!("Cookie: {good}"),
        std::format!("Cookie: a\r {good}"),
    ] {
        assert_eq!(context_of(&["Host: x", &line]), None, "{line:?}");
    }
}

#[test]
fn a_body_is_passed_over_whatever_it_holds() {
    let inner = std::format!("GET / HTTP/1.1\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n\r\n");
    let length = std::format!("Content-Length: {}", inner.len());
    let own = std::format!("traceparent: 00-{}-{SPAN}-01", "1".repeat(32));
    let mut bytes = request(&[&own, &length]);
    bytes.extend(inner.bytes());
    let size = std::format!("{:X};x=y\r\n", inner.len());
    bytes.extend(request(&["transfer-ENCODING: gzip, Chunked"]));
    for part in [&*size, &inner, "\r\n", "2\r\nok\r\n", "0\r\n", &inner[16..inner.len() - 2], "\r\n"] {
        bytes.extend(part.bytes());
    }
    bytes.extend(request(&["content-length: 0"]));
    let read = read(true, &bytes);
    let own = Some(context(&"1".repeat(32), SPAN));
    assert_eq!(read, Read { contexts: [own, None, None].to_vec(), ended: 3, foreign: false, in_body: false });
}

#[test]
fn what_two_parties_could_read_in_two_ways_is_foreign() {
    for lines in [
        &["Content-Length: 5", "Content-Length: 6"][..],
        &["Content-Length: 5", "Transfer-Encoding: chunked"],
        &["Transfer-Encoding: chunked", "Content-Length: 5"],
        &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        &["Transfer-Encoding: gzip"],
        &["Transfer-Encoding: chunked, gzip"],
        &["Transfer-Encoding: xchunked"],
        &["Transfer-Encoding: chunked;q=1"],
        &["Transfer-Encoding:"],
        &["Content-Length:"],
        &["Content-Length: +5"],
        &["Content-Length: 5, 5"],
        &["Content-Length: 5 5"],
        &["Content-Length: 0x5"],
        &["Content-Length: 99999999999999999999999"],
        &["Content-Length : 5"],
        &["Transfer-Encoding\t: chunked"],
        &["Content-Length: 5", " 6"],
        &["traceparent: 00-a", "\t-b"],
    ] {
        assert!(read(true, &request(lines)).foreign, "{lines:?}");
    }
    assert!(!read(true, &request(&["Content-Length: 0", "content-length:\t0 "])).foreign);
    assert!(read(true, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").foreign);
    for size in ["\r\n", "g\r\n", "-1\r\n", "1000000000000000\r\n", "2\r\nabc"] {
        let mut bytes = request(&["Transfer-Encoding: chunked"]);
        bytes.extend(size.bytes());
        assert!(read(true, &bytes).foreign, "{size:?}");
    }
}

#[test]
fn other_protocols_are_foreign() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.2\r\n",
        b"GET / HTTP/0.9\r\n",
        b" GET / HTTP/1.1\r\n",
        b"AMETHODOFTWENTYFIVELETTERS / HTTP/1.1\r\n",
    ] {
        assert!(read(true, bytes).foreign, "{:?}", String::from_utf8_lossy(bytes));
    }
    for bytes in
        [&b"220 mail.example ESMTP\r\n"[..], b"HTTP/2.0 200 OK\r\n", b"HTTP/1.1 20 OK\r\n", b"HTTP/1.1 2000 OK\r\n"]
    {
        assert!(read(false, bytes).foreign, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn lines_may_end_without_a_return_and_be_as_long_as_they_like() {
    let long = "x".repeat(70_000);
    let bytes = std::format!(
        "\r\n\nGET /{long} HTTP/1.0\nX-Long: {long}\nTRACEPARENT:00-{TRACE}-{SPAN}-01\n\nHEAD / HTTP/1.1\r\n\r\n"
    );
    let read = read(true, bytes.as_bytes());
    assert_eq!(read.contexts, [Some(context(TRACE, SPAN)), None]);
    assert!(!read.foreign);
}

#[test]
fn a_response_says_its_status() {
    for (bytes, status) in
        [(&b"HTTP/1.1 204 No Content\r\n\r\n"[..], 204), (b"HTTP/1.0 503\r\n\r\n", 503), (b"HTTP/1.1 100 \n\n", 100)]
    {
        let mut message = Message::default();
        let mut last = Event::None;
        for byte in bytes {
            last = message.take(false, u64::from(*byte), 1).event;
        }
        assert_eq!((last, message.status(), message.framing()), (Event::Head, status, Framing::Unnamed));
    }
}

proptest! {
    /// Wherever segments begin and end, the same is read.
    #[test]
    fn pieces_make_no_difference(cuts in prop::collection::vec(1usize..40, 1..60), lines in prop::collection::vec(
        prop_oneof![
            Just(std::format!("traceparent: 00-{TRACE}-{SPAN}-01")),
            Just("Content-Length: 17".into()),
            Just("Transfer-Encoding: chunked".into()),
            "[a-zA-Z-]{1,20}:[ -~]{0,40}",
            "[ -~]{0,30}",
        ], 0..6), body in prop::collection::vec(any::<u8>(), 0..60)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut bytes = request(&lines);
        bytes.extend(body);
        let whole = read_pieces(true, [&*bytes]);
        let (mut pieces, mut left, mut cuts) = (Vec::new(), &*bytes, cuts.iter().cycle());
        while !left.is_empty() {
            let (piece, rest) = left.split_at((*cuts.next().expect("endless")).min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        prop_assert_eq!(&whole, &read_pieces(true, pieces.iter().copied()));
        prop_assert_eq!(&whole, &read_pieces(true, bytes.chunks(1)));
    }

    /// Nothing that may come makes it fail, or take nothing.
    #[test]
    fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..300), is_request in any::<bool>()) {
        read_pieces(is_request, [&*bytes]);
    }
}
