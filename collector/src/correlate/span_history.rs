//! The requests of one process that have just passed, for resets that come after their span: kept as they came, and
//! opened only if such a reset comes.
//!
//! A reset is read within a fifth of a second and its span is sent after it, so that two seconds are enough
//! ([`LOOKED_BACK`]), unless the connection had been closed before, as by a client that did not wait for its answer.
//! Where something of that time has been let go, no span can be said to be the only one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    correlate::span_info::{self, Role, Seen},
    model::signal::Signal,
    otlp::{
        payload::Payload,
        splice::{self, Malformed, Place},
    },
};

/// How long a request is kept.
pub(crate) const KEPT: Duration = Duration::from_secs(10);
/// What passed so long before a reset was read may be about its connection.
pub(crate) const LOOKED_BACK: Duration = Duration::from_secs(2);
/// Bytes kept of one process at most.
const MOST_BYTES: usize = 4 << 20;
/// Bytes kept of all processes at most.
const MOST_BYTES_IN_ALL: usize = 16 << 20;
/// Bytes that are decompressed for one reset at most.
const MOST_OPENED: usize = 32 << 20;

/// What one process has sent of late.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    requests: VecDeque<Request>,
    bytes: usize,
    /// When the newest of what has been let go had passed.
    let_go: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    passed: Instant,
    bytes: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Payload(Payload),
    Spans(Vec<Seen>),
}

/// Reads all spans of a request, each with its place.
pub(crate) fn read_spans(request: &[u8]) -> Result<Vec<(Place, Option<Seen>)>, Malformed> {
    let mut spans = Vec::new();
    let mut malformed = None;
    splice::visit(request, |place, span| match span_info::read(span) {
        Ok(seen) => spans.push((place, seen)),
        Err(error) => malformed = Some(error),
    })?;
    malformed.map_or(Ok(spans), Err)
}

impl Recent {
    /// Keeps a request that nobody has looked at; `used` counts the bytes kept of all processes.
    pub(crate) fn keep_payload(&mut self, payload: &Payload, now: Instant, used: &mut usize) {
        self.keep(Content::Payload(payload.clone()), payload.len(), now, used);
    }

    /// Keeps the spans of a request that was looked at.
    pub(crate) fn keep_spans<'a>(&mut self, spans: impl Iterator<Item = &'a Seen>, now: Instant, used: &mut usize) {
        let spans: Vec<Seen> = spans.filter(|seen| seen.role != Role::Neither).cloned().collect();
        let bytes = spans.len() * size_of::<Seen>();
        if bytes > 0 {
            self.keep(Content::Spans(spans), bytes, now, used);
        }
    }

    fn keep(&mut self, content: Content, bytes: usize, now: Instant, used: &mut usize) {
        self.forget(now, used);
        while self.bytes + bytes > MOST_BYTES || *used + bytes > MOST_BYTES_IN_ALL {
            if !self.forget_oldest(used) {
                self.let_go = Some(now);
                return;
            }
        }
        self.requests.push_back(Request { passed: now, bytes, content });
        self.bytes += bytes;
        *used += bytes;
    }

    /// Lets go of what has been kept for long enough.
    pub(crate) fn forget(&mut self, now: Instant, used: &mut usize) {
        while self.requests.front().is_some_and(|request| now.saturating_duration_since(request.passed) > KEPT) {
            self.forget_oldest(used);
        }
    }

    fn forget_oldest(&mut self, used: &mut usize) -> bool {
        let Some(oldest) = self.requests.pop_front() else { return false };
        self.let_go = Some(oldest.passed);
        self.bytes -= oldest.bytes;
        *used -= oldest.bytes;
        true
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self, used: &mut usize) {
        while self.forget_oldest(used) {}
        self.let_go = None;
    }

    /// Nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Shows every span that has passed since then, and says whether those are all. `limit` is for one request, bytes
    /// after decompression.
    pub(crate) fn visit(
        &mut self,
        since: Instant,
        limit: usize,
        used: &mut usize,
        mut visitor: impl FnMut(&Seen),
    ) -> bool {
        let mut complete = self.let_go.is_none_or(|passed| passed < since);
        let mut opened = 0;
        for request in self.requests.iter_mut().filter(|request| request.passed >= since) {
            if let Content::Payload(payload) = &request.content {
                let left = limit.min(MOST_OPENED - opened);
                let spans = payload.protobuf(Signal::Traces, left).ok().and_then(|plain| {
                    opened += plain.len();
                    read_spans(&plain).ok()
                });
                complete &= spans.is_some() || opened < MOST_OPENED;
                let spans = spans.unwrap_or_default().into_iter().filter_map(|(_, seen)| seen);
                let spans: Vec<Seen> = spans.filter(|seen| seen.role != Role::Neither).collect();
                // What is kept may take more room than its compressed bytes did: it was counted, and goes in seconds.
                let bytes = spans.len() * size_of::<Seen>();
                *used = *used - request.bytes + bytes;
                self.bytes = self.bytes - request.bytes + bytes;
                (request.bytes, request.content) = (bytes, Content::Spans(spans));
            }
            if let Content::Spans(spans) = &request.content {
                spans.iter().for_each(&mut visitor);
            }
        }
        complete
    }
}
