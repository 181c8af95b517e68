//! The way of a reset through the collector, stage by stage: decode → enrich → correlate → filter → sample → tell → console and
//! batches. The time is an argument; only the console and the exporters' queues are outside.
//!
//! Does not read the kernel ([`crate::pipeline::reader`]) nor send anything ([`crate::export`]).

pub mod doubt;
pub mod owners;
pub mod reader;

use std::{
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    account::{Account, DropReason},
    config::settings::Capture,
    correlate::Correlator,
    encode::batch::{Batch, Batcher},
    enrich::Enricher,
    export::Exporter,
    filter::Filters,
    pipeline::{doubt::Doubts, owners::Owners},
    pushdown,
    reset::{Clock, Decoder, Reset, read_record},
    sampler::{Sampler, Summary, Verdict},
    told::{
        Teller, Told,
        console::{Console, Reader},
    },
};

/// How often to look whether a reset that waits for its span has it.
const LOOK_FOR_TRACES: Duration = Duration::from_millis(100);

/// Now, by the two clocks that are asked.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// By the wall clock, ns since 1970.
    pub unix_ns: u64,
    /// How the kernel's clocks stand to the wall clock.
    pub clock: Clock,
}

/// One destination: what is put together for it, and what sends that.
pub struct Output {
    /// Puts records together.
    pub batcher: Batcher,
    /// Sends them.
    pub exporter: Exporter,
}

/// The stages, and what waits between them.
pub struct Pipeline {
    doubts: Doubts,
    stages: Stages,
    tally: Tally,
}

/// What the pipeline is made of, each stage made by its own module.
pub struct Stages {
    /// Makes records into resets.
    pub decoder: Decoder,
    /// Names owners that the kernel did not know.
    pub owners: Owners,
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
    pub teller: Teller,
    /// Shows them.
    pub console: Console,
    /// Sends them.
    pub outputs: Vec<Output>,
    /// Counts them.
    pub account: Arc<Account>,
    /// Resets are shown with what each would meet, and go nowhere.
    pub dry_run: bool,
}

