//! Which span a reset is found on: for each instrumentation's spans, whatever passes first, and never a wrong one.

mod sdk;
mod simulation;

use std::{
    collections::BTreeSet,
    net::Ipv6Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use reset_collector::{
    config::settings::Correlation,
    correlate::{Correlator, MOST_WAITING, Spliced},
    receive::{
        payload::{Coding, Format, Payload},
        splice,
    },
    reset::{Cause, Connection, Endpoint, Owner, Reset, State, Trace, TraceMethod},
};
use sdk::{
    Build, MS, SERVERS, ZERO, at_client, at_server, by_server, go_client, go_grpc_client, go_grpc_server,
    go_reset_text, node_client, owner, python_client, refused, request,
};

/// What is said of a reset: the numbers of its spans, or several that it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Own(u8),
    Ambiguous,
    Nothing,
}

/// What came of one run: what is said of each reset, and the spans that got events with their number.
type Outcome = (Vec<Said>, Vec<(u8, usize)>);

fn correlator() -> Arc<Correlator> {
    let settings = Correlation { http: Some(([127, 0, 0, 1], 0).into()), ..Correlation::default() };
    Correlator::new(&settings, true)
}

/// Sends one request through, as the receiver does, and tells which spans got how many events.
fn pass(correlator: &Arc<Correlator>, sender: Option<&Owner>, spans: &[Span], now: Instant) -> Vec<(u8, usize)> {
    let bytes: Bytes = request(spans).encode_to_vec().into();
    let payload = Payload { chunks: vec![bytes.clone()], coding: Coding::Identity, format: Format::Protobuf };
    if !correlator.must_visit(sender, &payload, now) {
        return Vec::new();
    }
    let Some(Spliced { events, ticket }) = correlator.visit(sender, &bytes, now).expect("valid spans") else {
        return Vec::new();
    };
    let events: Vec<_> = events.into_iter().map(|(_, place, event)| (place, event)).collect();
    let marked = ExportTraceServiceRequest::decode(&splice::splice(&bytes, &events)[..]).expect("valid spans");
    ticket.settle(true);
    let spans = marked.resource_spans[0].scope_spans[0].spans.iter();
    let ours = |span: &Span| span.events.iter().filter(|event| event.name == "tcp.reset").count();
    spans.map(|span| (span.span_id[0], ours(span))).filter(|(_, events)| *events > 0).collect()
}

fn said(reset: &Reset) -> Said {
    match &reset.trace {
        None => Said::Nothing,
        Some(Trace { method: TraceMethod::Ambiguous, candidates, .. }) => {
            assert!(!candidates.is_empty(), "ambiguous between nothing");
            Said::Ambiguous
        }
        Some(trace) => Said::Own(trace.span_id.expect("a span")[0]),
    }
}

/// Lets all wait to the end. What is said stands in the order of the resets' ports.
fn finish(correlator: &Correlator, now: Instant, mut ready: Vec<Reset>) -> Vec<Said> {
    ready.extend(correlator.take_ready(now + Duration::from_secs(20)));
    ready.sort_by_key(|reset| (reset.local.port, reset.peer.port, reset.time_unix_ns));
    ready.iter().map(said).collect()
}

/// Resets first, then the spans in one request.
fn resets_first(spans: &[Span], resets: &[Reset]) -> Outcome {
    let (correlator, now) = (correlator(), Instant::now());
    resets.iter().for_each(|reset| correlator.offer(reset.clone(), now));
    let later = now + Duration::from_secs(3);
    let marked = pass(&correlator, Some(&owner()), spans, later);
    (finish(&correlator, later, correlator.take_ready(later)), marked)
}

/// The spans first, then the resets.
fn spans_first(spans: &[Span], resets: &[Reset]) -> Outcome {
    let (correlator, now) = (correlator(), Instant::now());
    let marked = pass(&correlator, Some(&owner()), spans, now);
    resets.iter().for_each(|reset| correlator.offer(reset.clone(), now + Duration::from_millis(50)));
    (finish(&correlator, now, Vec::new()), marked)
}

