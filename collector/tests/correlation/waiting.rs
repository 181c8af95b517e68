//! Who waits, how long, and what is kept: contexts from the wire, other processes, refusals, bounds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reset_collector::{
    correlate::MOST_WAITING,
    model::{Cause, Connection, Endpoint, Owner, Reset, State, Trace, TraceMethod},
    otlp::payload::{Coding, Format, Payload},
};

use crate::{
    Said, check, correlator, finish, on, pass, resets_first,
    sdk::{
        Build, MS, SERVERS, answered_late, at_client, at_server, by_server, go_client_that_gave_up, owner,
        python_client, request,
    },
};

#[test]
fn a_context_from_the_wire_is_exact() {
    let context = |number: u8, incoming: bool| Trace {
        trace_id: [number; 16],
        span_id: Some([number; 8]),
        method: TraceMethod::Header,
        on_application_span: false,
        incoming,
        candidates: Vec::new(),
    };
    let eight: Vec<Span> = (1..9).map(|n| python_client(n, 0, 20)).collect();
    let client = Reset { trace: Some(context(5, false)), ..at_client(40_001, 10_000) };
    check("the client's own span", &eight, std::slice::from_ref(&client), &on(5));
    let server_span = SERVERS[0].1(1, 40_001, 0, 20).parent(5);
    let server = Reset { trace: Some(context(5, true)), ..at_server(40_001, 10_000) };
    check("the server's, by its parent", std::slice::from_ref(&server_span), std::slice::from_ref(&server), &on(1));
    check(
        "one process is both ends",
        &[eight[4].clone(), server_span],
        &[server, client],
        &[Said::Own(1), Said::Own(5)],
    );
    let lost = Reset { trace: Some(context(99, false)), ..at_client(40_001, 10_000) };
    let (told, marked) = resets_first(&eight, &[lost]);
    assert_eq!((told, marked), (on(99), Vec::new()), "its span never came: the trace stays");
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

#[test]
fn what_passed_since_the_client_closed_is_remembered() {
    let connection = Connection { duration_ns: Some(4_020 * MS), closed_ns: Some(4_000 * MS), ..Connection::default() };
    let (correlator, now) = (correlator(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    pass(&correlator, Some(&owner()), &[go_client_that_gave_up(1)], now);
    pass(&correlator, Some(&owner()), &[go_client_that_gave_up(2)], after(4));
    correlator.offer(answered_late(4_020, connection), after(4));
    assert_eq!(finish(&correlator, after(11), Vec::new()), [Said::Ambiguous]);
}
