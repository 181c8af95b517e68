//! The ledger of every reset: the terms of the accounting invariant, under one lock.
//!
//! For each queue, at any instant:
//! `captured + recovered = exported + filtered + sampled_out + dropped{reason} + queued`.
//! Each call moves resets from one term to another. `queued` is every reset without an outcome: in the ring buffer, in
//! the pipeline, waiting to be sent, and in flight. `recovered` are resets of an earlier run that the storage held: they
//! were queued then, so the invariant holds across a restart too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probes::{COUNTERS, Cause, Direction, Origin, counter_index};

use crate::{
    account::{DropReason, Dropped, QueueHealth, QueueId, QueueSnapshot, Snapshot, snapshot::REASONS},
    model::signal::Signal,
};

/// Shared by the whole program.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
}

struct State {
    /// By [`counter_index`], as the kernel counted them.
    kernel: Vec<u64>,
    /// Filtered in the kernel.
    kernel_filtered: u64,
    /// Lost in the kernel, by reason.
    kernel_dropped: Dropped,
    /// Read from the ring buffer.
    read: u64,
    filtered: u64,
    sampled_out: u64,
    /// Lost in the pipeline before any queue, by reason.
    pipeline_dropped: Dropped,
    /// By the number of the [`QueueId`].
    queues: Vec<QueueLedger>,
}

/// The terms of one queue.
struct QueueLedger {
    destination: Arc<str>,
    signal: Signal,
    /// Read, and neither filtered, sampled out, dropped nor enqueued here.
    in_pipeline: u64,
    recovered: u64,
    waiting: u64,
    in_flight: u64,
    exported: u64,
    dropped: Dropped,
}

impl Default for State {
    fn default() -> Self {
        Self {
            kernel: vec![0; COUNTERS as usize],
            kernel_filtered: 0,
            kernel_dropped: [0; REASONS],
            read: 0,
            filtered: 0,
            sampled_out: 0,
            pipeline_dropped: [0; REASONS],
            queues: Vec::new(),
        }
    }
}

impl Ledger {
    /// Sets the kernel's counters: totals since the probes were attached; the resets by [`counter_index`], what its rules
    /// filtered, and what was lost in it by reason. All must be read in one go, the resets last.
    pub fn set_kernel_counts(&self, resets: &[u64; COUNTERS as usize], filtered: u64, lost: &[(DropReason, u64)]) {
        let mut state = self.lock();
        state.kernel.copy_from_slice(resets);
        state.kernel_filtered = filtered;
        for (reason, count) in lost {
            state.kernel_dropped[*reason as usize] = *count;
        }
    }

    /// Records read from the ring buffer enter the pipeline.
    pub fn add_captured(&self, resets: u64) {
        let mut state = self.lock();
        state.read += resets;
        state.queues.iter_mut().for_each(|queue| queue.in_pipeline += resets);
    }

    /// Records read from the ring buffer that are not exported.
    pub fn add_captured_and_dropped(&self, reason: DropReason, resets: u64) {
        self.add_captured(resets);
        self.dropped_in_pipeline(reason, resets);
    }

    /// The filters dropped resets of the pipeline.
    pub fn filtered(&self, resets: u64) {
        let mut state = self.lock();
        state.filtered += resets;
        state.leave_pipeline(resets);
    }

    /// Sampling did not choose resets of the pipeline.
    pub fn sampled_out(&self, resets: u64) {
        let mut state = self.lock();
        state.sampled_out += resets;
        state.leave_pipeline(resets);
    }

    /// Resets of the pipeline were lost before any queue.
    pub fn dropped_in_pipeline(&self, reason: DropReason, resets: u64) {
        let mut state = self.lock();
        state.pipeline_dropped[reason as usize] += resets;
        state.leave_pipeline(resets);
    }

    /// Drops the resets that are in the pipeline, and so many in the ring buffer.
    pub(super) fn drop_unfinished(&self, reason: DropReason, in_ring_buffer: u64) {
        let mut state = self.lock();
        state.read += in_ring_buffer;
        for queue in &mut state.queues {
            queue.dropped[reason as usize] += std::mem::take(&mut queue.in_pipeline) + in_ring_buffer;
        }
    }

    /// Resets that were read and are not in a queue yet.
    pub(crate) fn in_pipeline(&self, id: QueueId) -> u64 {
        self.lock().queues.get(id.0).map_or(0, |queue| queue.in_pipeline)
    }

    /// Resets go from the pipeline into a queue.
    pub(crate) fn enqueued(&self, id: QueueId, resets: u64) {
        self.with(id, |queue| {
            queue.in_pipeline = queue.in_pipeline.saturating_sub(resets);
            queue.waiting += resets;
        });
    }

    /// Resets of the pipeline need no request of this queue: their events are on applications' own spans.
    pub(crate) fn delivered_on_app_span(&self, id: QueueId, resets: u64) {
        self.with(id, |queue| {
            queue.in_pipeline = queue.in_pipeline.saturating_sub(resets);
            queue.exported += resets;
        });
    }

    /// The storage held resets of an earlier run: those found wait, those lost are counted by reason.
    pub(crate) fn recovered(&self, id: QueueId, found: u64, lost: &[(DropReason, u64)]) {
        self.with(id, |queue| {
            queue.waiting += found;
            queue.recovered += found;
            for (reason, count) in lost {
                queue.dropped[*reason as usize] += count;
                queue.recovered += count;
            }
        });
    }

