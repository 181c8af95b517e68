//! From a reset to the request that it broke: resets wait for their span, and spans that pass are matched with them.
//!
//! What makes a span match a reset is in [`crate::correlate::matching`]; this module decides which resets wait, for how
//! long, and what follows from one, several or no matching spans. The constants of `state` and `span_history` bound the
//! memory, [`MAX_COMPARISONS`] the work of one request. Spans are read and compared without the lock. No clock and no I/O:
//! the time is an argument.

mod candidates;
pub mod failure;
mod index;
pub mod matching;
pub mod metrics;
mod pending_reset;
mod sender;
mod span_history;
pub mod span_info;
mod state;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    config::settings::Correlation,
    correlate::{
        candidates::SpanKey,
        index::{Budget, Comparison, Comparisons, NamedKey},
        metrics::Stats,
        span_history::{Collected, for_each_span},
        span_info::SpanInfo,
        state::{Claims, Search, State},
    },
    model::{Reset, Trace},
    otlp::{
        encode,
        payload::Payload,
        splice::{self, Malformed, Place},
    },
};

pub use crate::correlate::{sender::Sender, state::MAX_PENDING};

/// How soon to try again a reset whose span is on its way to the backend.
const IN_FLIGHT_RETRY: Duration = Duration::from_millis(100);
/// Maximum comparisons of a span with a reset for one request, and for one search of the history.
pub const MAX_COMPARISONS: usize = 1 << 20;
/// Maximum events that are added to one request.
const MAX_EVENTS: usize = 4_096;
/// Spans of a sender without a known process that are looked up under one lock.
const LOOKUP_BATCH: usize = 256;
/// How long the history thread waits before it checks whether the correlator is still in use.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Matches resets with spans; shared by the pipeline and the receivers.
#[derive(Debug)]
pub struct Correlator {
    state: Mutex<State>,
    searches: Condvar,
    has_search_thread: AtomicBool,
    wait: Duration,
    listening: bool,
    events: bool,
    limit: usize,
    /// What became of resets and requests here.
    pub stats: Stats,
}

/// Events for spans of one request.
#[derive(Debug)]
pub struct SplicedEvents {
    /// For each: the span's number in the request, its place, an encoded `Span.Event`; in the request's order.
    pub events: Vec<(usize, Place, Vec<u8>)>,
    /// To be settled with the backend's response.
    pub ticket: Ticket,
}

/// Events that are on their way to the backend. Dropped without a response, they count as rejected.
#[derive(Debug)]
pub struct Ticket {
    correlator: Arc<Correlator>,
    marked: Vec<(u64, usize, Trace)>,
}

/// A pending reset whose event goes onto spans of a request.
struct Mark {
    id: u64,
    resets: Vec<Arc<Reset>>,
    trace: Trace,
    targets: Vec<SpanKey>,
}

