//! The way of a reset through the collector, stage by stage: decode → enrich → correlate → filter → sample → tell → console and
//! batches. The time is an argument; only the console and the exporters' queues are outside.
//!
//! Does not read the kernel ([`crate::pipeline::reader`]) nor send anything ([`crate::export`]).

pub mod own_rejects;
pub mod reader;
pub mod retraction;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    account::{Account, DropReason},
    config::settings::Capture,
    correlate::Correlator,
    enrich::Enricher,
    event::{EventBuilder, ResetEvent},
    export::{
        Exporter,
        console::{Console, Reader},
        line_writer::LineWriter,
    },
    filter::Filters,
    kernel::clock::Now,
    kernel::credentials::{OwnerResolver, Walk},
    model::{Decoder, Reset, read_record},
    otlp::batch::{Batch, Batcher},
    pipeline::{own_rejects::OwnRejects, retraction::TentativeReceives},
    pushdown,
    sampler::{SampleDecision, Sampler, Summary},
};

/// How often to look whether a reset that waits for its span has it.
const LOOK_FOR_TRACES: Duration = Duration::from_millis(100);

/// One destination: what is put together for it, and what sends that.
pub struct Output {
    batcher: Batcher,
    exporter: Exporter,
    /// Resets with nothing to send: their events stand on the application's own spans, and logs are off.
    elsewhere: u32,
}

impl Output {
    /// What is put together by the one is sent by the other.
    pub fn new(batcher: Batcher, exporter: Exporter) -> Self {
        Self { batcher, exporter, elsewhere: 0 }
    }

    /// Whether spans go here.
    pub const fn takes_traces(&self) -> bool {
        self.batcher.signals().traces
    }

    fn take(&mut self, event: &ResetEvent<'_>, now: Instant) {
        if !self.batcher.push(event, now) {
            self.elsewhere += 1;
        }
    }

    /// Gives the exporter what is due: with storage everything, so that a kill loses little.
    fn push_due(&mut self, now: Instant) {
        if self.exporter.is_stored() {
            return self.push_all();
        }
        self.push_elsewhere();
        while let Some(batch) = self.batcher.take_due(now) {
            self.exporter.push(&batch);
        }
    }

    fn push_elsewhere(&mut self) {
        self.exporter.push(&Batch { resets: std::mem::take(&mut self.elsewhere), logs: None, traces: None });
    }

    fn push_all(&mut self) {
        self.push_elsewhere();
        while let Some(batch) = self.batcher.take() {
            self.exporter.push(&batch);
        }
    }
}

/// The stages, and what waits between them.
pub struct Pipeline {
    tentative: TentativeReceives,
    own_rejects: OwnRejects,
    stages: Stages,
    tally: Tally,
    /// Of samplers before this one.
    earlier_overflow: u64,
}

/// What the pipeline is made of, each stage made by its own module.
pub struct Stages {
    /// Makes records into resets.
    pub decoder: Decoder,
    /// Names owners that the kernel did not know.
    pub owners: OwnerResolver,
    /// Finds their workloads.
    pub enricher: Enricher,
    /// Finds their traces.
    pub correlator: Arc<Correlator>,
    /// Which resets are captured: the kernel's first rules, where it has them.
    pub capture: Capture,
    /// Drops what is not wanted.
    pub filters: Filters,
    /// Chooses among the rest.
    pub sampler: Sampler,
    /// Puts them into words.
    pub builder: EventBuilder,
    /// Renders their lines.
    pub console: Console,
    /// Writes these.
    pub stdout: LineWriter,
    /// Sends them.
    pub outputs: Vec<Output>,
    /// Counts them.
    pub account: Arc<Account>,
    /// How many resets found no bucket of their own in the sampler.
    pub sampling_overflow: Arc<AtomicU64>,
    /// Resets are shown with what each would meet, and go nowhere.
    pub dry_run: bool,
}

/// Outcomes that the ledger does not have yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    read: u64,
    filtered: u64,
    sampled_out: u64,
    undecodable: u64,
}

impl Pipeline {
    /// An empty pipeline of these stages.
    pub fn new(stages: Stages) -> Self {
        Self {
            tentative: TentativeReceives::default(),
            own_rejects: OwnRejects::default(),
            stages,
            tally: Tally::default(),
            earlier_overflow: 0,
        }
    }

