//! From a reset to the request that it broke: resets wait for their span, spans that pass are held against them.
//!
//! What makes a span the reset's is written in [`crate::correlate::matching`]; here is who waits, for how long, and what
//! is done when one, several or no spans fit. Memory is bounded by the constants of `waiting` and `recent`. No clock, no
//! I/O: the time is given.

mod candidates;
pub mod failure;
pub mod matching;
pub mod metrics;
mod pending_reset;
mod span_history;
pub mod span_info;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    config::settings::Correlation,
    correlate::{
        metrics::Tally,
        state::{State, process},
    },
    model::{Owner, Reset, Trace},
    otlp::{
        encode,
        payload::Payload,
        splice::{Malformed, Place},
    },
};

pub use crate::correlate::state::MOST_WAITING;

/// How soon to look again at a reset whose span is on its way to the backend.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// Holds resets and spans against each other; shared by the pipeline and the receivers.
#[derive(Debug)]
pub struct Correlator {
    state: Mutex<State>,
    wait: Duration,
    listening: bool,
    events: bool,
    limit: usize,
    /// What became of resets here.
    pub tally: Tally,
}

/// Events for spans of one request.
#[derive(Debug)]
pub struct Spliced {
    /// For each: the span's number in the request, its place, an encoded `Span.Event`; in the request's order.
    pub events: Vec<(usize, Place, Vec<u8>)>,
    /// To be settled with the backend's answer.
    pub ticket: Ticket,
}

/// Events that are on their way to the backend. Dropped without an answer, they count as refused.
#[derive(Debug)]
pub struct Ticket {
    correlator: Arc<Correlator>,
    marked: Vec<(u64, usize, Trace)>,
}