/// Every order in which both can come says the same; a span gets the event if its reset waits for it.
fn check(name: &str, spans: &[Span], resets: &[Reset], expected: &[Said]) {
    let (told, marked) = resets_first(spans, resets);
    assert_eq!(told, expected, "{name}: resets first");
    let own: BTreeSet<u8> =
        expected.iter().filter_map(|said| if let Said::Own(span) = said { Some(*span) } else { None }).collect();
    let marked_spans: BTreeSet<u8> = marked.iter().map(|(span, _)| *span).collect();
    assert_eq!(marked_spans, own, "{name}: the event is on the span");
    let events: usize = marked.iter().map(|(_, events)| events).sum();
    let owned = expected.iter().filter(|said| matches!(said, Said::Own(_))).count();
    assert_eq!(events, owned, "{name}: one event for each reset");
    let (told, marked) = spans_first(spans, resets);
    assert_eq!(told, expected, "{name}: spans first");
    assert!(marked.is_empty(), "{name}: those had left");
    // One span a request, in either order, never says something else than this or less.
    for reversed in [false, true] {
        let (correlator, now) = (correlator(), Instant::now());
        resets.iter().for_each(|reset| correlator.offer(reset.clone(), now));
        let mut one_by_one = spans.to_vec();
        if reversed {
            one_by_one.reverse();
        }
        for (index, span) in one_by_one.iter().enumerate() {
            pass(
                &correlator,
                Some(&owner()),
                std::slice::from_ref(span),
                now + Duration::from_millis(10 * index as u64),
            );
        }
        assert_eq!(finish(&correlator, now, correlator.take_ready(now)), expected, "{name}: one by one, {reversed}");
    }
}

fn v6_loopback() -> Endpoint {
    Endpoint { address: Ipv6Addr::LOCALHOST.into(), port: sdk::SERVER_PORT }
}

fn on(number: u8) -> Vec<Said> {
    vec![Said::Own(number)]
}

#[test]
fn http_servers() {
    let upload = Reset {
        connection: Connection { unread_bytes: Some(65_536), ..at_server(1, 0).connection },
        ..by_server(40_001, 23_000, Cause::ClosedWithUnreadData)
    };
    for (name, span) in SERVERS {
        let name = |case: &str| format!("{name}: {case}");
        let one = [span(1, 40_001, 0, 20)];
        check(&name("client aborts while the server works"), &one, &[at_server(40_001, 10_000)], &on(1));
        check(&name("server aborts mid-response"), &one, &[by_server(40_001, 15_000, Cause::LingerZero)], &on(1));
        check(&name("a refused upload, 3 ms after the span"), &one, std::slice::from_ref(&upload), &on(1));
        // Node's end is up to a millisecond early.
        check(&name("idle, 50 ms later"), &one, &[at_server(40_001, 70_000)], &[Said::Nothing]);
        check(&name("the response was complete"), &one, &[at_server(40_001, 20_300)], &[Said::Nothing]);
        check(
            &name("the server closes an idle connection"),
            &one,
            &[by_server(40_001, 20_300, Cause::LingerZero)],
            &[Said::Nothing],
        );
        check(&name("before it began"), &one, &[at_server(40_001, 0).at(ZERO - 10 * MS)], &[Said::Nothing]);
        check(&name("another client's"), &one, &[at_server(40_002, 10_000)], &[Said::Nothing]);
        let five: Vec<Span> = (0..5).map(|n| span(n + 1, 40_001, u64::from(n) * 20, u64::from(n) * 20 + 19)).collect();
        check(&name("the third of five"), &five, &[at_server(40_001, 50_000)], &on(3));
        let unread = Reset { time_unix_ns: ZERO + 22 * MS, ..upload.clone() };
        check(&name("within the second, just after the first"), &five, &[unread], &on(2));
        let eight: Vec<Span> = (0..8).map(|n| span(n + 1, 40_001 + u16::from(n), 0, 30)).collect();
        check(&name("one of eight"), &eight, &[at_server(40_006, 10_000)], &on(6));
        let lingering = |state, at_ms| Reset { state: Some(state), time_unix_ns: ZERO + at_ms * MS, ..upload.clone() };
        let more = Reset { cause: Cause::DataAfterClose, ..lingering(State::FinWait2, 23) };
        check(&name("the rest of the body came after the end"), &one, &[more], &on(1));
        let unacked = |state| Reset {
            state: Some(state),
            connection: Connection { unacked_bytes: Some(118), ..at_server(1, 0).connection },
            ..at_server(40_001, 22_000)
        };
        check(&name("the client had left before the answer"), &one, &[unacked(State::CloseWait)], &on(1));
        check(&name("it took the answer"), &one, &[unacked(State::Established)], &[Said::Nothing]);
        let [fin_wait, later] = [520, 1_100].map(|at_ms| lingering(State::FinWait2, at_ms));
        check(&name("the body lies unread after the end of the stream"), &one, &[fin_wait], &on(1));
        check(&name("the same, too late"), &one, &[later], &[Said::Nothing]);
        let open = lingering(State::Established, 520);
        check(&name("the stream was open: another request's bytes"), &one, &[open], &[Said::Nothing]);
        let port_used_again = Reset {
            connection: Connection { duration_ns: Some(5 * MS), ..Connection::default() },
            ..at_server(40_001, 19_000)
        };
        check(&name("a later connection of the same port"), &one, &[port_used_again], &[Said::Nothing]);
    }
}