    /// Takes one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], now: Now) {
        let decoded = read_record(bytes)
            .and_then(|record| Ok((record, self.stages.decoder.decode(&record, now.clock, now.unix_ns)?)));
        match decoded {
            Ok((record, mut reset)) => {
                self.own_rejects.observe(&mut reset);
                if let Some(reset) = self.tentative.admit(&record, reset, now.instant) {
                    self.name(reset, now);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a record of the ring buffer is none of ours");
                self.tally.read += 1;
                self.tally.undecodable += 1;
            }
        }
    }

    /// Does what is due: resets that waited, batches, lines. Call it when no more records wait, and at each deadline.
    pub fn tick(&mut self, now: Now) {
        while let Some(reset) = self.tentative.take_due(now.instant) {
            self.name(reset, now);
        }
        for reset in self.stages.correlator.take_ready(now.instant) {
            self.decide(reset, now);
        }
        for summary in self.stages.sampler.due_summaries(now.steady_ns()) {
            self.tell_summary(&summary, now.instant);
        }
        self.settle();
        for output in &mut self.stages.outputs {
            output.push_due(now.instant);
            output.exporter.note_unstored(self.tentative.held() + self.stages.owners.held());
        }
        // After the batches: what stands on the terminal is in the storage.
        self.flush_console();
    }

    /// The walk through the kernel's tasks that waiting resets need now; then [`Self::on_walked`] is due.
    pub fn wants_walk(&self, now: Now) -> Option<Walk> {
        self.stages.owners.wants_walk(now.instant)
    }

    /// A walk that began at `began` is done.
    pub fn on_walked(&mut self, began: Instant, now: Now) {
        for reset in self.stages.owners.on_walked(began, now) {
            self.identify(reset, now);
        }
    }

    /// When [`Self::tick`] is next due; `None` while nothing waits.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let batches = self.stages.outputs.iter().filter_map(|output| output.batcher.next_deadline()).min();
        // A span that comes ends a reset's wait before its deadline: look again soon while one waits.
        let traces = self.stages.correlator.next_deadline(now).map(|deadline| deadline.min(now + LOOK_FOR_TRACES));
        [self.tentative.next_deadline(), self.stages.owners.next_walk(now), batches, traces].into_iter().flatten().min()
    }

    /// Records a heartbeat.
    pub fn beat(&self) {
        self.stages.account.heartbeat.beat();
    }

    /// Takes other rules; what has been decided stays.
    pub fn reconfigure(&mut self, capture: Capture, filters: Filters, sampler: Sampler, now: Now) {
        for summary in self.stages.sampler.drain() {
            self.tell_summary(&summary, now.instant);
        }
        self.stages.capture = capture;
        self.stages.filters = filters;
        self.earlier_overflow += self.stages.sampler.overflowed();
        self.stages.sampler = sampler;
    }

    /// Sends on everything that waits, due or not, and gives the exporters back to be shut down.
    pub fn finish(mut self, now: Now) -> Vec<Exporter> {
        while let Some(reset) = self.tentative.take() {
            self.name(reset, now);
        }
        for reset in self.stages.owners.take(now) {
            self.identify(reset, now);
        }
        for reset in self.stages.correlator.drain() {
            self.decide(reset, now);
        }
        for summary in self.stages.sampler.drain() {
            self.tell_summary(&summary, now.instant);
        }
        self.settle();
        self.stages.outputs.iter_mut().for_each(Output::push_all);
        self.flush_console();
        self.stages.outputs.into_iter().map(|output| output.exporter).collect()
    }

    /// The wait for an owner that the kernel did not know.
    fn name(&mut self, reset: Reset, now: Now) {
        if let Some(reset) = self.stages.owners.submit(reset) {
            self.identify(reset, now);
        }
    }

    /// Resource, and the wait for its trace.
    fn identify(&mut self, mut reset: Reset, now: Now) {
        self.tally.read += 1;
        self.stages.enricher.enrich(&mut reset, now.instant);
        self.stages.correlator.submit(reset, now.instant);
    }

    /// Rules, and out.
    fn decide(&mut self, mut reset: Reset, now: Now) {
        if !pushdown::captured(&self.stages.capture, &reset) {
            self.tally.filtered += 1;
            self.print_dry_run_outcome(&reset, &"not captured, by the switches under capture");
            return;
        }
        let decision = self.stages.filters.decide(&reset);
        if !decision.keep {
            self.tally.filtered += 1;
            self.print_dry_run_outcome(&reset, &decision);
            return;
        }
        let verdict = self.stages.sampler.decide(&mut reset, now.steady_ns());
        if self.stages.dry_run {
            self.print_dry_run_outcome(&reset, &format_args!("{decision}, {verdict}"));
            return;
        }
        match verdict {
            SampleDecision::Keep { .. } => {
                let event = self.stages.builder.build(&reset);
                self.stages.account.exemplars.keep(&reset, &event.contexts);
                if hand_over(&event, &mut self.stages.console, &mut self.stages.outputs, now.instant) {
                    self.print();
                }
            }
            SampleDecision::SampledOut { .. } => self.tally.sampled_out += 1,
            // Still queued: the sampler keeps it for its summary.
            SampleDecision::Held { .. } => {}
        }
    }

    fn tell_summary(&mut self, summary: &Summary, now: Instant) {
        let event = self.stages.builder.build(&summary.reset);
        let message = format!("{} ({})", summary.sentence(), event.message);
        let event = ResetEvent { message: &message, ..event };
        if hand_over(&event, &mut self.stages.console, &mut self.stages.outputs, now) {
            self.print();
        }
    }

    /// In a dry run: what a reset meets.
    fn print_dry_run_outcome(&mut self, reset: &Reset, outcome: &dyn std::fmt::Display) {
        if self.stages.dry_run {
            let event = self.stages.builder.build(reset);
            self.stages.stdout.push(format!("{outcome}: {}\n", event.message).as_bytes());
        }
    }

    /// Gives the decisions to the ledger, before the batches go on.
    fn settle(&mut self) {
        let overflowed = self.earlier_overflow + self.stages.sampler.overflowed();
        self.stages.sampling_overflow.store(overflowed, Ordering::Relaxed);
        let tally = std::mem::take(&mut self.tally);
        if tally == Tally::default() {
            return;
        }
        self.stages.account.ledger.add_captured(tally.read);
        self.stages.account.ledger.filtered(tally.filtered);
        self.stages.account.ledger.sampled_out(tally.sampled_out);
        self.stages.account.ledger.dropped_in_pipeline(DropReason::InvalidRecord, tally.undecodable);
    }

    /// Lines before the end of a round: what they tell of goes to the storages first.
    fn print(&mut self) {
        self.settle();
        self.stages.outputs.iter_mut().filter(|output| output.exporter.is_stored()).for_each(Output::push_all);
        self.flush_console();
    }

    fn flush_console(&mut self) {
        if !self.stages.console.is_on() {
            return;
        }
        match self.stages.console.flush(&mut self.stages.stdout) {
            Ok(Reader::There) => {}
            Ok(Reader::Gone) => tracing::info!(event = "stdout_closed", "standard output is closed, printing stops"),
            Err(error) => tracing::warn!(event = "stdout_failed", %error, "cannot write to standard output"),
        }
    }
}

