//! The account of every reset: the conservation law's terms, kept so that no sampler ever sees the sum off.
//!
//! For each destination and signal (a *lane*), at any instant:
//! `captured + recovered = exported + filtered + sampled_out + dropped{reason} + queued`.
//! All terms stand under one lock and each call moves resets from one term to another. `queued` is everything that has
//! no fate yet: in the ring buffer, in the pipeline, waiting to be sent, and in flight. `recovered` are the resets
//! that the storage directory held from an earlier run: queued then, so that the law holds across a restart as well.
//!
//! Knows nothing of how the figures are shown ([`crate::telemetry::prometheus`], [`crate::telemetry`]).

mod drop_reason;
pub mod exemplar;
pub mod snapshot;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use probes::{COUNTERS, Cause, Direction, Origin, counter_index};

pub use crate::account::{
    drop_reason::DropReason,
    snapshot::{DURATION_BOUNDS, Degradation, Degraded, Dropped, Health, HookCoverage, LaneSnapshot, Snapshot},
};
use crate::{
    account::{
        exemplar::Exemplars,
        snapshot::{REASONS, unix_seconds},
    },
    model::signal::Signal,
};

/// Names one destination and signal in the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId(u64);

/// What is done before each look at the counters.
type BeforeLook = Box<dyn Fn(&Account) + Send + Sync>;

/// Told of each request: its lane's destination and signal, and how long it took.
type OnRequest = Box<dyn Fn(&str, Signal, Duration) + Send + Sync>;

/// The counters, shared by the whole program.
pub struct Account {
    state: Mutex<State>,
    started: SystemTime,
    /// Resets with a trace, for the metrics.
    pub exemplars: Exemplars,
    /// Called before each look, so that nothing need be told while nobody looks.
    before_look: OnceLock<BeforeLook>,
    on_request: Mutex<Vec<OnRequest>>,
}

struct State {
    /// By [`counter_index`], as the kernel counted them.
    kernel: Vec<u64>,
    /// Dropped by the rules in the kernel.
    kernel_filtered: u64,
    /// Lost in the kernel, by reason.
    kernel_dropped: Dropped,
    /// Read from the ring buffer.
    read: u64,
    filtered: u64,
    sampled_out: u64,
    /// Lost in the pipeline before any lane, by reason.
    pipeline_dropped: Dropped,
    lanes: Vec<Lane>,
    next_lane: u64,
    hooks: Vec<HookCoverage>,
    /// What the process has given up, and what it could not.
    hardening: Vec<(&'static str, bool)>,
    /// The pipeline has given a sign of life.
    beats: bool,
    /// Since when it is asked for another.
    asked: Option<Instant>,
}

struct Lane {
    id: LaneId,
    destination: Arc<str>,
    signal: Signal,
    in_use: bool,
    /// Read, and neither filtered, sampled out, dropped nor given to this lane.
    in_pipeline: u64,
    recovered: u64,
    waiting: u64,
    in_flight: u64,
    exported: u64,
    dropped: Dropped,
    health: Health,
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

impl Account {
    /// An empty account.
    pub fn new() -> Self {
        let state = State {
            kernel: vec![0; COUNTERS as usize],
            kernel_filtered: 0,
            kernel_dropped: [0; REASONS],
            read: 0,
            filtered: 0,
            sampled_out: 0,
            pipeline_dropped: [0; REASONS],
            lanes: Vec::new(),
            next_lane: 0,
            hooks: Vec::new(),
            hardening: Vec::new(),
            beats: false,
            asked: None,
        };
        Self {
            state: Mutex::new(state),
            started: SystemTime::now(),
            exemplars: Exemplars::default(),
            before_look: OnceLock::new(),
            on_request: Mutex::default(),
        }
    }

