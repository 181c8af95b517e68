//! Connections that are followed by their segments, and what a reset breaks at any time.

use std::{string::String, vec::Vec};

use proptest::prelude::*;

use super::*;

const REQUESTS: bool = true;
const RESPONSES: bool = false;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Sequence numbers run over in the middle of most tests.
const FIRST: [u32; 2] = [u32::MAX - 40, u32::MAX - 20];

/// One end of a connection: what the kernel would show of it, and the exchange that follows it.
struct Followed {
    http_requests: HttpRequests,
    at: Position,
    client: bool,
}

impl Followed {
    fn new(client: bool) -> Self {
        let mut http_requests = HttpRequests::default();
        let (sent, received) = if client { (FIRST[0], FIRST[1]) } else { (FIRST[1], FIRST[0]) };
        http_requests.begin(client, sent, received);
        let at = Position { rcv_nxt: received, copied_seq: received, snd_nxt: sent, snd_una: sent };
        Self { http_requests, at, client }
    }

    /// A segment passes, as the kernel's program takes it.
    fn segment<const ASKS: bool>(&mut self, sequence: u32, bytes: &[u8]) {
        let Alignment::From(seen) = self.http_requests.align::<ASKS>(sequence, bytes.len() as u32) else { return };
        let mut left = &bytes[seen as usize..];
        while !left.is_empty() && !self.http_requests.is_lost() {
            let passed = self.http_requests.pass::<ASKS>(left.len() as u32) as usize;
            if passed > 0 {
                left = &left[passed..];
                continue;
            }
            let held = left.len().min(8);
            let mut word = [0; 8];
            word[..held].copy_from_slice(&left[..held]);
            left = &left[self.http_requests.take::<ASKS>(u64::from_le_bytes(word), held as u32) as usize..];
        }
    }

    /// The sequence number that the connection's end, and its peer, have come to.
    fn next<const ASKS: bool>(&mut self) -> &mut u32 {
        if ASKS == self.client { &mut self.at.snd_nxt } else { &mut self.at.rcv_nxt }
    }

    /// New bytes pass, are acknowledged and read.
    fn passes<const ASKS: bool>(&mut self, bytes: &[u8]) {
        let sequence = *self.next::<ASKS>();
        self.segment::<ASKS>(sequence, bytes);
        *self.next::<ASKS>() = sequence.wrapping_add(bytes.len() as u32);
        (self.at.snd_una, self.at.copied_seq) = (self.at.snd_nxt, self.at.rcv_nxt);
    }

    /// The number of the trace that a reset breaks, whoever sends it.
    fn broken(&self) -> Option<u64> {
        let [sent, received] = [true, false].map(|sends| self.broken_by(sends));
        assert_eq!(sent, received);
        sent
    }

    fn broken_by(&self, sends: bool) -> Option<u64> {
        self.http_requests.broken(&self.at, sends).map(|context| context.span)
    }
}

/// A request whose span has a number; 0 is none.
fn request(span: u64, first: &str, lines: &str, body: &str) -> Vec<u8> {
    let trace = if span == 0 { String::new() } else { std::format!("traceparent: 00-{span:032x}-{span:016x}-01\r\n") };
    std::format!("{first} HTTP/1.1\r\n{trace}{lines}\r\n{body}").into_bytes()
}

fn get(span: u64) -> Vec<u8> {
    request(span, "GET /", "", "")
}

fn post(span: u64, body: &str) -> Vec<u8> {
    request(span, "POST /", &std::format!("Content-Length: {}\r\n", body.len()), body)
}

#[test]
fn a_request_is_open_until_its_response_has_ended() {
    for client in [true, false] {
        let mut one = Followed::new(client);
        assert_eq!(one.broken(), None);
        for span in 1..=40 {
            let request = if span % 2 == 0 { get(span) } else { post(span, "body") };
            let head = request.len() - if span % 2 == 0 { 0 } else { 4 };
            one.passes::<REQUESTS>(&request[..head - 1]);
            assert_eq!(one.broken(), None, "its head has not ended");
            one.passes::<REQUESTS>(&request[head - 1..]);
            assert_eq!(one.broken(), Some(span));
            one.passes::<RESPONSES>(&OK[..OK.len() - 1]);
            assert_eq!(one.broken(), Some(span));
            one.passes::<RESPONSES>(&OK[OK.len() - 1..]);
            assert_eq!(one.broken(), None);
        }
        one.passes::<REQUESTS>(&get(0));
        assert_eq!(one.broken(), None, "no context, and not that of the one before");
    }
}

