//! Receive records that may be none.
//!
//! `tcp_rcv_state_process` calls `tcp_reset()` for data that come after close as well, though no RST came
//! (net/ipv4/tcp_input.c). The kernel marks such records; the send that follows at once takes them back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use probes::{ResetRecord, flag};

use crate::model::Reset;

/// How long a record in doubt waits: the send follows within microseconds, and the ring buffer is read every 20 ms.
const TIMEOUT: Duration = Duration::from_millis(45);
/// Records in doubt at most; more, and the oldest go on.
const MAX_HELD: usize = 4_096;

/// Records in doubt, oldest first.
#[derive(Debug, Default)]
pub struct TentativeReceives {
    held: VecDeque<(Instant, Reset)>,
}

impl TentativeReceives {
    /// Keeps a reset in doubt, or passes it on and forgets the one that it takes back.
    pub fn admit(&mut self, record: &ResetRecord, reset: Reset, now: Instant) -> Option<Reset> {
        if record.flags & flag::RECEIVE_TENTATIVE != 0 {
            self.held.push_back((now, reset));
            return None;
        }
        if record.flags & flag::RETRACTS_RECEIVE != 0
            && let Some(at) = self.held.iter().rposition(|(_, held)| held.socket == record.socket)
        {
            self.held.remove(at);
        }
        Some(reset)
    }

    /// The oldest reset that is in doubt no longer.
    pub fn take_due(&mut self, now: Instant) -> Option<Reset> {
        let due = self.held.len() > MAX_HELD || self.next_deadline()? <= now;
        if due { self.take() } else { None }
    }

    /// The oldest reset, due or not: for the end of the program.
    pub fn take(&mut self) -> Option<Reset> {
        self.held.pop_front().map(|(_, reset)| reset)
    }

    /// Resets in doubt.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// When the oldest is in doubt no longer.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.held.front().map(|(since, _)| *since + TIMEOUT)
    }
}
