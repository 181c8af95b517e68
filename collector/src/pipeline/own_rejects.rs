//! Which received resets come from the firewall of this host.
//!
//! An egress rule that rejects what a program sends resets the program's connection in the peer's name. The kernel reports
//! the firewall's reset, and then its receipt as one of the peer.

use std::collections::VecDeque;

use crate::model::{Cause, Direction, Endpoint, Reset};

/// How long after the firewall's reset its receipt is expected: it crosses only the loopback device.
const RECEIPT_TIMEOUT_NS: u64 = 1_000_000_000;
/// Firewall resets whose receipt is awaited; those of other hosts' segments have none.
const MAX_AWAITED: usize = 64;

/// Network namespace, source and destination of a segment.
type Segment = (Option<u32>, Endpoint, Endpoint);

/// Resets of the firewall whose receipt may follow, oldest first.
#[derive(Debug, Default)]
pub struct OwnRejects {
    awaited: VecDeque<(u64, Segment)>,
}

impl OwnRejects {
    /// Notes a reset of the firewall, and marks the receipt of one.
    pub fn observe(&mut self, reset: &mut Reset) {
        let segment = (reset.network_namespace, reset.source(), reset.destination());
        if reset.cause == Cause::FirewallReject {
            if self.awaited.len() == MAX_AWAITED {
                self.awaited.pop_front();
            }
            self.awaited.push_back((reset.time_unix_ns, segment));
        } else if reset.direction == Direction::Receive {
            let is_receipt = |(sent, awaited): &(u64, Segment)| {
                *awaited == segment && reset.time_unix_ns.saturating_sub(*sent) <= RECEIPT_TIMEOUT_NS
            };
            if let Some(index) = self.awaited.iter().rposition(is_receipt) {
                self.awaited.remove(index);
                reset.own_firewall = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    fn rejected() -> Reset {
        Reset { cause: Cause::FirewallReject, own_firewall: true, ..sample::reset() }
    }

    fn refused() -> Reset {
        Reset { cause: Cause::RefusedByPeer, direction: Direction::Receive, ..sample::reset() }
    }

    fn is_own(before: &[Reset], mut reset: Reset) -> bool {
        let mut rejects = OwnRejects::default();
        before.iter().cloned().for_each(|mut reset| rejects.observe(&mut reset));
        rejects.observe(&mut reset);
        reset.own_firewall
    }

    #[test]
    fn the_receipt_of_the_own_firewalls_reset_is_marked() {
        assert!(is_own(&[rejected()], refused()));
        assert!(!is_own(&[], refused()), "the peer's own");
        let other = Reset { network_namespace: Some(1), ..rejected() };
        assert!(!is_own(&[other], refused()), "another host's firewall");
        let inbound = Reset { own_firewall: false, ..rejected() };
        assert!(!is_own(&[inbound], refused()), "it went to the peer");
        let late = Reset { time_unix_ns: refused().time_unix_ns + 2 * RECEIPT_TIMEOUT_NS, ..refused() };
        assert!(!is_own(&[rejected()], late));
        assert!(!is_own(&[rejected(), refused()], refused()), "one receipt each");
    }

    #[test]
    fn memory_is_bounded() {
        let mut rejects = OwnRejects::default();
        for port in 0..1_000 {
            let peer = Endpoint { port, ..rejected().peer };
            rejects.observe(&mut Reset { peer, ..rejected() });
        }
        assert_eq!(rejects.awaited.len(), MAX_AWAITED);
    }
}
