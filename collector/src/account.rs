//! The account of every reset, and of how the collector is doing.
//!
//! [`Ledger`] keeps the terms of the accounting invariant under one lock, so that no sample sees the sum off. [`HealthBoard`]
//! keeps what else is known of the queues, the hooks and the process; [`Heartbeat`] whether the reader lives. The
//! figures are rendered elsewhere ([`crate::telemetry`]).

mod drop_reason;
pub mod exemplar;
mod health;
mod heartbeat;
mod ledger;
pub mod snapshot;

use std::{
    sync::{Arc, OnceLock},
    time::SystemTime,
};

pub(crate) use crate::account::ledger::queue_name;
pub use crate::account::{
    drop_reason::DropReason,
    exemplar::Exemplars,
    health::HealthBoard,
    heartbeat::Heartbeat,
    ledger::Ledger,
    snapshot::{DURATION_BOUNDS, Degradation, Degraded, Dropped, HookCoverage, QueueHealth, QueueSnapshot, Snapshot},
};
use crate::{account::snapshot::unix_seconds, model::signal::Signal};

/// Identifies the queue of one destination and signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueId(usize);

/// Called before each snapshot.
type SnapshotHook = Box<dyn Fn(&Account) + Send + Sync>;

/// Shared by the whole program.
#[derive(Default)]
pub struct Account {
    /// Where every reset is.
    pub ledger: Ledger,
    /// How the queues, the hooks and the process are doing.
    pub health: HealthBoard,
    /// Whether the reader lives.
    pub heartbeat: Heartbeat,
    /// Resets with a trace, for the metrics.
    pub exemplars: Exemplars,
    started: Started,
    snapshot_hook: OnceLock<SnapshotHook>,
}

struct Started(SystemTime);

impl Default for Started {
    fn default() -> Self {
        Self(SystemTime::now())
    }
}

impl Account {
    /// An empty account.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the queue of a destination and signal. Returns its name too: the destination's, with a number behind it
    /// where that is taken.
    pub(crate) fn open_queue(&self, destination: &str, signal: Signal) -> (QueueId, Arc<str>) {
        let (id, name) = self.ledger.open_queue(destination, signal);
        self.health.open_queue(id, name.clone(), signal);
        (id, name)
    }

    /// Sets what is called before each snapshot, so that nothing is counted while nobody reads. The first one stays.
    pub fn on_snapshot(&self, hook: impl Fn(&Self) + Send + Sync + 'static) {
        if self.snapshot_hook.set(Box::new(hook)).is_err() {
            tracing::debug!(event = "snapshot_hook_ignored", "the snapshot hook is set already");
        }
    }

    /// Drops every reset that is not in a queue: the reader does not end.
    pub fn drop_unfinished(&self, reason: DropReason) {
        let in_ring_buffer = self.snapshot().in_ring_buffer;
        self.ledger.drop_unfinished(reason, in_ring_buffer);
    }

    /// Everything, at one instant.
    pub fn snapshot(&self) -> Snapshot {
        if let Some(hook) = self.snapshot_hook.get() {
            hook(self);
        }
        let mut snapshot = Snapshot {
            heartbeat_age: self.heartbeat.age(),
            started_unix_s: unix_seconds(self.started.0),
            ..self.ledger.snapshot()
        };
        self.health.add_to(&mut snapshot);
        snapshot
    }
}

#[cfg(test)]
mod tests;