impl Correlator {
    /// A correlator; without `events` spans are found and left as they are, since traces are not exported.
    pub fn new(settings: &Correlation, events: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wait: settings.span_wait,
            listening: settings.grpc.is_some() || settings.http.is_some(),
            events,
            limit: settings.max_request_bytes,
            tally: Tally::default(),
        })
    }

    /// Takes a reset, to be given back by [`Self::take_ready`]: at once where no span could come.
    pub fn offer(&self, reset: Reset, now: Instant) {
        let mut state = self.lock();
        let connection = (reset.network_namespace, reset.local, reset.peer);
        let waits = self.listening && (reset.trace.is_some() || matching::may_have_span(&reset));
        let known = state.by_connection.get(&connection).copied();
        let id = match known {
            Some(id) => state.join(id, reset, &self.tally),
            None if waits => state.begin(connection, reset, now, now + self.wait, &self.tally),
            None => {
                state.ready.push(reset);
                None
            }
        };
        if let Some(id) = id {
            state.look_back(id, self.limit);
            state.conclude_if_certain(id, &self.tally);
        }
    }

    /// Gives back the resets that have their trace, or have waited long enough.
    pub fn take_ready(&self, now: Instant) -> Vec<Reset> {
        let mut state = self.lock();
        let due = state.groups.iter().take_while(|(_, group)| group.deadline <= now);
        let due: Vec<u64> = due.filter(|(_, group)| group.in_flight == 0).map(|(id, _)| *id).collect();
        // All are judged before any goes: two resets that claim one span must see each other.
        for id in &due {
            state.conclude(*id, &self.tally);
        }
        for id in due {
            state.remove(id);
        }
        state.prune(now);
        std::mem::take(&mut state.ready)
    }

    /// When [`Self::take_ready`] next has something to give; ask again after each call of the others.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        if !state.ready.is_empty() {
            return Some(now);
        }
        let mut next: Option<Instant> = None;
        // In the order of their deadlines, but for those that wait for the backend's answer.
        for group in state.groups.values() {
            let at = if group.in_flight == 0 { group.deadline } else { group.deadline.max(now + IN_FLIGHT) };
            next = Some(next.map_or(at, |next| next.min(at)));
            if group.in_flight == 0 {
                break;
            }
        }
        next
    }

    /// Gives back every reset that still waits, as it is: for the end of the program.
    pub fn drain(&self) -> Vec<Reset> {
        let mut state = self.lock();
        let all: Vec<u64> = state.groups.keys().copied().collect();
        for id in &all {
            state.conclude(*id, &self.tally);
        }
        for id in all {
            state.remove(id);
        }
        std::mem::take(&mut state.ready)
    }

    /// Whether a request of this sender must be looked at ([`Self::visit`]) before it goes on; else it is remembered
    /// as it came and may go.
    pub fn must_visit(&self, sender: Option<&Owner>, payload: &Payload, now: Instant) -> bool {
        let mut state = self.lock();
        let waiting = state.has_groups_of(sender);
        if !waiting {
            let state = &mut *state;
            let process = process(&mut state.processes, sender, now, &mut state.used);
            process.recent.keep_payload(payload, now, &mut state.used);
        }
        waiting
    }

    /// Holds the spans of a request (an `ExportTraceServiceRequest`, not compressed) against the resets that wait, and
    /// gives the events that belong on them. A malformed request is left alone.
    pub fn visit(
        self: &Arc<Self>,
        sender: Option<&Owner>,
        request: &[u8],
        now: Instant,
    ) -> Result<Option<Spliced>, Malformed> {
        let spans = span_history::read_spans(request)?;
        let mut state = self.lock();
        let mut touched = Vec::new();
        for id in state.groups_of(sender) {
            let Some(group) = state.groups.get_mut(&id) else { continue };
            let mut fits = false;
            for (_, seen) in &spans {
                fits |= seen.as_ref().is_some_and(|seen| group.hold_against(seen, sender));
            }
            if fits {
                touched.push(id);
            }
        }
        {
            let state = &mut *state;
            let process = process(&mut state.processes, sender, now, &mut state.used);
            let seen = spans.iter().filter_map(|(_, seen)| seen.as_ref());
            process.recent.keep_spans(seen, now, &mut state.used);
        }
        if !self.events {
            return Ok(None);
        }
        let mut events = Vec::new();
        let mut marked = Vec::new();
        for id in touched {
            let Some((trace, targets)) = state.targets(id, now) else { continue };
            let Some(group) = state.groups.get_mut(&id) else { continue };
            let before = events.len();
            for (number, (place, seen)) in spans.iter().enumerate() {
                if seen.as_ref().is_some_and(|seen| targets.contains(&(seen.trace_id, seen.span_id))) {
                    group.resets.iter().for_each(|reset| events.push((number, *place, event(reset, &trace))));
                }
            }
            if events.len() > before {
                group.in_flight += 1;
                marked.push((id, group.resets.len(), trace));
            }
        }
        if events.is_empty() {
            return Ok(None);
        }
        // Stable: two events of one span stand in the order of their resets.
        events.sort_by_key(|(number, ..)| *number);
        Ok(Some(Spliced { events, ticket: Ticket { correlator: Arc::clone(self), marked } }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Says what became of the events: taken by the backend, or not, when the application will send its spans again.
    pub fn settle(mut self, accepted: bool) {
        self.settle_once(accepted);
    }

    fn settle_once(&mut self, accepted: bool) {
        let marked = std::mem::take(&mut self.marked);
        let mut state = self.correlator.lock();
        for (id, count, trace) in marked {
            let Some(group) = state.groups.get_mut(&id) else { continue };
            group.in_flight -= 1;
            if !accepted || group.verdict.is_some() {
                continue;
            }
            let later = Trace { on_application_span: false, ..trace.clone() };
            let resets = group.resets.iter().enumerate();
            let told: Vec<Reset> =
                resets.map(|(index, reset)| reset.with_trace(if index < count { &trace } else { &later })).collect();
            group.verdict = Some(trace);
            self.correlator.tally.count_on_span(told.len());
            state.ready.extend(told);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle_once(false);
    }
}

fn event(reset: &Reset, trace: &Trace) -> Vec<u8> {
    let mut event = Vec::new();
    encode::span_event(&reset.with_trace(trace), &mut event);
    event
}
