//! A reset as it is exported: the message, the severity and the span contexts, decided once so that the console, the log
//! records and the spans agree.

pub mod message;

use rand::{RngCore, SeedableRng, rngs::SmallRng};

use crate::model::{
    Reset, Trace, TraceMethod,
    cause::{self, Severity},
};

/// W3C trace id, never zeros.
pub type TraceId = [u8; 16];
/// W3C span id, never zeros.
pub type SpanId = [u8; 8];

/// A reset, ready for export.
#[derive(Clone, Copy, Debug)]
pub struct ResetEvent<'a> {
    /// The reset.
    pub reset: &'a Reset,
    /// One sentence that explains it.
    pub message: &'a str,
    /// Its severity.
    pub severity: Severity,
    /// Its trace and span ids.
    pub contexts: SpanContexts,
}

/// The trace and span ids of a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanContexts {
    /// The ids in the log record: those of the span that carries the event, else of the application's span if known.
    pub log: Option<LogSpanContext>,
    /// The ids of the collector's own span for the reset; `None` if it makes none.
    pub span: Option<SpanContext>,
}

/// The ids in a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpanContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span, if more than the trace is known.
    pub span_id: Option<SpanId>,
    /// Whether the trace is known to be sampled; traces of the collector's own spans always are.
    pub sampled: bool,
}

/// The ids of a span that the collector makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The application's trace if known, else a new one.
    pub trace_id: TraceId,
    /// Always new.
    pub span_id: SpanId,
    /// The application's span, if known.
    pub parent: Option<SpanId>,
}

/// Builds events; owns the message buffer and the id generator.
#[derive(Debug)]
pub struct EventBuilder {
    spans: bool,
    random: SmallRng,
    message: String,
}

impl EventBuilder {
    /// A builder with a fixed seed for its ids. `spans`: whether traces are exported; each reset then gets a span of the
    /// collector's own unless the application's span carries the event.
    pub fn new(spans: bool, seed: u64) -> Self {
        Self { spans, random: SmallRng::seed_from_u64(seed), message: String::new() }
    }

    /// A builder with a random seed from the operating system.
    pub fn from_os(spans: bool) -> Self {
        // The system's generator fails only before it is seeded, early in boot; hash keys are random even then.
        let random = SmallRng::try_from_os_rng().unwrap_or_else(|_| SmallRng::seed_from_u64(hash_seed()));
        Self { spans, random, message: String::new() }
    }

    /// Builds the event of a reset. Call it once per reset: each call makes new ids.
    pub fn build<'a>(&'a mut self, reset: &'a Reset) -> ResetEvent<'a> {
        let contexts = self.contexts(reset.trace.as_ref());
        self.message.clear();
        message::render(reset, &mut self.message);
        ResetEvent { reset, message: &self.message, severity: cause::severity(reset), contexts }
    }

    fn contexts(&mut self, trace: Option<&Trace>) -> SpanContexts {
        let ambiguous = trace.is_some_and(|trace| trace.method == TraceMethod::Ambiguous);
        let known = trace.filter(|_| !ambiguous);
        let application = known.map(|trace| LogSpanContext {
            trace_id: trace.trace_id,
            span_id: trace.span_id,
            sampled: trace.on_application_span,
        });
        if !self.spans || trace.is_some_and(|trace| trace.on_application_span) {
            return SpanContexts { log: application, span: None };
        }
        let span = SpanContext {
            trace_id: known.map_or_else(|| self.new_id(), |trace| trace.trace_id),
            span_id: self.new_id(),
            parent: known.and_then(|trace| trace.span_id),
        };
        let own = LogSpanContext { trace_id: span.trace_id, span_id: Some(span.span_id), sampled: true };
        // The log record of an ambiguous reset names no trace; the span links to every candidate.
        SpanContexts { log: (!ambiguous).then_some(own), span: Some(span) }
    }

    fn new_id<const LENGTH: usize>(&mut self) -> [u8; LENGTH] {
        let mut id = [0; LENGTH];
        while id == [0; LENGTH] {
            self.random.fill_bytes(&mut id);
        }
        id
    }
}

fn hash_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