/// Moves a reset to another time.
trait At {
    fn at(self, time_unix_ns: u64) -> Self;
}

impl At for Reset {
    fn at(self, time_unix_ns: u64) -> Self {
        Self { time_unix_ns, ..self }
    }
}

#[test]
fn a_node_span_that_ends_too_early() {
    let node = SERVERS[3].1;
    let span = [node(1, 40_001, 0, 20)];
    let after = ZERO + 20 * MS + 400_000 - ZERO % MS;
    let nothing_sent = Connection { bytes_sent: Some(0), bytes_received: Some(90), ..Connection::default() };
    let open = Reset { connection: nothing_sent, ..at_server(40_001, 0) }.at(after);
    check("no byte of a response had been sent", &span, &[open], &on(1));
    let unsent = Connection { bytes_sent: Some(90_000), unsent_bytes: Some(40_000), ..Connection::default() };
    let cut = Reset { connection: unsent, ..by_server(40_001, 0, Cause::LingerZero) }.at(after);
    check("the response was not all sent", &span, &[cut], &on(1));
    check("nothing says that it was open", &span, &[at_server(40_001, 0).at(after)], &[Said::Nothing]);
}

#[test]
fn forwarded_for_is_not_the_socket() {
    let python = |port: i64| {
        SERVERS[1].1(1, 0, 0, 20).text("network.peer.address", "10.0.0.9").number("network.peer.port", port)
    };
    check(
        "the socket's peer counts",
        &[python(40_001).number("client.port", 40_002)],
        &[at_server(40_002, 5_000)],
        &[Said::Nothing],
    );
    let no_port = SERVERS[1].1(1, 0, 0, 20);
    check("an address alone says nothing", &[no_port], &[at_server(40_001, 5_000)], &[Said::Nothing]);
}

#[test]
fn http_clients_that_failed() {
    let python = python_client(1, 0, 20).exception(
        "requests.exceptions.ConnectionError",
        "('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))",
    );
    let httpx = python_client(1, 0, 20).exception("httpx.ReadError", "");
    let go = go_client(1, 0, 20).text("error.type", "*net.OpError").failed(&go_reset_text(40_001));
    let node = node_client(1, 0, 20).text("error.type", "ECONNRESET").failed("read ECONNRESET");
    let all = [("requests", &python), ("httpx", &httpx), ("go", &go), ("node", &node)];
    for (name, failed) in all {
        let name = |case: &str| format!("{name}: {case}");
        let reset = at_client(40_001, 19_500);
        check(&name("alone"), std::slice::from_ref(failed), std::slice::from_ref(&reset), &on(1));
        let healthy = |n: u8| {
            if failed.attributes.iter().any(|a| a.key == "http.url") {
                python_client(n, 0, 90)
            } else {
                go_client(n, 0, 90)
            }
        };
        let mut eight: Vec<Span> = (2..9).map(healthy).collect();
        eight.insert(4, failed.clone());
        check(&name("one of eight"), &eight, std::slice::from_ref(&reset), &on(1));
        let idle = at_client(40_002, 10_000).at(ZERO - 300 * MS);
        check(&name("an idle connection's, before"), std::slice::from_ref(failed), &[idle], &[Said::Nothing]);
        let other =
            Reset { peer: at_server(1, 0).local, local: at_server(40_001, 0).peer, ..at_client(40_001, 19_500) };
        let elsewhere = Reset { peer: Endpoint { port: 9, ..other.peer }, ..other };
        check(&name("another server's"), std::slice::from_ref(failed), &[elsewhere], &[Said::Nothing]);
    }
}

