//! A reset of which nothing is known: what a test is about is set on it.

use std::net::Ipv4Addr;

use reset_collector::model::{Cause, Connection, Direction, Endpoint, Hook, Origin, Reset};

/// An end on loopback.
pub(crate) fn loopback(port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::LOCALHOST.into(), port }
}

/// Received from the peer, on loopback, and no more is known.
pub(crate) fn reset() -> Reset {
    Reset {
        time_unix_ns: 0,
        observed_unix_ns: 0,
        direction: Direction::Receive,
        origin: Origin::Peer,
        cause: Cause::ResetByPeer,
        reason: None,
        state: None,
        local: loopback(1),
        peer: loopback(1),
        connection: Connection::default(),
        network_namespace: None,
        owner: None,
        socket: 0,
        listener: 0,
        credential: 0,
        cgroup_id: None,
        actor: None,
        exit: None,
        segment_flags: 0,
        not_accepted: false,
        own_firewall: false,
        hook: Hook::ReceiveReset,
        resource: Default::default(),
        trace: None,
        adjusted_count: 1.0,
    }
}
