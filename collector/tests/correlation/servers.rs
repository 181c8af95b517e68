//! Server spans, which name the connection by the client's port.

use opentelemetry_proto::tonic::trace::v1::Span;
use reset_collector::model::{Cause, Connection, Reset, State};

use crate::{
    Said, check, on,
    sdk::{At, Build, MS, SERVERS, ZERO, at_server, by_server},
};

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
        check(&name("the rest of the body came after the end"), &one, std::slice::from_ref(&more), &on(1));
        check(&name("the same, a little later"), &one, &[more.clone().at(ZERO + 110 * MS)], &on(1));
        check(&name("the next request came after the end"), &one, &[more.at(ZERO + 140 * MS)], &[Said::Nothing]);
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
fn later_segments_of_a_connection_share_its_fate() {
    let span = SERVERS[0].1(1, 40_001, 0, 20);
    let stray = Reset {
        cause: Cause::UnknownConnection,
        owner: None,
        state: None,
        ..by_server(40_001, 22_000, Cause::Unknown)
    };
    let resets = [by_server(40_001, 21_000, Cause::ClosedWithUnreadData), stray];
    check("two resets of one connection", &[span], &resets, &[Said::Own(1), Said::Own(1)]);
}
