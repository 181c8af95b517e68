//! A reset with what is decided once for all its outputs: the sentence, the severity, and the ids of its span, so that
//! the terminal, every destination's log record and the span agree.

pub mod message;

use rand::{RngCore, SeedableRng, rngs::SmallRng};

use crate::{
    event::message::sentence,
    model::{
        Reset, Trace, TraceMethod,
        cause::{self, Severity},
    },
};

/// W3C trace id, never zeros.
pub type TraceId = [u8; 16];
/// W3C span id, never zeros.
pub type SpanId = [u8; 8];

/// A reset, and how it is told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The reset.
    pub reset: &'a Reset,
    /// One sentence for a person.
    pub sentence: &'a str,
    /// How bad it is.
    pub severity: Severity,
    /// Where it stands among traces.
    pub identity: Identity,
}

/// Where a reset stands among traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// What the log record names: the span that carries the event, else the application's as far as it is known.
    pub log: Option<LogIdentity>,
    /// The span of ours that carries the event; `None` where none is made.
    pub span: Option<SpanIdentity>,
}

/// The trace and span that a log record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The trace.
    pub trace_id: TraceId,
    /// The span, where more than the trace is known.
    pub span_id: Option<SpanId>,
    /// Whether it is known to be sampled: so is every span of ours.
    pub sampled: bool,
}

/// The ids of a span of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanIdentity {
    /// The application's trace where it is known, else a new one.
    pub trace_id: TraceId,
    /// Always new.
    pub span_id: SpanId,
    /// The application's span where it is known.
    pub parent: Option<SpanId>,
}

/// Tells resets: keeps the sentence's buffer and the generator of ids.
#[derive(Debug)]
pub struct Teller {
    spans: bool,
    random: SmallRng,
    sentence: String,
}

impl Teller {
    /// A teller. `spans`: whether traces are exported, so that a reset gets a span of ours where the application's own
    /// does not carry it. `seed`: of the ids; a process takes a random one, a test any.
    pub fn new(spans: bool, seed: u64) -> Self {
        Self { spans, random: SmallRng::seed_from_u64(seed), sentence: String::new() }
    }

    /// A teller whose ids are seeded by the operating system.
    pub fn from_os(spans: bool) -> Self {
        // The system's generator fails only before it is seeded, early in boot; hash keys are random even then.
        let random = SmallRng::try_from_os_rng().unwrap_or_else(|_| SmallRng::seed_from_u64(hash_seed()));
        Self { spans, random, sentence: String::new() }
    }

    /// Decides how a reset is told. Call it once for each reset: the ids are new each time.
    pub fn tell<'a>(&'a mut self, reset: &'a Reset) -> Told<'a> {
        let identity = self.identify(reset.trace.as_ref());
        self.sentence.clear();
        sentence(reset, &mut self.sentence);
        Told { reset, sentence: &self.sentence, severity: cause::severity(reset), identity }
    }

    fn identify(&mut self, trace: Option<&Trace>) -> Identity {
        let ambiguous = trace.is_some_and(|trace| trace.method == TraceMethod::Ambiguous);
        let known = trace.filter(|_| !ambiguous);
        let application = known.map(|trace| LogIdentity {
            trace_id: trace.trace_id,
            span_id: trace.span_id,
            sampled: trace.on_application_span,
        });
        if !self.spans || trace.is_some_and(|trace| trace.on_application_span) {
            return Identity { log: application, span: None };
        }
        let span = SpanIdentity {
            trace_id: known.map_or_else(|| self.new_id(), |trace| trace.trace_id),
            span_id: self.new_id(),
            parent: known.and_then(|trace| trace.span_id),
        };
        let own = LogIdentity { trace_id: span.trace_id, span_id: Some(span.span_id), sampled: true };
        // A record that may belong to several traces names none; its span links to them all.
        Identity { log: (!ambiguous).then_some(own), span: Some(span) }
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