/// Fates decided since the account was last told.
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
        Self { doubts: Doubts::default(), stages, tally: Tally::default() }
    }

    /// Takes one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], now: Now) {
        let decoded = read_record(bytes)
            .and_then(|record| Ok((record, self.stages.decoder.decode(&record, now.clock, now.unix_ns)?)));
        match decoded {
            Ok((record, reset)) => {
                if let Some(reset) = self.doubts.admit(&record, reset, now.instant) {
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
        while let Some(reset) = self.doubts.take_due(now.instant) {
            self.name(reset, now);
        }
        for reset in self.stages.correlator.take_ready(now.instant) {
            self.decide(reset, now);
        }
        for summary in self.stages.sampler.due_summaries(now.unix_ns) {
            self.tell_summary(&summary, now.instant);
        }
        self.settle();
        for output in &mut self.stages.outputs {
            while let Some(batch) = output.batcher.take_due(now.instant) {
                output.exporter.push(&batch);
            }
        }
        self.flush_console();
    }

    /// Whether resets wait until all tasks have been looked at: then [`Self::tasks_were_looked_at`] is to be called.
    pub fn wants_tasks(&self, now: Now) -> bool {
        self.stages.owners.want_look(now.instant)
    }

    /// The kernel's map of processes is as the tasks are now.
    pub fn tasks_were_looked_at(&mut self, now: Now) {
        for reset in self.stages.owners.looked(now) {
            self.identify(reset, now);
        }
    }

    /// When [`Self::tick`] is next due; `None` while nothing waits.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let batches = self.stages.outputs.iter().filter_map(|output| output.batcher.next_deadline()).min();
        // A span that comes ends a reset's wait before its deadline: look again soon while one waits.
        let traces = self.stages.correlator.next_deadline(now).map(|deadline| deadline.min(now + LOOK_FOR_TRACES));
        [self.doubts.next_deadline(), self.stages.owners.next_look(now), batches, traces].into_iter().flatten().min()
    }

    /// Gives a sign of life.
    pub fn beat(&self) {
        self.stages.account.beat();
    }

    /// Takes other rules; what has been decided stays.
    pub fn reconfigure(&mut self, capture: Capture, filters: Filters, sampler: Sampler, now: Now) {
        for summary in self.stages.sampler.drain() {
            self.tell_summary(&summary, now.instant);
        }
        self.stages.capture = capture;
        self.stages.filters = filters;
        self.stages.sampler = sampler;
    }

    /// Sends on everything that waits, due or not, and gives the exporters back to be shut down.
    pub fn finish(mut self, now: Now) -> Vec<Exporter> {
        while let Some(reset) = self.doubts.take() {
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
        for output in &mut self.stages.outputs {
            while let Some(batch) = output.batcher.take() {
                output.exporter.push(&batch);
            }
        }
        self.flush_console();
        self.stages.outputs.into_iter().map(|output| output.exporter).collect()
    }

    /// The wait for an owner that the kernel did not know.
    fn name(&mut self, reset: Reset, now: Now) {
        if let Some(reset) = self.stages.owners.admit(reset) {
            self.identify(reset, now);
        }
    }

    /// Workload, and the wait for its trace.
    fn identify(&mut self, mut reset: Reset, now: Now) {
        self.tally.read += 1;
        self.stages.enricher.enrich(&mut reset, now.instant);
        self.stages.correlator.offer(reset, now.instant);
    }

    /// Rules, and out.
    fn decide(&mut self, mut reset: Reset, now: Now) {
        if !pushdown::captured(&self.stages.capture, &reset) {
            self.tally.filtered += 1;
            self.show_fate(&reset, &"not captured, by the switches under capture");
            return;
        }
        let decision = self.stages.filters.decide(&reset);
        if !decision.keep {
            self.tally.filtered += 1;
            self.show_fate(&reset, &decision);
            return;
        }
        let verdict = self.stages.sampler.judge(&mut reset, now.unix_ns);
        if self.stages.dry_run {
            self.show_fate(&reset, &format_args!("{decision}, {verdict}"));
            return;
        }
        match verdict {
            Verdict::Keep { .. } => {
                let told = self.stages.teller.tell(&reset);
                hand_over(&told, &mut self.stages.console, &mut self.stages.outputs, now.instant);
            }
            Verdict::SampledOut { .. } => self.tally.sampled_out += 1,
            // Still queued: the sampler keeps it for its summary.
            Verdict::Held { .. } => {}
        }
    }

    fn tell_summary(&mut self, summary: &Summary, now: Instant) {
        let told = self.stages.teller.tell(&summary.reset);
        let sentence = format!("{} ({})", summary.sentence(), told.sentence);
        hand_over(&Told { sentence: &sentence, ..told }, &mut self.stages.console, &mut self.stages.outputs, now);
    }

    /// In a dry run: what a reset meets.
    fn show_fate(&mut self, reset: &Reset, fate: &dyn std::fmt::Display) {
        if self.stages.dry_run {
            let told = self.stages.teller.tell(reset);
            if let Err(error) = writeln!(io::stdout().lock(), "{fate}: {}", told.sentence) {
                tracing::debug!(%error, "cannot write to standard output");
            }
        }
    }

    /// Tells the account what was decided; before the batches go on, so that they have been read by then.
    fn settle(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        if tally == Tally::default() {
            return;
        }
        self.stages.account.read(tally.read);
        self.stages.account.filtered(tally.filtered);
        self.stages.account.sampled_out(tally.sampled_out);
        self.stages.account.dropped_in_pipeline(DropReason::Undecodable, tally.undecodable);
    }

    fn flush_console(&mut self) {
        if !self.stages.console.is_on() {
            return;
        }
        match self.stages.console.flush(&mut io::stdout().lock()) {
            Ok(Reader::There) => {}
            Ok(Reader::Gone) => tracing::info!("the reader of standard output has gone: no more lines"),
            Err(error) => tracing::warn!(%error, "cannot write to standard output"),
        }
    }
}

/// One reset to the terminal and to every destination.
fn hand_over(told: &Told<'_>, console: &mut Console, outputs: &mut [Output], now: Instant) {
    if let Err(error) = console.push(told, &mut io::stdout().lock()) {
        tracing::warn!(%error, "cannot write to standard output");
    }
    for output in outputs {
        if !output.batcher.push(told, now) {
            // Nothing to send: its event stands on the application's own span, and logs are off.
            output.exporter.push(&Batch { resets: 1, logs: None, traces: None });
        }
    }
}