#[test]
fn refused_connections() {
    let python = python_client(1, 0, 20).exception("requests.exceptions.ConnectionError", "HTTPConnectionPool(host='127.0.0.1', port=8080): Max retries exceeded with url: / (Caused by NewConnectionError(\"[Errno 111] Connection refused\"))");
    let go = go_client(1, 0, 20)
        .text("error.type", "*net.OpError")
        .failed("dial tcp 127.0.0.1:8080: connect: connection refused");
    let grpc = go_grpc_client(1, 0, 20).failed("connection error: desc = \"transport: Error while dialing: dial tcp 127.0.0.1:8080: connect: connection refused\"");
    let node = node_client(1, 0, 20).failed("connect ECONNREFUSED 127.0.0.1:8080");
    for span in [&python, &go, &grpc, &node] {
        check("refused", std::slice::from_ref(span), &[refused(40_001, 10_000)], &on(1));
        check("a reset is not a refusal", std::slice::from_ref(span), &[at_client(40_001, 10_000)], &[Said::Nothing]);
    }
    let again: Vec<Reset> = (0..3).map(|n| refused(40_001 + n, 5_000 + u64::from(n) * 1_000)).collect();
    check("three tries, or three calls", std::slice::from_ref(&python), &again, &vec![Said::Ambiguous; 3]);
    let host = |span: &Span| Span { attributes: Vec::new(), ..span.clone() }.text("http.url", "http://localhost:8080/");
    let first = Reset { peer: v6_loopback(), ..refused(40_000, 4_000) };
    check(
        "both addresses of a name",
        &[host(&python)],
        &[first, refused(40_001, 5_000)],
        &[Said::Own(1), Said::Own(1)],
    );
    let second = Span { trace_id: vec![2; 16], span_id: vec![2; 8], ..python.clone() };
    check("two calls", &[python.clone(), second], &[refused(40_001, 10_000)], &[Said::Ambiguous]);
}

#[test]
fn the_second_address_of_localhost_answers() {
    let answered = node_client(1, 0, 20);
    let first = Reset { peer: v6_loopback(), ..refused(40_001, 1_000) };
    let (told, _) = spans_first(&[answered], &[first]);
    assert_eq!(told, on(1));
}

#[test]
fn eight_that_all_fail_are_told_apart_only_by_their_ports() {
    let resets: Vec<Reset> = (0..8).map(|n| at_client(40_001 + n, 19_000 + u64::from(n))).collect();
    let failed = |n: u8| python_client(n, 0, 20).exception("ConnectionError", "Connection reset by peer");
    let spans: Vec<Span> = (1..9).map(failed).collect();
    check("python", &spans, &resets, &vec![Said::Ambiguous; 8]);
    let spans: Vec<Span> = (1..9).map(|n| go_client(n, 0, 20).failed(&go_reset_text(40_000 + u16::from(n)))).collect();
    let own: Vec<Said> = (1..9).map(Said::Own).collect();
    check("go", &spans, &resets, &own);
    let two = [at_client(40_001, 19_000), at_client(40_002, 19_100)];
    check("an idle one dies with it", &[failed(1)], &two, &[Said::Ambiguous, Said::Ambiguous]);
}

#[test]
fn healthy_clients_have_no_reset() {
    let cases = [
        ("an idle connection's, while another request runs", python_client(1, 0, 90)),
        ("httpx ends at the headers", python_client(1, 0, 9)),
        ("a whole answer that says 500", python_client(1, 0, 11).number("http.status_code", 500).failed("")),
        (
            "a whole answer that says 503",
            go_client(1, 0, 11).number("http.response.status_code", 503).text("error.type", "503").failed(""),
        ),
        ("it timed out", go_client(1, 0, 11).failed("context deadline exceeded")),
    ];
    for (name, span) in cases {
        check(name, &[span], &[at_client(40_001, 10_000)], &[Said::Nothing]);
    }
}

#[test]
fn clients_that_gave_up_before_the_answer() {
    let python = python_client(1, 0, 20).exception("requests.exceptions.ReadTimeout", "Read timed out.");
    let go = go_client(1, 0, 20).text("error.type", "timeout").failed("context deadline exceeded");
    let answered = |at_ms: u64, established_ms: u64| {
        let connection = Connection { duration_ns: Some((at_ms - established_ms) * MS), ..Connection::default() };
        Reset {
            peer: at_client(1, 0).peer,
            local: at_client(40_001, 0).local,
            connection,
            ..by_server(1, at_ms * 1_000, Cause::DataAfterClose)
        }
    };
    let healthy = go_client(2, 0, 25);
    for span in [python, go] {
        let alone = std::slice::from_ref(&span);
        check("the answer comes later", alone, &[answered(300, 0)], &on(1));
        check("much later", alone, &[answered(1_100, 0)], &[Said::Nothing]);
        check("on a connection that came later", alone, &[answered(300, 30)], &[Said::Nothing]);
        let both = [span.clone(), healthy.clone()];
        check("or another call left its answer half read", &both, &[answered(300, 0)], &[Said::Ambiguous]);
    }
    check("a healthy call alone", &[healthy], &[answered(300, 0)], &[Said::Nothing]);
}