/// One reset to the terminal and to every destination. `true`: the terminal's lines are to be written.
fn hand_over(event: &ResetEvent<'_>, console: &mut Console, outputs: &mut [Output], now: Instant) -> bool {
    outputs.iter_mut().for_each(|output| output.take(event, now));
    console.add(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        filter::tests::plain_reset,
        model::Clock,
        sampler::{Rate, RateLimit, Sampling},
    };

    /// `monotonic_ns` after the start, with the wall clock so far off.
    fn now(monotonic_ns: u64, step: i64) -> Now {
        const UNIX_NS: u64 = 1_800_000_000_000_000_000;
        let unix_ns = (UNIX_NS + monotonic_ns).saturating_add_signed(step);
        let offset = UNIX_NS.cast_signed() + step;
        let clock = Clock { tai_offset_ns: 0, monotonic_offset_ns: offset, boot_offset_ns: offset };
        Now { instant: Instant::now(), unix_ns, clock }
    }

    #[test]
    fn a_stepped_wall_clock_leaves_the_limits_alone() {
        const HOUR: i64 = 3_600_000_000_000;
        for step in [-HOUR, HOUR] {
            let limit = RateLimit { per_second: 1.0, burst: 1.0, group_by: Vec::new() };
            let mut sampler = Sampler::new(Sampling::new(Rate::PerSecond(limit), Vec::new()));
            let mut judge = |now: Now| sampler.decide(&mut plain_reset(), now.steady_ns());
            assert!(matches!(judge(now(0, 0)), SampleDecision::Keep { .. }), "the burst");
            assert!(matches!(judge(now(1_000_000, step)), SampleDecision::Held { .. }), "a step fills no bucket");
            assert!(
                matches!(judge(now(2_000_000_000, step)), SampleDecision::Keep { .. }),
                "nor does it stop its filling"
            );
            assert_eq!(sampler.due_summaries(now(20_000_000_000, step).steady_ns()).len(), 1);
        }
    }
}