#[test]
fn of_several_the_oldest_is_broken() {
    let mut one = Followed::new(false);
    one.passes::<REQUESTS>(&[get(1), post(2, "abc"), get(0), get(4)].concat());
    for broken in [Some(1), Some(2), None, Some(4)] {
        assert_eq!(one.broken(), broken);
        one.passes::<RESPONSES>(OK);
    }
    assert_eq!(one.broken(), None);
    assert!(!one.http_requests.is_lost());
    let all: Vec<u8> = (1..=MAX_OPEN as u64).flat_map(get).collect();
    one.passes::<REQUESTS>(&all);
    assert_eq!(one.broken(), Some(1));
    one.passes::<REQUESTS>(&get(99));
    assert_eq!((one.broken(), one.http_requests.lost), (None, Untracked::TooMany as u32));
}

#[test]
fn the_end_of_a_response_depends_on_what_it_answers() {
    let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n";
    for (first, response) in [
        ("HEAD /", &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"[..]),
        ("HEAD /", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET /", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET /", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
        ("GET /", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 204 No\r\n\r\n"),
        ("CONNECT a:1", b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
        ("GET /", chunks),
    ] {
        for client in [true, false] {
            let mut one = Followed::new(client);
            one.passes::<REQUESTS>(&request(1, first, "", ""));
            one.passes::<RESPONSES>(&response[..response.len() - 1]);
            assert_eq!(one.broken(), Some(1), "{first}");
            one.passes::<RESPONSES>(&response[response.len() - 1..]);
            assert_eq!((one.broken(), one.http_requests.is_lost()), (None, false), "{first}");
            one.passes::<REQUESTS>(&get(2));
            assert_eq!(one.broken(), Some(2), "{first}");
        }
    }
    for (first, response) in
        [("CONNECT a:1", &b"HTTP/1.1 200 OK\r\n\r\n"[..]), ("GET /", b"HTTP/1.1 101 Other\r\n\r\n")]
    {
        let mut one = Followed::new(true);
        one.passes::<REQUESTS>(&request(1, first, "", ""));
        one.passes::<RESPONSES>(response);
        assert_eq!((one.broken(), one.http_requests.lost), (None, Untracked::Tunnel as u32));
    }
}

#[test]
fn without_a_length_a_response_ends_with_the_connection() {
    let mut one = Followed::new(true);
    one.passes::<REQUESTS>(&get(1));
    one.passes::<RESPONSES>(b"HTTP/1.0 200 OK\r\n\r\nand so on");
    assert_eq!(one.broken(), Some(1));
    one.http_requests.close::<RESPONSES>();
    one.at.rcv_nxt = one.at.rcv_nxt.wrapping_add(1);
    assert_eq!(one.broken(), None);
    // The end of the stream in the middle of a response is not the response's.
    let mut one = Followed::new(true);
    one.passes::<REQUESTS>(&get(1));
    one.passes::<RESPONSES>(&OK[..OK.len() - 1]);
    one.http_requests.close::<RESPONSES>();
    one.at.rcv_nxt = one.at.rcv_nxt.wrapping_add(1);
    assert_eq!(one.broken(), Some(1));
}

#[test]
fn what_did_not_reach_its_end_is_open() {
    // The response came before the request had been sent whole, or acknowledged.
    let mut client = Followed::new(true);
    let request = post(1, "0123456789");
    client.passes::<REQUESTS>(&request[..request.len() - 1]);
    client.passes::<RESPONSES>(OK);
    assert_eq!(client.broken(), Some(1));
    client.passes::<REQUESTS>(&request[request.len() - 1..]);
    assert_eq!(client.broken(), None);
    client.at.snd_una = client.at.snd_una.wrapping_sub(1);
    assert_eq!(client.broken(), Some(1));
    // The client leaves the response unread; of a reset that comes, that says nothing.
    let mut client = Followed::new(true);
    client.passes::<REQUESTS>(&get(1));
    client.passes::<RESPONSES>(OK);
    client.at.copied_seq = client.at.copied_seq.wrapping_sub(1);
    assert_eq!([true, false].map(|sends| client.broken_by(sends)), [Some(1), None]);
    // The server leaves the request's body unread.
    let mut server = Followed::new(false);
    server.passes::<REQUESTS>(&request);
    server.passes::<RESPONSES>(OK);
    server.at.copied_seq = server.at.copied_seq.wrapping_sub(1);
    assert_eq!([true, false].map(|sends| server.broken_by(sends)), [Some(1), None]);
}

#[test]
fn what_was_not_seen_names_nothing() {
    // Followed from the middle on.
    let mut one = Followed::new(true);
    one.at.snd_nxt = one.at.snd_nxt.wrapping_add(100);
    one.passes::<REQUESTS>(&get(1));
    assert_eq!((one.broken(), one.http_requests.lost), (None, Untracked::Gap as u32));
    // A response that nobody asked for.
    let mut one = Followed::new(false);
    one.passes::<RESPONSES>(b"HTTP/1.1 408 Request Timeout\r\n\r\n");
    assert_eq!((one.broken(), one.http_requests.lost), (None, Untracked::Unasked as u32));
    one.passes::<REQUESTS>(&get(1));
    assert_eq!(one.broken(), None);
    // The kernel has come further than what was looked at.
    let mut one = Followed::new(true);
    one.passes::<REQUESTS>(&get(1));
    one.at.rcv_nxt = one.at.rcv_nxt.wrapping_add(1);
    assert_eq!(one.broken(), None);
}

#[test]
fn segments_come_again_and_out_of_order() {
    let body = "x".repeat(100);
    let bytes = post(1, &body);
    let (mut one, start) = (Followed::new(false), FIRST[0]);
    let at = |offset: usize| start.wrapping_add(offset as u32);
    one.segment::<REQUESTS>(start, &bytes[..30]);
    one.segment::<REQUESTS>(start, &bytes[..40]);
    one.segment::<REQUESTS>(at(10), &bytes[10..20]);
    one.segment::<REQUESTS>(at(40), &bytes[40..bytes.len() - 90]);
    // A hole in the body.
    one.segment::<REQUESTS>(at(bytes.len() - 50), &bytes[bytes.len() - 50..]);
    one.segment::<REQUESTS>(at(bytes.len() - 90), &bytes[bytes.len() - 90..bytes.len() - 50]);
    one.at.rcv_nxt = at(bytes.len());
    one.at.copied_seq = one.at.rcv_nxt;
    assert_eq!(one.broken(), Some(1));
    one.passes::<RESPONSES>(OK);
    assert_eq!(one.broken(), None);
    // A hole that reaches beyond the body.
    let beyond = at(bytes.len() + 1);
    one.segment::<REQUESTS>(beyond, b"ET / HTTP/1.1\r\n\r\n");
    assert_eq!(one.http_requests.lost, Untracked::Gap as u32);
}

proptest! {
    /// Whatever is requested, wherever segments are cut and whichever come twice: what is open is what the model says.
    #[test]
    fn what_is_open_is_what_has_not_been_answered(
        turns in prop::collection::vec((any::<bool>(), 0usize..200, any::<bool>()), 1..20),
        cuts in prop::collection::vec(1usize..60, 1..20),
        client in any::<bool>(),
    ) {
        let mut one = Followed::new(client);
        let mut cuts = cuts.iter().copied().cycle();
        for (number, (traced, body, chunked)) in turns.into_iter().enumerate() {
            let span = if traced { number as u64 + 1 } else { 0 };
            let expected = traced.then_some(span);
            let inner = get(99).repeat(body / 50 + 1);
            let inner = String::from_utf8_lossy(&inner[..body.min(inner.len())]).into_owned();
            let bytes = if chunked {
                let chunk = std::format!("{:x}\r\n{inner}\r\n", inner.len());
                let chunk = if inner.is_empty() { String::new() } else { chunk };
                request(span, "PUT /", "Transfer-Encoding: Chunked\r\n", &std::format!("{chunk}0\r\n\r\n"))
            } else {
                post(span, &inner)
            };
            let response = std::format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
            let response = response.as_bytes();
            let mut offset = 0;
            while offset < bytes.len() {
                let end = (offset + cuts.next().unwrap_or(1)).min(bytes.len());
                // It comes a second time, with a little more before it.
                let sequence = *one.next::<REQUESTS>();
                let before = offset.min(5);
                one.segment::<REQUESTS>(sequence.wrapping_sub(before as u32), &bytes[offset - before..end]);
                one.passes::<REQUESTS>(&bytes[offset..end]);
                offset = end;
                let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0) + 4;
                prop_assert_eq!(one.broken(), if end >= head { expected } else { None });
            }
            let mut offset = 0;
            while offset < response.len() {
                prop_assert_eq!(one.broken(), expected);
                let end = (offset + cuts.next().unwrap_or(1)).min(response.len());
                one.passes::<RESPONSES>(&response[offset..end]);
                offset = end;
            }
            prop_assert_eq!(one.broken(), None);
            prop_assert!(!one.http_requests.is_lost());
        }
    }
}
