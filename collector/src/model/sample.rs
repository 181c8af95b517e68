//! Resets for tests: one that is whole, and any.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use proptest::prelude::*;

use crate::{
    model::resource::{Resource, ResourceValue},
    model::{
        Cause, Connection, Direction, Endpoint, Hook, Origin, Owner, OwnerSource, Reset, State, Trace, TraceMethod,
    },
};

/// nginx closed a connection with unread data: every fact known but the trace.
pub(crate) fn reset() -> Reset {
    Reset {
        time_unix_ns: 1_795_553_979_123_456_789,
        observed_unix_ns: 1_795_553_979_133_000_000,
        direction: Direction::Transmit,
        origin: Origin::Active,
        cause: Cause::ClosedWithUnreadData,
        reason: Some("TCP_ABORT_ON_CLOSE"),
        state: Some(State::Established),
        local: endpoint("10.0.0.5", 80),
        peer: endpoint("10.0.0.7", 51514),
        connection: Connection {
            bytes_sent: Some(512),
            bytes_received: Some(70_000),
            unread_bytes: Some(4096),
            unsent_bytes: Some(0),
            unacked_bytes: Some(0),
            retransmits: Some(0),
            smoothed_rtt_us: Some(250),
            duration_ns: Some(1_500_000_000),
            closed_ns: None,
            last_data: None,
        },
        network_namespace: Some(4_026_531_840),
        owner: Some(owner("nginx", 812)),
        socket: 7,
        listener: 0,
        credential: 0,
        cgroup_id: Some(42),
        actor: None,
        exit: None,
        segment_flags: 0,
        not_accepted: false,
        own_firewall: false,
        hook: Hook::SendReset,
        resource: resource(&[("host.name", "web-1")]),
        trace: None,
        adjusted_count: 1.0,
    }
}

pub(crate) fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), port }
}

pub(crate) fn owner(name: &str, pid: u32) -> Owner {
    let mut comm = [0; 16];
    comm[..name.len()].copy_from_slice(name.as_bytes());
    Owner { pid, start_boot_ns: 1, comm, source: OwnerSource::Current }
}

pub(crate) fn resource(attributes: &[(&'static str, &str)]) -> Arc<Resource> {
    let text = |value: &str| ResourceValue::Text(value.to_owned());
    Resource::new(attributes.iter().map(|(name, value)| (Cow::Borrowed(*name), text(value))).collect())
}

/// Any trace; ids are never zeros.
fn any_trace() -> impl Strategy<Value = Trace> {
    let id = || (any::<[u8; 16]>(), any::<[u8; 8]>()).prop_filter("zeros", |id| id.0 != [0; 16] && id.1 != [0; 8]);
    let method = prop::sample::select(&TraceMethod::ALL[..]);
    (id(), any::<bool>(), method, any::<bool>(), prop::collection::vec(id(), 0..4)).prop_map(
        |((trace_id, span_id), with_span, method, on_application_span, candidates)| Trace {
            trace_id,
            span_id: with_span.then_some(span_id),
            method,
            on_application_span: on_application_span && method == TraceMethod::Span,
            incoming: false,
            candidates: if method == TraceMethod::Header { Vec::new() } else { candidates },
        },
    )
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let wide = || any::<Option<u64>>();
    let narrow = || any::<Option<u32>>();
    ((wide(), wide(), wide()), (narrow(), narrow(), narrow(), narrow(), narrow())).prop_map(
        |((bytes_sent, bytes_received, duration_ns), (unread, unsent, unacked, retransmits, rtt))| Connection {
            bytes_sent,
            bytes_received,
            unread_bytes: unread,
            unsent_bytes: unsent,
            unacked_bytes: unacked,
            retransmits,
            smoothed_rtt_us: rtt,
            duration_ns,
            closed_ns: duration_ns.map(|ns| ns / 2),
            last_data: duration_ns.map(|ns| if ns % 2 == 0 { Direction::Transmit } else { Direction::Receive }),
        },
    )
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(address, port)| Endpoint { address: address.to_canonical(), port })
}

/// Any reset at all, likely or not.
pub(crate) fn any_reset() -> impl Strategy<Value = Reset> {
    let words = (
        prop::sample::select(Direction::ALL),
        prop::sample::select(Origin::ALL),
        prop::sample::select(Cause::ALL),
        prop::option::of(prop::sample::select(State::ALL)),
        prop::option::of(prop::sample::select(vec!["TCP_STATE", "NO_SOCKET", "MPTCP_RST_EMIDDLEBOX"])),
    );
    let facts = (any_connection(), any::<Option<u32>>(), prop::option::of(any_trace()), any::<[u8; 16]>());
    let rest = (any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>(), 1_u32..1000);
    (words, any_endpoint(), any_endpoint(), facts, rest).prop_map(
        |(
            words,
            local,
            peer,
            (connection, network_namespace, trace, comm),
            (time, observed, owned, ignored, weight),
        )| {
            Reset {
                time_unix_ns: time,
                observed_unix_ns: observed,
                direction: words.0,
                origin: words.1,
                cause: words.2,
                state: words.3,
                reason: words.4,
                local,
                peer,
                connection,
                network_namespace,
                owner: owned.then(|| Owner { comm, ..owner("", 812) }),
                not_accepted: ignored,
                trace,
                adjusted_count: f64::from(weight) / 4.0,
                ..reset()
            }
        },
    )
}