    /// Takes over the kernel's counters: totals since the probes were attached, the resets by [`counter_index`] and
    /// what its rules dropped and what was lost in it by reason. All must be read in one go, the resets last.
    pub fn kernel_counted(&self, resets: &[u64; COUNTERS as usize], filtered: u64, lost: &[(DropReason, u64)]) {
        let mut state = self.lock();
        state.kernel.copy_from_slice(resets);
        state.kernel_filtered = filtered;
        for (reason, count) in lost {
            state.kernel_dropped[*reason as usize] = *count;
        }
    }

    /// Takes over what the kernel passed over, by hook: all since the probes were attached, once for each program.
    pub fn kernel_passed_over(&self, runs: &[(&'static str, u64)]) {
        for hook in &mut self.lock().hooks {
            hook.passed_over = runs.iter().filter(|(name, _)| *name == hook.hook).map(|(_, runs)| runs).sum();
        }
    }

    /// Records read from the ring buffer enter the pipeline.
    pub fn read(&self, resets: u64) {
        let mut state = self.lock();
        state.read += resets;
        state.lanes.iter_mut().for_each(|lane| lane.in_pipeline += resets);
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

    /// Resets of the pipeline were lost before any destination.
    pub fn dropped_in_pipeline(&self, reason: DropReason, resets: u64) {
        let mut state = self.lock();
        state.pipeline_dropped[reason as usize] += resets;
        state.leave_pipeline(resets);
    }

    /// Records read from the ring buffer that nobody is to hear of.
    pub fn read_and_dropped(&self, reason: DropReason, resets: u64) {
        self.read(resets);
        self.dropped_in_pipeline(reason, resets);
    }

    /// Gives up every reset that has not come to a queue: the reader does not end.
    pub fn drop_unfinished(&self, reason: DropReason) {
        let in_ring_buffer = self.snapshot().in_ring_buffer;
        let mut state = self.lock();
        state.read += in_ring_buffer;
        for lane in &mut state.lanes {
            lane.dropped[reason as usize] += std::mem::take(&mut lane.in_pipeline) + in_ring_buffer;
        }
    }

    /// Sets what is done before each look at the counters: the kernel's are read, the pipeline is asked for a sign of
    /// life. The first one set stays.
    pub fn before_look(&self, action: impl Fn(&Self) + Send + Sync + 'static) {
        if self.before_look.set(Box::new(action)).is_err() {
            tracing::debug!("the account is looked after already");
        }
    }

    /// Has it told of each request, for as long as the account lives.
    pub(crate) fn on_request(&self, told: impl Fn(&str, Signal, Duration) + Send + Sync + 'static) {
        self.on_request.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(told));
    }

    /// The pipeline is asked for a sign of life.
    pub fn ask_for_beat(&self) {
        self.lock().asked.get_or_insert_with(Instant::now);
    }

    /// The pipeline is alive: called by its loop each time that it turns.
    pub fn beat(&self) {
        let mut state = self.lock();
        state.beats = true;
        state.asked = None;
    }

    /// What the hooks see.
    pub fn set_hooks(&self, hooks: Vec<HookCoverage>) {
        self.lock().hooks = hooks;
    }

    /// What the process has given up.
    pub fn set_hardening(&self, steps: Vec<(&'static str, bool)>) {
        self.lock().hardening = steps;
    }

    /// The lane of a destination and signal, and the name that it goes by: the destination's, with a number behind it
    /// where that is in use. One that was released is opened again with its counters (a reload).
    pub(crate) fn open_lane(&self, destination: &str, signal: Signal) -> (LaneId, Arc<str>) {
        let mut state = self.lock();
        let mut name: Arc<str> = destination.into();
        let mut number = 1;
        while let Some(lane) = state.lanes.iter_mut().find(|lane| lane.destination == name && lane.signal == signal) {
            if !lane.in_use {
                lane.in_use = true;
                return (lane.id, name);
            }
            number += 1;
            name = lane_name(destination, number).into();
        }
        let id = LaneId(state.next_lane);
        state.next_lane += 1;
        let lane = state.new_lane(id, name.clone(), signal);
        state.lanes.push(lane);
        (id, name)
    }

    /// The lane's exporter is gone; its counters stay.
    pub(crate) fn release_lane(&self, id: LaneId) {
        self.with(id, |lane| lane.in_use = false);
    }

    /// Forgets the lanes that no exporter uses: after a reload that took destinations away. Their counters go too.
    pub fn forget_unused_lanes(&self) {
        self.lock().lanes.retain(|lane| lane.in_use);
    }

    /// Everything, at one instant.
    pub fn snapshot(&self) -> Snapshot {
        if let Some(action) = self.before_look.get() {
            action(self);
        }
        let state = self.lock();
        let ended_in_kernel = state.kernel_dropped.iter().sum::<u64>() + state.kernel_filtered;
        // A record may be read before the kernel's counters are read again: never fewer than were seen.
        let captured = state.kernel.iter().sum::<u64>().max(state.read + ended_in_kernel);
        let in_ring_buffer = captured - state.read - ended_in_kernel;
        let mut dropped_before_lanes = state.kernel_dropped;
        add(&mut dropped_before_lanes, &state.pipeline_dropped);
        Snapshot {
            captured,
            resets: state.resets(),
            filtered: state.filtered + state.kernel_filtered,
            sampled_out: state.sampled_out,
            dropped_before_lanes,
            in_ring_buffer,
            lanes: state.lanes.iter().map(|lane| lane.snapshot(in_ring_buffer, &dropped_before_lanes)).collect(),
            hooks: state.hooks.clone(),
            hardening: state.hardening.clone(),
            since_beat: state.beats.then(|| state.asked.map_or(Duration::ZERO, |asked| asked.elapsed())),
            started_unix_s: unix_seconds(self.started),
        }
    }

    /// Resets that were read and have not come to a lane's queue.
    pub(crate) fn in_pipeline(&self, id: LaneId) -> u64 {
        self.lock().lanes.iter().find(|lane| lane.id == id).map_or(0, |lane| lane.in_pipeline)
    }

    /// Resets go from the pipeline into a lane's queue.
    pub(crate) fn enqueued(&self, id: LaneId, resets: u64) {
        self.with(id, |lane| {
            lane.in_pipeline = lane.in_pipeline.saturating_sub(resets);
            lane.waiting += resets;
        });
    }

    /// Resets of the pipeline need no request of this lane: their events went out with an application's own spans.
    pub(crate) fn delivered_elsewhere(&self, id: LaneId, resets: u64) {
        self.with(id, |lane| {
            lane.in_pipeline = lane.in_pipeline.saturating_sub(resets);
            lane.exported += resets;
        });
    }

    /// Storage held resets of an earlier run: those found wait, those lost there are named. What this run itself had left
    /// there (a reload) is counted already.
    pub(crate) fn recovered(&self, id: LaneId, found: u64, lost: &[(DropReason, u64)]) {
        self.with(id, |lane| {
            let ours = lane.waiting;
            lane.waiting = found;
            lane.recovered += found;
            for (reason, count) in lost {
                lane.dropped[*reason as usize] += count;
                lane.recovered += count;
            }
            lane.recovered = lane.recovered.saturating_sub(ours);
        });
    }

    /// Waiting resets go into a request.
    pub(crate) fn taken(&self, id: LaneId, resets: u64) {
        self.with(id, |lane| {
            lane.waiting = lane.waiting.saturating_sub(resets);
            lane.in_flight += resets;
        });
    }

    /// Resets in a request go back to wait: it was given up at the end of the program.
    pub(crate) fn put_back(&self, id: LaneId, resets: u64) {
        self.with(id, |lane| {
            lane.in_flight = lane.in_flight.saturating_sub(resets);
            lane.waiting += resets;
        });
    }

    /// A request was accepted, all but `rejected` of it.
    pub(crate) fn exported(&self, id: LaneId, resets: u64, rejected: u64) {
        self.with(id, |lane| {
            let rejected = rejected.min(resets);
            lane.in_flight = lane.in_flight.saturating_sub(resets);
            lane.exported += resets - rejected;
            lane.dropped[DropReason::PartialSuccessRejected as usize] += rejected;
            lane.health.last_success_unix_s = Some(unix_seconds(SystemTime::now()));
        });
    }

    /// A request was given up.
    pub(crate) fn dropped_in_flight(&self, id: LaneId, reason: DropReason, resets: u64) {
        self.with(id, |lane| {
            lane.in_flight = lane.in_flight.saturating_sub(resets);
            lane.dropped[reason as usize] += resets;
        });
    }

    /// Waiting resets were lost.
    pub(crate) fn dropped_waiting(&self, id: LaneId, reason: DropReason, resets: u64) {
        self.with(id, |lane| {
            lane.waiting = lane.waiting.saturating_sub(resets);
            lane.dropped[reason as usize] += resets;
        });
    }

    /// A request has ended, whatever came of it.
    pub(crate) fn request_took(&self, id: LaneId, duration: Duration) {
        let mut lane = None;
        self.with(id, |of| {
            of.health.request_took(duration);
            lane = Some((Arc::clone(&of.destination), of.signal));
        });
        let Some((destination, signal)) = lane else { return };
        for told in &*self.on_request.lock().unwrap_or_else(PoisonError::into_inner) {
            told(&destination, signal, duration);
        }
    }

    /// Changes what is known of a lane's health.
    pub(crate) fn health(&self, id: LaneId, change: impl FnOnce(&mut Health)) {
        self.with(id, |lane| change(&mut lane.health));
    }

    fn with(&self, id: LaneId, change: impl FnOnce(&mut Lane)) {
        if let Some(lane) = self.lock().lanes.iter_mut().find(|lane| lane.id == id) {
            change(lane);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_lane(&self, id: LaneId, destination: Arc<str>, signal: Signal) -> Lane {
        let early = self.filtered + self.sampled_out + self.pipeline_dropped.iter().sum::<u64>();
        // What other lanes hold in the pipeline will come to this one as well.
        let in_pipeline = self.lanes.iter().map(|lane| lane.in_pipeline).max().unwrap_or(0);
        let mut dropped = [0; REASONS];
        dropped[DropReason::DestinationAddedLater as usize] = self.read.saturating_sub(early + in_pipeline);
        Lane {
            id,
            destination,
            signal,
            in_use: true,
            in_pipeline,
            recovered: 0,
            waiting: 0,
            in_flight: 0,
            exported: 0,
            dropped,
            health: Health::default(),
        }
    }

    fn leave_pipeline(&mut self, resets: u64) {
        for lane in &mut self.lanes {
            lane.in_pipeline = lane.in_pipeline.saturating_sub(resets);
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

impl Lane {
    fn snapshot(&self, in_ring_buffer: u64, dropped_before_lanes: &Dropped) -> LaneSnapshot {
        let mut dropped = self.dropped;
        add(&mut dropped, dropped_before_lanes);
        LaneSnapshot {
            destination: self.destination.clone(),
            signal: self.signal,
            recovered: self.recovered,
            exported: self.exported,
            dropped,
            queued: in_ring_buffer + self.in_pipeline + self.waiting + self.in_flight,
            waiting: self.waiting,
            in_flight: self.in_flight,
            health: self.health.clone(),
        }
    }
}

/// The name of the nth destination with this endpoint, from 1.
pub(crate) fn lane_name(destination: &str, number: usize) -> String {
    if number == 1 { destination.to_owned() } else { format!("{destination}#{number}") }
}

fn add(sum: &mut Dropped, more: &Dropped) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

#[cfg(test)]
mod tests;
