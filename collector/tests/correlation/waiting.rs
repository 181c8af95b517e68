//! Who waits, how long, and what is kept: contexts from the wire, other processes, refusals, bounds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reset_collector::{
    correlate::{MAX_COMPARISONS, MAX_PENDING, Sender},
    model::{Cause, Connection, Endpoint, Owner, Reset, State, Trace, TraceMethod},
    otlp::payload::{Encoding, Format, Payload},
};

use crate::{
    Said, TRANSLATED, check, correlator, finish, on, pass, resets_first,
    sdk::{
        self, Build, MS, SERVERS, answered_late, at_client, at_server, by_server, go_client_that_gave_up, owner,
        python_client, request,
    },
    sender,
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
    correlator.submit(at_server(40_001, 10_000), now);
    let other = Owner { pid: 1, ..owner() };
    let reused = Owner { start_boot_ns: owner().start_boot_ns + 1_000_000_000, ..owner() };
    assert!(pass(&correlator, &Sender::Process(other), &spans, now).is_empty());
    assert!(pass(&correlator, &Sender::Process(reused), &spans, now).is_empty(), "the pid, used again");
    assert!(pass(&correlator, &Sender::Unattributed, &spans, now).is_empty(), "no process holds its socket");
}

/// In another network namespace, as a pod.
fn in_a_pod(reset: Reset) -> Reset {
    let end = |end: Endpoint| Endpoint { address: [10, 0, 0, 7].into(), ..end };
    Reset { local: end(reset.local), peer: end(reset.peer), ..reset }
}

/// A server's span of such a connection.
fn span_in_a_pod(mut span: Span) -> Span {
    for attribute in span.attributes.iter_mut().filter(|attribute| attribute.key == "net.peer.ip") {
        *attribute = sdk::attribute("net.peer.ip", "10.0.0.7");
    }
    span
}

#[test]
fn senders_whose_process_is_not_known_claim_only_what_can_be_theirs() {
    let spans = [span_in_a_pod(SERVERS[0].1(1, 40_001, 0, 20))];
    let now = Instant::now();
    let claim = |sender: Sender, spans: &[Span], reset: Reset| {
        let correlator = correlator();
        correlator.submit(reset, now);
        pass(&correlator, &sender, spans, now)
    };
    let here = Sender::Translated { network_namespace: 1 };
    let reset = in_a_pod(at_server(40_001, 10_000));
    assert_eq!(claim(TRANSLATED, &spans, reset.clone()), [(1, 1)], "another namespace's, both ends are named");
    let go = [SERVERS[2].1(1, 40_001, 0, 20)];
    assert!(claim(TRANSLATED, &go, at_server(40_001, 10_000)).is_empty(), "the server's port is not named");
    assert!(claim(here, &spans, reset.clone()).is_empty(), "a reset of the receiver's own namespace");
    let loopback = [SERVERS[0].1(1, 40_001, 0, 20)];
    assert!(claim(TRANSLATED, &loopback, at_server(40_001, 10_000)).is_empty(), "loopback is not translated");
    let same_start = Sender::ForeignPid { start_boot_ns: owner().start_boot_ns + 5_000_000 };
    let other_start = Sender::ForeignPid { start_boot_ns: owner().start_boot_ns + 50_000_000 };
    assert_eq!(claim(same_start, &loopback, at_server(40_001, 10_000)), [(1, 1)]);
    assert!(claim(other_start, &loopback, at_server(40_001, 10_000)).is_empty(), "another process started then");
    assert!(claim(Sender::Remote, &spans, reset).is_empty(), "another host holds no socket of this one");
    let trace = Trace {
        trace_id: [5; 16],
        span_id: Some([5; 8]),
        method: TraceMethod::Header,
        on_application_span: false,
        incoming: false,
        candidates: Vec::new(),
    };
    let with_context = Reset { trace: Some(trace), ..at_client(40_001, 10_000) };
    assert_eq!(claim(Sender::Remote, &[python_client(5, 0, 20)], with_context.clone()), [(5, 1)], "the very context");
    assert!(claim(Sender::Unattributed, &[python_client(5, 0, 20)], with_context).is_empty());
}

/// The work of a request grows with what matches: counted in comparisons, not in time.
#[test]
fn spans_are_compared_only_with_resets_that_they_may_match() {
    let spans: Vec<Span> =
        (0..20_000).map(|n: u32| SERVERS[0].1(n as u8 | 1, 1_000 + (n % 30_000) as u16, 0, 20)).collect();
    let comparisons = |sender: &Sender, spans: &[Span], resets: &dyn Fn(u16) -> Reset| {
        let (correlator, now) = (correlator(), Instant::now());
        (0..250).for_each(|n| correlator.submit(resets(n), now));
        pass(&correlator, sender, spans, now);
        correlator.stats.read().comparisons
    };
    let own = comparisons(&sender(), &spans, &|n| at_server(40_000 + n, 10_000));
    assert_eq!(own, 0, "no span names any of these connections");
    let own = comparisons(&sender(), &spans, &|n| at_server(1_000 + n, 10_000));
    assert_eq!(own, 250, "each connection is named by one span");
    let named: Vec<Span> = spans.iter().cloned().map(span_in_a_pod).collect();
    let unknown = comparisons(&TRANSLATED, &named, &|n| in_a_pod(at_server(1_000 + n, 10_000)));
    assert_eq!(unknown, 250);
    let unknown = comparisons(&TRANSLATED, &named, &|n| in_a_pod(at_server(40_000 + n, 10_000)));
    assert_eq!(unknown, 0);
}

