//! The requests that one process has just sent, for resets that are read after their span has passed: kept as they came,
//! and opened only if such a reset comes.
//!
//! A reset is read within a fifth of a second and its span is sent after it, so that two seconds are enough
//! ([`HISTORY_WINDOW`]), unless the connection had been closed before, as by a client that did not wait for its answer.
//! Where something of that time has been dropped, no span can be said to be the only one.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    correlate::{
        sender::Sender,
        span_info::{self, SpanInfo, SpanSide},
    },
    model::signal::Signal,
    otlp::{
        payload::Payload,
        splice::{self, Malformed},
    },
};

/// How long a request is kept.
pub(crate) const RETENTION: Duration = Duration::from_secs(10);
/// A request that passed this long before a reset was read may be about its connection.
pub(crate) const HISTORY_WINDOW: Duration = Duration::from_secs(2);
/// Maximum bytes kept of one process.
const MAX_PROCESS_BYTES: usize = 4 << 20;
/// Maximum bytes kept of all processes.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// Maximum bytes that are decompressed for one reset.
const MAX_OPENED_BYTES: usize = 32 << 20;

/// The requests that one process has just sent.
#[derive(Debug, Default)]
pub(crate) struct SpanHistory {
    requests: VecDeque<KeptRequest>,
    bytes: usize,
    /// When the newest of the dropped requests had passed.
    dropped: Option<Instant>,
}

/// What all processes share.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Bytes kept.
    bytes: usize,
    next_number: u64,
}

/// A request that is kept.
#[derive(Clone, Debug)]
pub(crate) struct KeptRequest {
    number: u64,
    passed: Instant,
    bytes: usize,
    /// Who sent it.
    pub(crate) sender: Sender,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Payload(Payload),
    Spans(KeptSpans),
}

/// The spans of a request that describe a connection.
#[derive(Clone, Debug)]
pub(crate) struct KeptSpans {
    /// In the request's order.
    pub(crate) spans: Arc<[SpanInfo]>,
    /// Whether those are all.
    pub(crate) complete: bool,
}

/// Collects the spans of a request that are kept, up to their maximum.
#[derive(Debug)]
pub(crate) struct Collected {
    spans: Vec<SpanInfo>,
    complete: bool,
}

impl Collected {
    pub(crate) fn new() -> Self {
        Self { spans: Vec::new(), complete: true }
    }

    pub(crate) fn add(&mut self, span: &SpanInfo) {
        if span.side == SpanSide::Neither {
            return;
        }
        if (self.spans.len() + 1) * size_of::<SpanInfo>() > MAX_PROCESS_BYTES {
            self.complete = false;
        } else {
            self.spans.push(span.clone());
        }
    }

    pub(crate) fn finish(self) -> KeptSpans {
        KeptSpans { spans: self.spans.into(), complete: self.complete }
    }
}

/// Calls `visitor` with each span of a request that has valid ids and times.
pub(crate) fn for_each_span(request: &[u8], mut visitor: impl FnMut(&SpanInfo)) -> Result<(), Malformed> {
    let mut malformed = None;
    splice::visit(request, |_, span| match span_info::read(span) {
        Ok(span) => span.iter().for_each(&mut visitor),
        Err(error) => malformed = Some(error),
    })?;
    malformed.map_or(Ok(()), Err)
}

impl SpanHistory {
    /// Keeps a request that was not read; `totals` is of all processes.
    pub(crate) fn keep_payload(&mut self, sender: Sender, payload: &Payload, now: Instant, totals: &mut Totals) {
        self.keep(sender, Content::Payload(payload.clone()), payload.len(), now, totals);
    }

    /// Keeps the spans of a request that was read.
    pub(crate) fn keep_spans(&mut self, sender: Sender, spans: KeptSpans, now: Instant, totals: &mut Totals) {
        let bytes = spans.bytes();
        if bytes > 0 {
            self.keep(sender, Content::Spans(spans), bytes, now, totals);
        }
    }

    fn keep(&mut self, sender: Sender, content: Content, bytes: usize, now: Instant, totals: &mut Totals) {
        self.prune(now, totals);
        while self.bytes + bytes > MAX_PROCESS_BYTES || totals.bytes + bytes > MAX_TOTAL_BYTES {
            if !self.drop_oldest(totals) {
                self.dropped = Some(now);
                return;
            }
        }
        let number = totals.next_number;
        totals.next_number += 1;
        self.requests.push_back(KeptRequest { number, passed: now, bytes, sender, content });
        self.bytes += bytes;
        totals.bytes += bytes;
    }

    /// Drops what has been kept for long enough.
    pub(crate) fn prune(&mut self, now: Instant, totals: &mut Totals) {
        while self.requests.front().is_some_and(|request| now.saturating_duration_since(request.passed) > RETENTION) {
            self.drop_oldest(totals);
        }
    }

    fn drop_oldest(&mut self, totals: &mut Totals) -> bool {
        let Some(oldest) = self.requests.pop_front() else { return false };
        self.dropped = Some(oldest.passed);
        self.bytes -= oldest.bytes;
        totals.bytes -= oldest.bytes;
        true
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, totals: &mut Totals) {
        while self.drop_oldest(totals) {}
        self.dropped = None;
    }

    /// Nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The requests that have passed since then, and whether those are all.
    pub(crate) fn since(&self, since: Instant) -> (impl Iterator<Item = KeptRequest>, bool) {
        let complete = self.dropped.is_none_or(|passed| passed < since);
        (self.requests.iter().filter(move |request| request.passed >= since).cloned(), complete)
    }

    /// Puts the spans of a request in the place of its bytes, so that it is opened once.
    pub(crate) fn replace(&mut self, number: u64, spans: KeptSpans, totals: &mut Totals) {
        let Some(request) = self.requests.iter_mut().find(|request| request.number == number) else { return };
        let bytes = spans.bytes();
        totals.bytes = totals.bytes - request.bytes + bytes;
        self.bytes = self.bytes - request.bytes + bytes;
        (request.bytes, request.content) = (bytes, Content::Spans(spans));
        while (self.bytes > MAX_PROCESS_BYTES || totals.bytes > MAX_TOTAL_BYTES) && self.drop_oldest(totals) {}
    }
}

impl KeptSpans {
    fn bytes(&self) -> usize {
        self.spans.len() * size_of::<SpanInfo>()
    }
}

impl KeptRequest {
    /// The same, from this sender where it is known better.
    pub(crate) fn from(self, sender: Option<Sender>) -> Self {
        Self { sender: sender.unwrap_or(self.sender), ..self }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The spans, and whether they had to be opened; `None` where they would be too many. `limit` is the maximum of one
    /// request after decompression, `opened` the bytes that have been decompressed for the same reset.
    pub(crate) fn spans(&self, limit: usize, opened: &mut usize) -> Option<(KeptSpans, bool)> {
        let payload = match &self.content {
            Content::Spans(spans) => return Some((spans.clone(), false)),
            Content::Payload(payload) => payload,
        };
        let left = limit.min(MAX_OPENED_BYTES.saturating_sub(*opened));
        let mut collected = Collected::new();
        match payload.protobuf(Signal::Traces, left) {
            Ok(plain) => {
                *opened += plain.len();
                if for_each_span(&plain, |span| collected.add(span)).is_err() {
                    // What was read of a malformed request does not count.
                    collected = Collected::new();
                }
            }
            Err(_) if left < limit => return None,
            Err(_) => {}
        }
        Some((collected.finish(), true))
    }
}
