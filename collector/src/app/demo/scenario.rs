//! The ways to make a reset that the demo shows, and what each must be captured as.
//!
//! How each is made stands in [`super::act`]; what was captured is judged in [`super::verdict`].

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::app::demo::{Options, actions};
use crate::model::{Cause, Direction};

/// The loopback that a scenario runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// 127.0.0.1
    V4,
    /// ::1
    V6,
    /// ::ffff:127.0.0.1, IPv4 through an IPv6 socket
    Mapped,
}

impl Family {
    /// The address that both ends have.
    pub(crate) fn address(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
            Self::Mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        }
    }

    /// The word in the table.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
            Self::Mapped => "IPv4 in IPv6",
        }
    }
}

/// A reset as it must be captured.
pub(crate) type Expected = (Direction, Cause);

/// One way to make a reset.
pub(crate) struct Scenario {
    /// What is done.
    pub(crate) made: &'static str,
    pub(crate) family: Family,
    /// Every reset that it makes on the host, sent and received.
    pub(crate) expected: &'static [Expected],
    pub(crate) act: Act,
}

/// How a scenario's resets come to be.
pub(crate) enum Act {
    /// Made in a namespace of its own.
    Make(fn(Family, &Options) -> io::Result<()>),
    /// The same, but the kernel takes seconds: begun first.
    MakeSlowly(fn(Family, &Options) -> io::Result<()>),
    /// Not made, and why.
    CannotMake(&'static str),
}

const fn sent(cause: Cause) -> Expected {
    (Direction::Transmit, cause)
}

const fn received(cause: Cause) -> Expected {
    (Direction::Receive, cause)
}

const REFUSED: &[Expected] = &[sent(Cause::PortClosed), received(Cause::RefusedByPeer)];
const UNREAD: &[Expected] = &[sent(Cause::ClosedWithUnreadData), received(Cause::ResetByPeer)];
const LINGER: &[Expected] = &[sent(Cause::LingerZero), received(Cause::ResetByPeer)];
const AFTER_CLOSE: &[Expected] = &[sent(Cause::DataAfterClose), received(Cause::ResetByPeer)];
const DISCONNECT: &[Expected] = &[sent(Cause::DisconnectSyscall), received(Cause::ResetByPeer)];
const LISTENER: &[Expected] = &[sent(Cause::ListenerClosed), received(Cause::ResetByPeer)];
const OVERFLOW: &[Expected] = &[sent(Cause::AcceptQueueOverflow), received(Cause::ResetByPeer)];
const KILLED: &[Expected] = &[sent(Cause::ProcessKilled), received(Cause::ResetByPeer)];
const ADMIN: &[Expected] = &[sent(Cause::SocketDestroyed), received(Cause::ResetByPeer)];
const KEEPALIVE: &[Expected] = &[sent(Cause::KeepaliveTimeout), received(Cause::ResetByPeer)];
const USER_TIMEOUT: &[Expected] = &[sent(Cause::UserTimeout), received(Cause::ResetByPeer)];
// The answer to a forged segment reaches a port that owns no connection.
const UNKNOWN: &[Expected] = &[sent(Cause::UnknownConnection), received(Cause::UnmatchedReset)];
const BAD: &[Expected] = &[sent(Cause::BadSegment), received(Cause::UnmatchedReset)];
const REJECTED: &[Expected] = &[sent(Cause::FirewallReject), received(Cause::RefusedByPeer)];
const MPTCP: &[Expected] = &[sent(Cause::Mptcp), received(Cause::ResetByPeer)];
const UNMATCHED: &[Expected] = &[received(Cause::UnmatchedReset)];
const REFUSED_RESET: &[Expected] = &[received(Cause::BadSegment)];

/// Every scenario, in the order of the causes in the design.
pub(crate) static SCENARIOS: &[Scenario] = &[
    quick("connect to a closed port", Family::V4, REFUSED, actions::port_closed),
    quick("connect to a closed port", Family::V6, REFUSED, actions::port_closed),
    quick("connect to a closed port", Family::Mapped, REFUSED, actions::port_closed),
    quick("ACK to a closed port", Family::V4, UNKNOWN, actions::unknown_to_closed_port),
    quick("ACK to a closed port", Family::V6, UNKNOWN, actions::unknown_to_closed_port),
    quick("ACK to a listener", Family::V4, UNKNOWN, actions::unknown_to_listener),
    quick("close with data unread", Family::V4, UNREAD, actions::close_with_unread_data),
    quick("close with data unread", Family::V6, UNREAD, actions::close_with_unread_data),
    quick("close under SO_LINGER 0", Family::V4, LINGER, actions::linger_zero),
    quick("close under SO_LINGER 0", Family::V6, LINGER, actions::linger_zero),
    quick("send to a peer that has closed", Family::V4, AFTER_CLOSE, actions::data_after_close),
    quick("send to a peer that has closed", Family::V6, AFTER_CLOSE, actions::data_after_close),
    quick("connect(AF_UNSPEC)", Family::V4, DISCONNECT, actions::disconnect),
    quick("close a listener with a connection waiting", Family::V4, LISTENER, actions::close_listener),
    slow("overflow an accept queue", Family::V4, OVERFLOW, actions::overflow_accept_queue),
    quick("kill -9 the owner", Family::V4, KILLED, actions::kill_owner),
    quick("sock_diag destroy (ss -K)", Family::V4, ADMIN, actions::destroy_socket),
    quick("sock_diag destroy (ss -K)", Family::V6, ADMIN, actions::destroy_socket),
    slow("keepalive to a peer gone silent", Family::V4, KEEPALIVE, actions::keepalive_timeout),
    slow("TCP_USER_TIMEOUT, peer gone silent", Family::V4, USER_TIMEOUT, actions::user_timeout),
    Scenario {
        made: "too many orphans",
        family: Family::V4,
        expected: &[sent(Cause::OutOfMemory)],
        act: Act::CannotMake("tcp_max_orphans and tcp_mem are the whole host's, which the demo does not touch"),
    },
    quick("SYN-ACK of a false ACK", Family::V4, BAD, actions::bad_handshake),
    quick("SYN-ACK of a false ACK", Family::V6, BAD, actions::bad_handshake),
    quick("RST outside the window", Family::V4, REFUSED_RESET, actions::reset_outside_window),
    quick("close MPTCP with data unread", Family::V4, MPTCP, actions::mptcp_fast_close),
    quick("REJECT with tcp reset", Family::V4, REJECTED, actions::firewall_reject),
    quick("REJECT with tcp reset", Family::V6, REJECTED, actions::firewall_reject),
    quick("RST to a closed port", Family::V4, UNMATCHED, actions::reset_to_closed_port),
    quick("RST to a closed port", Family::V6, UNMATCHED, actions::reset_to_closed_port),
];

const fn quick(
    made: &'static str,
    family: Family,
    expected: &'static [Expected],
    make: fn(Family, &Options) -> io::Result<()>,
) -> Scenario {
    Scenario { made, family, expected, act: Act::Make(make) }
}

const fn slow(
    made: &'static str,
    family: Family,
    expected: &'static [Expected],
    make: fn(Family, &Options) -> io::Result<()>,
) -> Scenario {
    Scenario { made, family, expected, act: Act::MakeSlowly(make) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_scenario() {
        // The kernel part does not yet distinguish how an owner ended.
        let without = [Cause::Unknown, Cause::ProcessExited, Cause::ProcessOomKilled];
        for cause in Cause::ALL.iter().filter(|cause| !without.contains(cause)) {
            assert!(
                SCENARIOS.iter().any(|scenario| scenario.expected.iter().any(|(_, expected)| expected == cause)),
                "{} is not shown",
                cause.word()
            );
        }
    }
}