    /// Waiting resets go into a request.
    pub(crate) fn begin_export(&self, id: QueueId, resets: u64) {
        self.with(id, |queue| {
            queue.waiting = queue.waiting.saturating_sub(resets);
            queue.in_flight += resets;
        });
    }

    /// Resets in a request wait again: it was cut off by the shutdown.
    pub(crate) fn requeue(&self, id: QueueId, resets: u64) {
        self.with(id, |queue| {
            queue.in_flight = queue.in_flight.saturating_sub(resets);
            queue.waiting += resets;
        });
    }

    /// A request was accepted, except `rejected` resets of it.
    pub(crate) fn exported(&self, id: QueueId, resets: u64, rejected: u64) {
        self.with(id, |queue| {
            let rejected = rejected.min(resets);
            queue.in_flight = queue.in_flight.saturating_sub(resets);
            queue.exported += resets - rejected;
            queue.dropped[DropReason::PartialSuccessRejected as usize] += rejected;
        });
    }

    /// Resets in a request were lost.
    pub(crate) fn dropped_in_flight(&self, id: QueueId, reason: DropReason, resets: u64) {
        self.with(id, |queue| {
            queue.in_flight = queue.in_flight.saturating_sub(resets);
            queue.dropped[reason as usize] += resets;
        });
    }

    /// Waiting resets were lost.
    pub(crate) fn dropped_waiting(&self, id: QueueId, reason: DropReason, resets: u64) {
        self.with(id, |queue| {
            queue.waiting = queue.waiting.saturating_sub(resets);
            queue.dropped[reason as usize] += resets;
        });
    }

    /// Adds a queue, named after its destination.
    pub(super) fn open_queue(&self, destination: &str, signal: Signal) -> (QueueId, Arc<str>) {
        let mut state = self.lock();
        let same = |name: &str| state.queues.iter().any(|it| &*it.destination == name && it.signal == signal);
        let mut names = (1..).map(|number| queue_name(destination, number));
        let name: Arc<str> = names.find(|name| !same(name)).unwrap_or_default().into();
        let id = QueueId(state.queues.len());
        let queue = state.new_queue(name.clone(), signal);
        state.queues.push(queue);
        (id, name)
    }

    /// All terms at one instant.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let ended_in_kernel = state.kernel_dropped.iter().sum::<u64>() + state.kernel_filtered;
        // A record may be read before the kernel's counters are read again: never fewer than were seen.
        let captured = state.kernel.iter().sum::<u64>().max(state.read + ended_in_kernel);
        let in_ring_buffer = captured - state.read - ended_in_kernel;
        let mut dropped_before_queues = state.kernel_dropped;
        add(&mut dropped_before_queues, &state.pipeline_dropped);
        Snapshot {
            captured,
            resets: state.resets(),
            filtered: state.filtered + state.kernel_filtered,
            sampled_out: state.sampled_out,
            dropped_before_queues,
            in_ring_buffer,
            queues: state.queues.iter().map(|queue| queue.snapshot(in_ring_buffer, &dropped_before_queues)).collect(),
            ..Snapshot::default()
        }
    }

    fn with(&self, id: QueueId, change: impl FnOnce(&mut QueueLedger)) {
        if let Some(queue) = self.lock().queues.get_mut(id.0) {
            change(queue);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_queue(&self, destination: Arc<str>, signal: Signal) -> QueueLedger {
        let early = self.filtered + self.sampled_out + self.pipeline_dropped.iter().sum::<u64>();
        // What other queues have in the pipeline comes to this one as well.
        let in_pipeline = self.queues.iter().map(|queue| queue.in_pipeline).max().unwrap_or(0);
        let mut dropped = [0; REASONS];
        dropped[DropReason::DestinationAddedLater as usize] = self.read.saturating_sub(early + in_pipeline);
        QueueLedger { destination, signal, in_pipeline, recovered: 0, waiting: 0, in_flight: 0, exported: 0, dropped }
    }

    fn leave_pipeline(&mut self, resets: u64) {
        for queue in &mut self.queues {
            queue.in_pipeline = queue.in_pipeline.saturating_sub(resets);
        }
    }

    fn resets(&self) -> Vec<(Direction, Origin, Cause, u64)> {
        let mut resets = Vec::new();
        for &direction in Direction::ALL {
            for &origin in Origin::ALL {
                for &cause in Cause::ALL {
                    let count = self.kernel[counter_index(cause, origin, direction) as usize];
                    if count > 0 {
                        resets.push((direction, origin, cause, count));
                    }
                }
            }
        }
        resets
    }
}

impl QueueLedger {
    fn snapshot(&self, in_ring_buffer: u64, dropped_before_queues: &Dropped) -> QueueSnapshot {
        let mut dropped = self.dropped;
        add(&mut dropped, dropped_before_queues);
        QueueSnapshot {
            destination: self.destination.clone(),
            signal: self.signal,
            recovered: self.recovered,
            exported: self.exported,
            dropped,
            queued: in_ring_buffer + self.in_pipeline + self.waiting + self.in_flight,
            waiting: self.waiting,
            in_flight: self.in_flight,
            health: QueueHealth::default(),
        }
    }
}

/// The name of the nth queue of a signal with this destination, from 1.
pub(crate) fn queue_name(destination: &str, number: usize) -> String {
    if number == 1 { destination.to_owned() } else { format!("{destination}#{number}") }
}

fn add(sum: &mut Dropped, more: &Dropped) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}