#[test]
fn a_request_whose_spans_match_everything_has_a_budget() {
    let (correlator, now) = (correlator(), Instant::now());
    (0..250).for_each(|n| correlator.submit(at_client(40_000 + n, 19_500), now));
    // All fail against the one server, and any may be any reset's.
    let failed = python_client(1, 0, 20).exception("ConnectionError", "Connection reset by peer");
    let spans: Vec<Span> =
        (0..20_000_u32).map(|n| Span { span_id: [&n.to_be_bytes()[..], &[1; 4]].concat(), ..failed.clone() }).collect();
    assert!(pass(&correlator, &sender(), &spans, now + Duration::from_secs(1)).is_empty());
    let stats = correlator.stats.read();
    assert!(stats.comparisons <= MAX_COMPARISONS as u64, "{stats:?}");
    assert_eq!(stats.incomplete_requests, 1);
    assert!(
        finish(&correlator, now, Vec::new()).iter().all(|said| *said == Said::Ambiguous),
        "none is named as the one"
    );
}

#[test]
fn a_span_that_is_sent_many_times_gets_a_bounded_number_of_events() {
    let (correlator, now) = (correlator(), Instant::now());
    correlator.submit(at_server(40_001, 10_000), now);
    let spans = vec![SERVERS[0].1(1, 40_001, 0, 20); 20_000];
    let events: usize = pass(&correlator, &sender(), &spans, now).iter().map(|(_, events)| events).sum();
    assert_eq!(events, 4_096);
}

#[test]
fn a_search_thread_finds_the_spans_that_have_passed() {
    let (correlator, now) = (correlator(), Instant::now());
    correlator.start_search_thread().expect("a thread");
    let spans = [SERVERS[0].1(1, 40_001, 0, 20)];
    assert!(pass(&correlator, &sender(), &spans, now).is_empty());
    correlator.submit(at_server(40_001, 10_000), now);
    let ready = (0..1_000).find_map(|_| {
        let ready = correlator.take_ready(now);
        if ready.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        (!ready.is_empty()).then_some(ready)
    });
    assert_eq!(finish(&correlator, now, ready.expect("it was found before its deadline")), on(1));
}

#[test]
fn resets_without_a_possible_span_do_not_wait() {
    let (correlator, now) = (correlator(), Instant::now());
    let without_owner = Reset { owner: None, ..at_server(1, 0) };
    let port_closed = by_server(2, 0, Cause::PortClosed);
    let ignored = Reset { not_accepted: true, ..at_server(3, 0) };
    let listener = Reset { state: Some(State::Listen), ..at_server(4, 0) };
    for reset in [without_owner, port_closed, ignored, listener] {
        correlator.submit(reset, now);
        assert_eq!(correlator.next_deadline(now), Some(now));
        assert_eq!(correlator.take_ready(now).len(), 1);
    }
    correlator.submit(at_server(5, 0), now);
    assert_eq!(correlator.next_deadline(now), Some(now + Duration::from_secs(6)));
    assert!(correlator.take_ready(now + Duration::from_millis(5_999)).is_empty());
    assert_eq!(correlator.take_ready(now + Duration::from_secs(6)).len(), 1);
    assert_eq!(correlator.next_deadline(now), None);
}

#[test]
fn spans_that_the_backend_refuses_are_marked_again() {
    let (correlator, now) = (correlator(), Instant::now());
    let bytes = request(&[SERVERS[0].1(1, 40_001, 0, 20)]).encode_to_vec();
    correlator.submit(at_server(40_001, 10_000), now);
    let visit = |now| correlator.correlate_request(&sender(), &bytes, now).expect("valid spans");
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
        correlator.submit(Reset { owner: Some(Owner { pid, ..owner() }), peer, ..at_server(1, 0) }, now);
    }
    let at_once = correlator.take_ready(now).len();
    assert_eq!(at_once, many as usize - MAX_PENDING);
    assert_eq!(correlator.stats.read().overflow, at_once as u64);
    assert_eq!(correlator.drain().len(), MAX_PENDING);
    // A million open traces: requests that nobody looks at.
    let bytes: Bytes =
        request(&(0..200).map(|n| python_client(n as u8 | 1, 0, 20)).collect::<Vec<_>>()).encode_to_vec().into();
    let payload = Payload { chunks: vec![bytes], encoding: Encoding::Identity, format: Format::Protobuf };
    for number in 0..5_000 {
        let sender = Sender::Process(Owner { pid: number, ..owner() });
        assert!(!correlator.needs_correlation(&sender, &payload, now));
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
    pass(&correlator, &sender(), &[go_client_that_gave_up(1)], now);
    pass(&correlator, &sender(), &[go_client_that_gave_up(2)], after(4));
    correlator.submit(answered_late(4_020, connection), after(4));
    assert_eq!(finish(&correlator, after(11), Vec::new()), [Said::Ambiguous]);
}
