//! Tentative receives: records that a later one may retract.
//!
//! `tcp_rcv_state_process` calls `tcp_reset()` for data that come after close as well, though no RST came
//! (net/ipv4/tcp_input.c). The probes mark such records; the send that follows at once retracts them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use probes::{ResetRecord, flag};

use crate::model::Reset;

/// How long a tentative receive waits: the send follows within microseconds, and the ring buffer is read every 20 ms.
const TIMEOUT: Duration = Duration::from_millis(45);
/// Maximum of tentative receives; beyond it the oldest go on.
const MAX_HELD: usize = 4_096;

/// Tentative receives, oldest first.
#[derive(Debug, Default)]
pub struct TentativeReceives {
    held: VecDeque<(Instant, Reset)>,
}

impl TentativeReceives {
    /// Holds a tentative receive, or passes a reset on and drops the one that it retracts.
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

    /// The oldest reset whose wait is over.
    pub fn take_due(&mut self, now: Instant) -> Option<Reset> {
        let due = self.held.len() > MAX_HELD || self.next_deadline()? <= now;
        if due { self.take() } else { None }
    }

    /// The oldest reset, due or not: for the end of the program.
    pub fn take(&mut self) -> Option<Reset> {
        self.held.pop_front().map(|(_, reset)| reset)
    }

    /// Tentative receives held.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// When the wait of the oldest is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.held.front().map(|(since, _)| *since + TIMEOUT)
    }
}