impl Correlator {
    /// A correlator; without `events` spans are found and left as they are, since traces are not exported.
    pub fn new(settings: &Correlation, events: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            searches: Condvar::new(),
            has_search_thread: AtomicBool::new(false),
            wait: settings.span_wait,
            listening: settings.grpc.is_some() || settings.http.is_some(),
            events,
            limit: settings.max_grpc_request_bytes().max(settings.max_http_request_bytes()),
            stats: Stats::default(),
        })
    }

    /// Searches the span history in a thread of its own from now on, so that [`Self::submit`] opens no request.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_search_thread(self: &Arc<Self>) -> io::Result<()> {
        let correlator = Arc::downgrade(self);
        thread::Builder::new().name("span history".into()).spawn(move || {
            while let Some(correlator) = correlator.upgrade() {
                correlator.search_next();
            }
        })?;
        self.has_search_thread.store(true, Relaxed);
        Ok(())
    }

    /// Takes a reset, to be returned by [`Self::take_ready`]: at once where no span can come.
    pub fn submit(&self, reset: Reset, now: Instant) {
        let mut state = self.lock();
        let connection = (reset.network_namespace, reset.local, reset.peer);
        let waits = self.listening && (reset.trace.is_some() || matching::can_have_span(&reset));
        let known = state.by_connection.get(&connection).copied();
        let id = match known {
            Some(id) => state.merge(id, reset, &self.stats),
            None if waits => state.begin(connection, reset, now, now + self.wait, &self.stats),
            None => {
                state.ready.push(reset);
                None
            }
        };
        if let Some(id) = id {
            self.search_for(state, id);
        }
    }

    /// Compares a pending reset with the spans that have passed: here, or in the search thread where there is one.
    fn search_for(&self, mut state: MutexGuard<'_, State>, id: u64) {
        if !self.has_search_thread.load(Relaxed) {
            let search = state.search(id);
            drop(state);
            return self.run(search);
        }
        if let Some(pending) = state.pending.get_mut(&id) {
            pending.searches += 1;
        }
        state.searches.push_back(id);
        self.searches.notify_one();
    }

    /// Runs the next search of the span history, or waits for one.
    fn search_next(&self) {
        let mut state = self.lock();
        let Some(id) = state.searches.pop_front() else {
            drop(self.searches.wait_timeout(state, SEARCH_TIMEOUT).unwrap_or_else(PoisonError::into_inner));
            return;
        };
        let search = state.search(id);
        drop(state);
        self.run(search);
        if let Some(pending) = self.lock().pending.get_mut(&id) {
            pending.searches -= 1;
        }
    }

    /// Compares a pending reset with the spans that have passed.
    fn run(&self, search: Option<Search>) {
        let Some(Search { mut comparison, requests }) = search else { return };
        let mut budget = Budget::new(MAX_COMPARISONS);
        let (mut opened, mut complete) = (0, true);
        for (pid, request) in requests {
            let Some((kept, was_opened)) = request.spans(self.limit, &mut opened) else {
                complete = false;
                continue;
            };
            complete &= kept.complete;
            for span in kept.spans.iter() {
                complete &= comparison.compare_all(span, &request.sender, &mut budget);
            }
            if was_opened {
                self.lock().replace(pid, request.number(), kept);
            }
        }
        comparison.candidates.incomplete |= !complete;
        self.stats.count_comparisons(budget.used);
        let id = comparison.id;
        let mut state = self.lock();
        state.apply(comparison);
        state.decide_if_certain(id, &self.stats);
    }

    /// Returns the resets that have their trace, or have waited long enough.
    pub fn take_ready(&self, now: Instant) -> Vec<Reset> {
        let mut state = self.lock();
        let due = state.pending.iter().take_while(|(_, pending)| pending.deadline <= now);
        let due: Vec<u64> = due.filter(|(_, pending)| pending.is_settled()).map(|(id, _)| *id).collect();
        self.decide(&mut state, &due);
        state.prune(now);
        std::mem::take(&mut state.ready)
    }

    /// When [`Self::take_ready`] next returns something; ask again after each call of the others.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        if !state.ready.is_empty() {
            return Some(now);
        }
        let mut next: Option<Instant> = None;
        // In the order of their deadlines, but for those that wait for the backend's response.
        for pending in state.pending.values() {
            let at = if pending.is_settled() { pending.deadline } else { pending.deadline.max(now + IN_FLIGHT_RETRY) };
            next = Some(next.map_or(at, |next| next.min(at)));
            if pending.is_settled() {
                break;
            }
        }
        next
    }

    /// Returns every reset that still waits, as it is: for the end of the program.
    pub fn drain(&self) -> Vec<Reset> {
        let mut state = self.lock();
        let all: Vec<u64> = state.pending.keys().copied().collect();
        self.decide(&mut state, &all);
        std::mem::take(&mut state.ready)
    }

    fn decide(&self, state: &mut State, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        let claims = state.claims(ids);
        // All are decided before any goes: two resets that claim one span must see each other.
        ids.iter().for_each(|id| state.decide(*id, &claims, &self.stats));
        ids.iter().for_each(|id| state.remove(*id, &claims));
    }

    /// Whether a request of this sender must be read ([`Self::correlate_request`]) before it goes on; else it is kept as
    /// it came and may go.
    pub fn needs_correlation(&self, sender: &Sender, payload: &Payload, now: Instant) -> bool {
        if *sender == Sender::Unattributed {
            self.stats.count_unattributed_request();
            return false;
        }
        let mut state = self.lock();
        let waiting = state.has_pending_of(sender);
        if !waiting {
            state.keep(sender, now, |history, totals| history.keep_payload(*sender, payload, now, totals));
        }
        waiting
    }

    /// Matches the spans of a request (an `ExportTraceServiceRequest`, not compressed) with the resets that wait, and
    /// returns the events that belong on them. A malformed request is left alone.
    ///
    /// # Errors
    /// The request is malformed.
    pub fn correlate_request(
        self: &Arc<Self>,
        sender: &Sender,
        request: &[u8],
        now: Instant,
    ) -> Result<Option<SplicedEvents>, Malformed> {
        let mut collected = Collected::new();
        let mut budget = Budget::new(MAX_COMPARISONS);
        let first_unseen = self.lock().next;
        let comparisons = match sender {
            Sender::Process(_) => self.compare_own(sender, request, &mut collected, &mut budget)?,
            Sender::Unattributed => return Ok(None),
            _ => self.compare_named(sender, request, &mut collected, &mut budget)?,
        };
        self.stats.count_comparisons(budget.used);
        let touched: Vec<u64> = comparisons.iter().filter(|it| !it.candidates.is_empty()).map(|it| it.id).collect();
        let (unseen, marks) = {
            let mut state = self.lock();
            let kept = collected.finish();
            state.keep(sender, now, |history, totals| history.keep_spans(*sender, kept, now, totals));
            if budget.exceeded {
                self.stats.count_incomplete_request();
                state.mark_incomplete(sender);
            }
            let grown: Vec<u64> = comparisons.into_iter().filter_map(|comparison| state.apply(comparison)).collect();
            let unseen = state.pending.range(first_unseen..).filter(|(_, pending)| pending.may_be_of(sender));
            let unseen: Vec<u64> = unseen.map(|(id, _)| *id).chain(grown).collect();
            (unseen, if self.events { self.mark(&mut state, &touched, now) } else { Vec::new() })
        };
        // Resets that were read while the spans were compared.
        unseen.into_iter().for_each(|id| self.search_for(self.lock(), id));
        self.splice(request, marks)
    }

    /// Compares the spans of a process with its pending resets.
    fn compare_own(
        &self,
        sender: &Sender,
        request: &[u8],
        collected: &mut Collected,
        budget: &mut Budget,
    ) -> Result<Vec<Comparison>, Malformed> {
        let mut comparisons = Comparisons::new({
            let state = self.lock();
            let pending = sender.process().into_iter().flat_map(|owner| state.pending_of(owner));
            pending.filter_map(|id| Some(Comparison::new(id, state.pending.get(&id)?))).collect()
        });
        for_each_span(request, |span| {
            collected.add(span);
            comparisons.compare(span, sender, budget);
        })?;
        Ok(comparisons.finish(sender))
    }

    /// Compares the spans of a sender whose process is not known with the resets that they name.
    fn compare_named(
        &self,
        sender: &Sender,
        request: &[u8],
        collected: &mut Collected,
        budget: &mut Budget,
    ) -> Result<Vec<Comparison>, Malformed> {
        let mut comparisons = HashMap::new();
        let mut batch = Vec::with_capacity(LOOKUP_BATCH);
        for_each_span(request, |span| {
            collected.add(span);
            batch.push(span.clone());
            if batch.len() == LOOKUP_BATCH {
                self.compare_batch(sender, &batch, &mut comparisons, budget);
                batch.clear();
            }
        })?;
        self.compare_batch(sender, &batch, &mut comparisons, budget);
        let mut comparisons: Vec<Comparison> = comparisons.into_values().collect();
        comparisons.sort_by_key(|comparison| comparison.id);
        Ok(comparisons)
    }

    fn compare_batch(
        &self,
        sender: &Sender,
        spans: &[SpanInfo],
        comparisons: &mut HashMap<u64, Comparison>,
        budget: &mut Budget,
    ) {
        let mut found: Vec<(usize, u64)> = Vec::new();
        let state = self.lock();
        for (index, span) in spans.iter().enumerate() {
            let ids = NamedKey::of_span(span).into_iter().flatten().flat_map(|key| state.pending_named(&key));
            for id in ids {
                let Some(pending) = state.pending.get(id).filter(|_| found.len() < MAX_COMPARISONS) else { continue };
                comparisons.entry(*id).or_insert_with(|| Comparison::new(*id, pending));
                found.push((index, *id));
            }
        }
        drop(state);
        for (index, id) in found {
            if let Some(comparison) = comparisons.get_mut(&id) {
                comparison.compare(&spans[index], sender, budget);
            }
        }
    }

    /// Marks the pending resets whose spans are in the request that is about to go on.
    fn mark(&self, state: &mut State, touched: &[u64], now: Instant) -> Vec<Mark> {
        let claims = if touched.is_empty() { Claims::default() } else { state.claims(touched) };
        let mut marks = Vec::new();
        for id in touched {
            let Some((trace, targets)) = state.targets(*id, &claims, now) else { continue };
            let Some(pending) = state.pending.get_mut(id) else { continue };
            pending.in_flight += 1;
            marks.push(Mark { id: *id, resets: pending.resets.clone(), trace, targets });
        }
        marks
    }

    /// Renders the events of the marked resets.
    fn splice(self: &Arc<Self>, request: &[u8], marks: Vec<Mark>) -> Result<Option<SplicedEvents>, Malformed> {
        if marks.is_empty() {
            return Ok(None);
        }
        let mut by_span: HashMap<SpanKey, Vec<usize>> = HashMap::new();
        for (index, mark) in marks.iter().enumerate() {
            mark.targets.iter().for_each(|span| by_span.entry(*span).or_default().push(index));
        }
        let mut used = vec![false; marks.len()];
        let mut events = Vec::new();
        let mut number = 0;
        let visited = splice::visit(request, |place, span| {
            let key = candidates::span_key(span.trace_id, span.span_id);
            for index in key.and_then(|key| by_span.get(&key)).into_iter().flatten() {
                let mark = &marks[*index];
                if events.len() + mark.resets.len() <= MAX_EVENTS {
                    used[*index] = true;
                    events.extend(mark.resets.iter().map(|reset| (number, place, event(reset, &mark.trace))));
                }
            }
            number += 1;
        });
        // Those without an event are settled as rejected: nothing of theirs goes out.
        let (on_span, without): (Vec<_>, Vec<_>) = marks.into_iter().zip(used).partition(|(_, used)| *used);
        let ticket = |marks: Vec<(Mark, bool)>| {
            let marked = marks.into_iter().map(|(mark, _)| (mark.id, mark.resets.len(), mark.trace)).collect();
            Ticket { correlator: Arc::clone(self), marked }
        };
        drop(ticket(without));
        let ticket = ticket(on_span);
        visited?;
        Ok((!events.is_empty()).then_some(SplicedEvents { events, ticket }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Records what became of the events: accepted by the backend, or not, when the application will send its spans again.
    pub fn settle(mut self, accepted: bool) {
        self.settle_once(accepted);
    }

    fn settle_once(&mut self, accepted: bool) {
        let marked = std::mem::take(&mut self.marked);
        let mut state = self.correlator.lock();
        for (id, count, trace) in marked {
            let Some(pending) = state.pending.get_mut(&id) else { continue };
            pending.in_flight -= 1;
            if !accepted || pending.decided.is_some() {
                continue;
            }
            let later = Trace { on_application_span: false, ..trace.clone() };
            let resets = pending.resets.iter().enumerate();
            let decided: Vec<Reset> =
                resets.map(|(index, reset)| reset.with_trace(if index < count { &trace } else { &later })).collect();
            pending.decided = Some(trace);
            self.correlator.stats.count_on_span(decided.len());
            state.ready.extend(decided);
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