#[test]
fn grpc_servers_that_name_no_peer() {
    let reset = [at_server(40_001, 10_000)];
    check("cancelled", &[go_grpc_server(1, 0, 11, 1)], &reset, &on(1));
    check("an idle client's, while another's call runs", &[go_grpc_server(1, 0, 90, 0)], &reset, &[Said::Nothing]);
    check("two cancelled", &[go_grpc_server(1, 0, 11, 1), go_grpc_server(2, 0, 11, 1)], &reset, &[Said::Ambiguous]);
}

#[test]
fn all_streams_of_a_dead_connection_are_marked() {
    let text = format!("rpc error: code = Unavailable desc = error reading from server: {}", go_reset_text(40_001));
    let spans: Vec<Span> = (1..4).map(|n| go_grpc_client(n, u64::from(n), 20).failed(&text)).collect();
    let (told, marked) = resets_first(&spans, &[at_client(40_001, 19_000)]);
    assert_eq!(marked, [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(told, on(3));
    let caller = go_grpc_server(9, 0, 21, 14).failed(&text);
    let call = go_grpc_client(8, 1, 20).parent(9).failed(&text);
    check("the caller's own span tells of it too", &[caller, call], &[at_client(40_001, 19_000)], &on(8));
}

#[test]
fn a_context_from_the_wire_is_exact() {
    let context = |number: u8| Trace {
        trace_id: [number; 16],
        span_id: Some([number; 8]),
        method: TraceMethod::Wire,
        on_application_span: false,
        candidates: Vec::new(),
    };
    let eight: Vec<Span> = (1..9).map(|n| python_client(n, 0, 20)).collect();
    let client = Reset { trace: Some(context(5)), ..at_client(40_001, 10_000) };
    check("the client's own span", &eight, std::slice::from_ref(&client), &on(5));
    let server_span = SERVERS[0].1(1, 40_001, 0, 20).parent(5);
    let server = Reset { trace: Some(context(5)), ..at_server(40_001, 10_000) };
    check("the server's, by its parent", std::slice::from_ref(&server_span), std::slice::from_ref(&server), &on(1));
    check(
        "one process is both ends",
        &[eight[4].clone(), server_span],
        &[server, client],
        &[Said::Own(1), Said::Own(5)],
    );
    let lost = Reset { trace: Some(context(99)), ..at_client(40_001, 10_000) };
    let (told, marked) = resets_first(&eight, &[lost]);
    assert_eq!((told, marked), (on(99), Vec::new()), "its span never came: the trace stays");
}

#[test]
fn later_segments_of_a_connection_share_its_fate() {
    let span = SERVERS[0].1(1, 40_001, 0, 20);
    let stray =
        Reset { cause: Cause::StraySegment, owner: None, state: None, ..by_server(40_001, 22_000, Cause::Unknown) };
    let resets = [by_server(40_001, 21_000, Cause::ClosedWithUnreadData), stray];
    check("two resets of one connection", &[span], &resets, &[Said::Own(1), Said::Own(1)]);
}

#[test]
fn other_processes_spans_do_not_count() {
    let spans = [SERVERS[0].1(1, 40_001, 0, 20)];
    let (correlator, now) = (correlator(), Instant::now());
    correlator.offer(at_server(40_001, 10_000), now);
    let other = Owner { pid: 1, ..owner() };
    let reused = Owner { start_boot_ns: owner().start_boot_ns + 1_000_000_000, ..owner() };
    assert!(pass(&correlator, Some(&other), &spans, now).is_empty());
    assert!(pass(&correlator, Some(&reused), &spans, now).is_empty(), "the pid, used again");
    assert_eq!(pass(&correlator, None, &spans, now), [(1, 1)], "both ends are named");
    let (correlator, go) = (self::correlator(), [SERVERS[2].1(1, 40_001, 0, 20)]);
    correlator.offer(at_server(40_001, 10_000), now);
    assert!(pass(&correlator, None, &go, now).is_empty(), "the server's port is not named");
}

#[test]
fn resets_without_a_possible_span_do_not_wait() {
    let (correlator, now) = (correlator(), Instant::now());
    let unowned = Reset { owner: None, ..at_server(1, 0) };
    let port_closed = by_server(2, 0, Cause::PortClosed);
    let ignored = Reset { not_accepted: true, ..at_server(3, 0) };
    let listener = Reset { state: Some(State::Listen), ..at_server(4, 0) };
    for reset in [unowned, port_closed, ignored, listener] {
        correlator.offer(reset, now);
        assert_eq!(correlator.next_deadline(now), Some(now));
        assert_eq!(correlator.take_ready(now).len(), 1);
    }
    correlator.offer(at_server(5, 0), now);
    assert_eq!(correlator.next_deadline(now), Some(now + Duration::from_secs(6)));
    assert!(correlator.take_ready(now + Duration::from_millis(5_999)).is_empty());
    assert_eq!(correlator.take_ready(now + Duration::from_secs(6)).len(), 1);
    assert_eq!(correlator.next_deadline(now), None);
}

#[test]
fn spans_that_the_backend_refuses_are_marked_again() {
    let (correlator, now) = (correlator(), Instant::now());
    let bytes = request(&[SERVERS[0].1(1, 40_001, 0, 20)]).encode_to_vec();
    correlator.offer(at_server(40_001, 10_000), now);
    let visit = |now| correlator.visit(Some(&owner()), &bytes, now).expect("valid spans");
    let first = visit(now).expect("an event");
    assert!(correlator.take_ready(now + Duration::from_secs(9)).is_empty(), "on its way: nobody knows yet");
    let event = first.events[0].2.clone();
    drop(first);
    let second = visit(now).expect("the same event");
    assert_eq!(second.events[0].2, event);
    second.ticket.settle(true);
    let ready = correlator.take_ready(now);
    assert_eq!(ready.len(), 1);
    assert!(ready[0].trace.as_ref().expect("a trace").on_application_span);
    assert_eq!(visit(now).expect("sent again, the answer was lost").events[0].2, event);
    assert!(correlator.take_ready(now + Duration::from_secs(9)).is_empty(), "one reset comes out once");
}

#[test]
fn memory_is_bounded_and_nothing_is_lost() {
    let (correlator, now) = (correlator(), Instant::now());
    let many = 40_000;
    for number in 0..many {
        let pid = 1 + number / 100;
        let peer = Endpoint { port: (number % 60_000) as u16, ..at_server(1, 0).peer };
        correlator.offer(Reset { owner: Some(Owner { pid, ..owner() }), peer, ..at_server(1, 0) }, now);
    }
    let at_once = correlator.take_ready(now).len();
    assert_eq!(at_once, many as usize - MOST_WAITING);
    assert_eq!(correlator.tally.read().overflow, at_once as u64);
    assert_eq!(correlator.drain().len(), MOST_WAITING);
    // A million open traces: requests that nobody looks at.
    let bytes: Bytes =
        request(&(0..200).map(|n| python_client(n as u8 | 1, 0, 20)).collect::<Vec<_>>()).encode_to_vec().into();
    let payload = Payload { chunks: vec![bytes], coding: Coding::Identity, format: Format::Protobuf };
    for number in 0..5_000 {
        let sender = Owner { pid: number, ..owner() };
        assert!(!correlator.must_visit(Some(&sender), &payload, now));
    }
    correlator.take_ready(now + Duration::from_secs(60));
}

#[test]
fn times_and_ids_outside_any_range_are_left_alone() {
    let good = SERVERS[0].1(1, 40_001, 0, 20);
    let end =
        |end_time_unix_nano, start_time_unix_nano| Span { end_time_unix_nano, start_time_unix_nano, ..good.clone() };
    for span in [
        end(0, u64::MAX),
        end(u64::MAX, u64::MAX),
        end(0, 0),
        Span { trace_id: vec![1; 15], ..good.clone() },
        Span { span_id: vec![0; 8], ..good.clone() },
    ] {
        check("not valid", &[span], &[at_server(40_001, 10_000)], &[Said::Nothing]);
    }
    let mut events = good.clone();
    events.events = (0..10_000)
        .map(|n| opentelemetry_proto::tonic::trace::v1::span::Event { time_unix_nano: n, ..Default::default() })
        .collect();
    check("10,000 events", &[events], &[at_server(40_001, 10_000)], &on(1));
}
