//! The way of a reset through the collector, stage by stage: decode → enrich → filter → sample → tell → console and
//! batches. The time is an argument; only the console and the exporters' queues are outside.
//!
//! Does not read the kernel ([`crate::reader`]) nor send anything ([`crate::export`]).

use std::{
    io::{self, Write},
    sync::Arc,
    time::Instant,
};

use crate::{
    account::{Account, DropReason},
    batch::{Batch, Batcher},
    console::{Console, Reader},
    doubt::Doubts,
    enrich::Enricher,
    export::Exporter,
    filter::Filters,
    reset::{Clock, Decoder, Reset, read_record},
    sampler::{Sampler, Summary, Verdict},
    told::{Teller, Told},
};

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
    decoder: Decoder,
    doubts: Doubts,
    enricher: Enricher,
    filters: Filters,
    sampler: Sampler,
    teller: Teller,
    console: Console,
    outputs: Vec<Output>,
    account: Arc<Account>,
    tally: Tally,
    dry_run: bool,
}

/// Fates decided since the account was last told.
#[derive(Debug, Default)]
struct Tally {
    read: u64,
    filtered: u64,
    sampled_out: u64,
    undecodable: u64,
}

impl Pipeline {
    /// A pipeline of these stages. `dry_run`: resets are shown with what each would meet, and go nowhere.
    #[allow(clippy::too_many_arguments, reason = "one for each stage, each made by its own module")]
    pub fn new(
        decoder: Decoder,
        enricher: Enricher,
        filters: Filters,
        sampler: Sampler,
        teller: Teller,
        console: Console,
        outputs: Vec<Output>,
        account: Arc<Account>,
        dry_run: bool,
    ) -> Self {
        Self {
            decoder,
            doubts: Doubts::default(),
            enricher,
            filters,
            sampler,
            teller,
            console,
            outputs,
            account,
            tally: Tally::default(),
            dry_run,
        }
    }

    /// Takes one record of the ring buffer.
    pub fn take(&mut self, bytes: &[u8], now: Now) {
        let decoded =
            read_record(bytes).and_then(|record| Ok((record, self.decoder.decode(&record, now.clock, now.unix_ns)?)));
        match decoded {
            Ok((record, reset)) => {
                if let Some(reset) = self.doubts.admit(&record, reset, now.instant) {
                    self.decide(reset, now);
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
            self.decide(reset, now);
        }
        for summary in self.sampler.due_summaries(now.unix_ns) {
            self.tell_summary(&summary, now.instant);
        }
        self.settle();
        for output in &mut self.outputs {
            while let Some(batch) = output.batcher.take_due(now.instant) {
                output.exporter.push(&batch);
            }
        }
        self.flush_console();
    }

    /// When [`Self::tick`] is next due; `None` while nothing waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        let batches = self.outputs.iter().filter_map(|output| output.batcher.next_deadline()).min();
        [self.doubts.next_deadline(), batches].into_iter().flatten().min()
    }

    /// Takes other rules; what has been decided stays.
    pub fn reconfigure(&mut self, filters: Filters, sampler: Sampler, now: Now) {
        for summary in self.sampler.drain() {
            self.tell_summary(&summary, now.instant);
        }
        self.filters = filters;
        self.sampler = sampler;
    }

    /// Sends on everything that waits, due or not, and gives the exporters back to be shut down.
    pub fn finish(mut self, now: Now) -> Vec<Exporter> {
        while let Some(reset) = self.doubts.take() {
            self.decide(reset, now);
        }
        for summary in self.sampler.drain() {
            self.tell_summary(&summary, now.instant);
        }
        self.settle();
        for output in &mut self.outputs {
            while let Some(batch) = output.batcher.take() {
                output.exporter.push(&batch);
            }
        }
        self.flush_console();
        self.outputs.into_iter().map(|output| output.exporter).collect()
    }

    /// Owner, rules, and out.
    fn decide(&mut self, mut reset: Reset, now: Now) {
        self.tally.read += 1;
        self.enricher.enrich(&mut reset, now.instant);
        let decision = self.filters.decide(&reset);
        if !decision.keep {
            self.tally.filtered += 1;
            self.show_fate(&reset, &decision);
            return;
        }
        let verdict = self.sampler.judge(&mut reset, now.unix_ns);
        if self.dry_run {
            self.show_fate(&reset, &format_args!("{decision}, {verdict}"));
            return;
        }
        match verdict {
            Verdict::Keep { .. } => {
                let told = self.teller.tell(&reset);
                hand_over(&told, &mut self.console, &mut self.outputs, now.instant);
            }
            Verdict::SampledOut { .. } => self.tally.sampled_out += 1,
            // Still queued: the sampler keeps it for its summary.
            Verdict::Held { .. } => {}
        }
    }

    fn tell_summary(&mut self, summary: &Summary, now: Instant) {
        let told = self.teller.tell(&summary.reset);
        let sentence = format!("{} ({})", summary.sentence(), told.sentence);
        hand_over(&Told { sentence: &sentence, ..told }, &mut self.console, &mut self.outputs, now);
    }

    /// In a dry run: what a reset meets.
    fn show_fate(&mut self, reset: &Reset, fate: &dyn std::fmt::Display) {
        if self.dry_run {
            let told = self.teller.tell(reset);
            if let Err(error) = writeln!(io::stdout().lock(), "{fate}: {}", told.sentence) {
                tracing::debug!(%error, "cannot write to standard output");
            }
        }
    }

    /// Tells the account what was decided; before the batches go on, so that they have been read by then.
    fn settle(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        if tally.read == 0 {
            return;
        }
        self.account.read(tally.read);
        self.account.filtered(tally.filtered);
        self.account.sampled_out(tally.sampled_out);
        self.account.dropped_in_pipeline(DropReason::Undecodable, tally.undecodable);
    }

    fn flush_console(&mut self) {
        if !self.console.is_on() {
            return;
        }
        match self.console.flush(&mut io::stdout().lock()) {
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
