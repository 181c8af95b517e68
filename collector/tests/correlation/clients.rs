//! Client spans, which name no connection but in Go's errors.

use std::net::Ipv6Addr;

use opentelemetry_proto::tonic::trace::v1::Span;
use reset_collector::model::{Connection, Endpoint, Reset};

use crate::{
    Said, check, on,
    sdk::{
        self, At, Build, MS, ZERO, answered_late, at_client, at_server, go_client, go_client_that_gave_up,
        go_grpc_client, go_reset_text, node_client, python_client, refused,
    },
    spans_first,
};

fn v6_loopback() -> Endpoint {
    Endpoint { address: Ipv6Addr::LOCALHOST.into(), port: sdk::SERVER_PORT }
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
    let go = go_client_that_gave_up(1);
    let answered = |at_ms: u64, established_ms: u64| {
        let connection = Connection { duration_ns: Some((at_ms - established_ms) * MS), ..Connection::default() };
        answered_late(at_ms, connection)
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
fn clients_that_gave_up_long_before_the_answer() {
    let gave_up = go_client_that_gave_up;
    let answered = |at_ms: u64, closed_at_ms: u64| {
        let since = |then_ms: u64| Some((at_ms - then_ms) * MS);
        let connection = Connection { duration_ns: since(0), closed_ns: since(closed_at_ms), ..Connection::default() };
        answered_late(at_ms, connection)
    };
    let alone = [gave_up(1)];
    check("it closed within its call", &alone, &[answered(4_000, 19)], &on(1));
    check("just after its call", &alone, &[answered(4_000, 21)], &on(1));
    check("long after its call", &alone, &[answered(4_000, 1_100)], &[Said::Nothing]);
    check(
        "in the middle of its call",
        &[go_client(1, 0, 300).failed("timeout")],
        &[answered(4_000, 19)],
        &[Said::Nothing],
    );
    check("another gave up as well", &[gave_up(1), gave_up(2)], &[answered(4_000, 19)], &[Said::Ambiguous]);
    check("another left its answer", &[gave_up(1), go_client(2, 0, 18)], &[answered(4_000, 19)], &[Said::Ambiguous]);
    let connected_ahead = |bytes_received: u64, closed_at_ms: u64| {
        let reset = answered(4_000, closed_at_ms);
        let facts = (Some(300), Some(bytes_received), Some((4_000 + 600) * MS));
        let (bytes_sent, bytes_received, duration_ns) = facts;
        Reset { connection: Connection { bytes_sent, bytes_received, duration_ns, ..reset.connection }, ..reset }
    };
    check("on a connection made ahead", &alone, &[connected_ahead(0, 21)], &on(1));
    check("used before", &alone, &[connected_ahead(90, 21)], &[Said::Ambiguous]);
    check("closed a while after", &alone, &[connected_ahead(0, 90)], &[Said::Ambiguous]);
    let destroyed = node_client(1, 0, 20).exception("ECONNRESET", "socket hang up").failed("socket hang up");
    check("Node's words", &[destroyed], &[answered(4_000, 19)], &on(1));
    check("others' spans may be forgotten", &alone, &[answered(9_000, 19)], &[Said::Ambiguous]);
}
