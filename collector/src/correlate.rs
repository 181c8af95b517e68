//! From a reset to the request that it broke: resets wait for their span, spans that pass are held against them.
//!
//! What makes a span the reset's is written in [`crate::evidence`]; here is who waits, for how long, and what is done
//! when one, several or no spans fit. Memory is bounded by the constants below. No clock, no I/O: the time is given.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    candidates::{Candidates, Decision},
    encode,
    evidence::{self, Fit, Seen},
    payload::Payload,
    recent::{self, Recent},
    reset::{Cause, Endpoint, Owner, Reset, Trace, TraceMethod},
    settings::Correlation,
    splice::{Malformed, Place},
    tally::Tally,
};

/// Resets that wait at most; one more goes out at once.
pub const MOST_WAITING: usize = 16_384;
/// Connections of one process whose resets wait at most.
const MOST_OF_PROCESS: usize = 256;
/// Resets of one connection that wait at most.
const MOST_OF_CONNECTION: usize = 16;
/// Processes whose requests are kept at most; the one that has sent nothing for longest goes.
const MOST_PROCESSES: usize = 256;
/// Two resets that happened together have both been read after this time.
const SETTLED: Duration = Duration::from_millis(250);
/// The start in /proc is cut to the clock's tick of 10 ms; a pid is not used again so soon.
const START_TICK_NS: u64 = 20_000_000;
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

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By number, which is the order of their deadlines.
    groups: BTreeMap<u64, Group>,
    by_connection: HashMap<Connection, u64>,
    /// By pid; 0 are the senders whose process is not known.
    processes: HashMap<u32, Process>,
    waiting: usize,
    /// Bytes of requests kept.
    used: usize,
    ready: Vec<Reset>,
    pruned: Option<Instant>,
}

type Connection = (Option<u32>, Endpoint, Endpoint);

/// The resets of one connection: one fate.
#[derive(Debug)]
struct Group {
    resets: Vec<Reset>,
    connection: Connection,
    owner: Option<Owner>,
    offered: Instant,
    deadline: Instant,
    candidates: Candidates,
    /// Requests with this connection's events that the backend has not answered.
    in_flight: u32,
    /// Said already; spans that come still get the event where the first did.
    verdict: Option<Trace>,
}

#[derive(Debug)]
struct Process {
    start_boot_ns: u64,
    groups: Vec<u64>,
    recent: Recent,
    used: Instant,
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
            wait: settings.wait,
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
        let waits = self.listening && (reset.trace.is_some() || evidence::may_have_span(&reset));
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
        let next =
            |group: &Group| if group.in_flight == 0 { group.deadline } else { group.deadline.max(now + IN_FLIGHT) };
        state.groups.values().take(MOST_OF_PROCESS).map(next).min()
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
        let waiting = match sender {
            Some(sender) => state.processes.get(&sender.pid).is_some_and(|process| !process.groups.is_empty()),
            None => !state.groups.is_empty(),
        };
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
        let spans = recent::read_spans(request)?;
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
                if seen.as_ref().is_some_and(|seen| targets.contains(&seen.span_id)) {
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

impl Reset {
    fn with_trace(&self, trace: &Trace) -> Self {
        Self { trace: Some(trace.clone()), ..self.clone() }
    }
}

impl Group {
    /// Notes the span where it fits one of the resets, and says whether it does.
    fn hold_against(&mut self, seen: &Seen, sender: Option<&Owner>) -> bool {
        let fit = self.resets.iter().map(|reset| match (sender, self.owner) {
            (Some(sender), Some(owner)) if !same_process(sender, &owner) => Fit::No,
            (Some(_), _) => evidence::fit(seen, reset),
            (None, _) => evidence::fit_of_unknown_sender(seen, reset),
        });
        let fit = fit.max().unwrap_or(Fit::No);
        self.candidates.note(seen, fit)
    }

    /// Whether another connection's reset claims this span as well. One call may try several addresses, all refused.
    fn contests(&self, other: &Self, span_id: [u8; 8]) -> bool {
        other.candidates.claims(span_id) && !(self.is_attempt() && other.is_attempt())
    }

    fn is_attempt(&self) -> bool {
        self.resets.iter().all(|reset| reset.cause == Cause::RefusedByPeer)
    }

    /// The trace that a decision names; a context from the wire stays, with the span that it was found on.
    fn trace(&self, decision: &Decision, on_application_span: bool) -> Option<Trace> {
        let given = self.resets.iter().find_map(|reset| reset.trace.as_ref());
        let method = given.map_or(TraceMethod::Span, |given| given.method);
        let trace = |spans: &[([u8; 16], [u8; 8])], method| {
            let (first, rest) = spans.split_first()?;
            let span_id = Some(first.1);
            Some(Trace { trace_id: first.0, span_id, method, on_application_span, candidates: rest.to_vec() })
        };
        match decision {
            Decision::Own(spans) => trace(spans, method),
            Decision::Ambiguous(spans) if given.is_none() => {
                let trace = trace(spans, TraceMethod::Ambiguous)?;
                Some(Trace { span_id: None, candidates: spans.clone(), ..trace })
            }
            Decision::Ambiguous(_) | Decision::Nothing => given.cloned(),
        }
    }
}

fn same_process(one: &Owner, other: &Owner) -> bool {
    let known = one.start_boot_ns != 0 && other.start_boot_ns != 0;
    one.pid == other.pid && (!known || one.start_boot_ns.abs_diff(other.start_boot_ns) <= START_TICK_NS)
}

fn process<'a>(
    processes: &'a mut HashMap<u32, Process>,
    sender: Option<&Owner>,
    now: Instant,
    used: &mut usize,
) -> &'a mut Process {
    let (pid, start_boot_ns) = sender.map_or((0, 0), |sender| (sender.pid, sender.start_boot_ns));
    if !processes.contains_key(&pid) && processes.len() >= MOST_PROCESSES {
        let idle = processes.iter().filter(|(_, process)| process.groups.is_empty());
        let oldest = idle.min_by_key(|(_, process)| process.used).map(|(pid, _)| *pid);
        if let Some(mut oldest) = oldest.and_then(|pid| processes.remove(&pid)) {
            oldest.recent.clear(used);
        }
    }
    let process = processes.entry(pid).or_insert_with(|| Process {
        start_boot_ns,
        groups: Vec::new(),
        recent: Recent::default(),
        used: now,
    });
    if process.start_boot_ns != start_boot_ns && start_boot_ns != 0 {
        // The pid of an old process, used again; or the same start, known better.
        if process.start_boot_ns.abs_diff(start_boot_ns) > START_TICK_NS {
            process.recent.clear(used);
        }
        process.start_boot_ns = start_boot_ns;
    }
    process.used = now;
    process
}

impl State {
    /// Another reset of a connection that waits or is decided; its number if it waits.
    fn join(&mut self, id: u64, mut reset: Reset, tally: &Tally) -> Option<u64> {
        let group = self.groups.get_mut(&id)?;
        if let Some(verdict) = &group.verdict {
            let trace = Trace { on_application_span: false, ..verdict.clone() };
            reset.trace.get_or_insert(trace);
            tally.count_passed(1);
            self.ready.push(reset);
            return None;
        }
        if group.resets.len() >= MOST_OF_CONNECTION || self.waiting >= MOST_WAITING {
            tally.count_overflow();
            self.ready.push(reset);
            return None;
        }
        group.resets.push(reset);
        self.waiting += 1;
        Some(id)
    }

    /// The first reset of a connection; its number unless too many wait.
    fn begin(
        &mut self,
        connection: Connection,
        reset: Reset,
        now: Instant,
        deadline: Instant,
        tally: &Tally,
    ) -> Option<u64> {
        let process = process(&mut self.processes, reset.owner.as_ref(), now, &mut self.used);
        if process.groups.len() >= MOST_OF_PROCESS || self.waiting >= MOST_WAITING {
            tally.count_overflow();
            self.ready.push(reset);
            return None;
        }
        let id = self.next;
        self.next += 1;
        process.groups.push(id);
        self.by_connection.insert(connection, id);
        self.waiting += 1;
        let owner = reset.owner;
        let candidates = Candidates::default();
        let (resets, offered) = (vec![reset], now);
        let group = Group { resets, connection, owner, offered, deadline, candidates, in_flight: 0, verdict: None };
        self.groups.insert(id, group);
        Some(id)
    }

    /// Holds the spans that have passed of late against a connection's resets.
    fn look_back(&mut self, id: u64, limit: usize) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let owner = group.owner;
        for (pid, sender) in [(owner.map_or(0, |owner| owner.pid), owner), (0, None)] {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let sender = sender.map(|owner| Owner { start_boot_ns: process.start_boot_ns, ..owner });
            let complete = process.recent.visit(limit, &mut self.used, |seen| {
                group.hold_against(seen, sender.as_ref());
            });
            group.candidates.incomplete |= !complete && sender.is_some();
        }
    }

    fn conclude_if_certain(&mut self, id: u64, tally: &Tally) {
        if self.groups.get(&id).is_some_and(|group| group.candidates.best() == Fit::Certain) {
            self.conclude(id, tally);
        }
    }

    /// Says what is known by now: the resets of this connection are ready.
    fn conclude(&mut self, id: u64, tally: &Tally) {
        let decision = self.decide(id);
        let Some(group) = self.groups.get_mut(&id).filter(|group| group.verdict.is_none()) else { return };
        let trace = group.trace(&decision, false);
        tally.count(trace.as_ref(), group.resets.len());
        match trace {
            Some(trace) => {
                self.ready.extend(group.resets.iter().map(|reset| reset.with_trace(&trace)));
                group.verdict = Some(trace);
            }
            None => self.ready.extend(group.resets.iter().cloned()),
        }
    }

    fn decide(&self, id: u64) -> Decision {
        let Some(group) = self.groups.get(&id) else { return Decision::Nothing };
        let process = self.processes.get(&group.owner.map_or(0, |owner| owner.pid));
        let others = process.map_or(&[][..], |process| &process.groups).iter().filter(|other| **other != id);
        let others: Vec<&Group> = others.filter_map(|other| self.groups.get(other)).collect();
        group.candidates.decide(|span_id| others.iter().any(|other| group.contests(other, span_id)))
    }

    /// The spans that get this connection's events if they pass now, and the trace that is named then.
    fn targets(&self, id: u64, now: Instant) -> Option<(Trace, Vec<[u8; 8]>)> {
        let group = self.groups.get(&id)?;
        if group.verdict.as_ref().is_some_and(|verdict| !verdict.on_application_span) {
            return None;
        }
        let settled = now.saturating_duration_since(group.offered) >= SETTLED;
        let best = group.candidates.best();
        let ready = best == Fit::Certain || settled && best > Fit::Attempt;
        let decision = if ready { self.decide(id) } else { Decision::Nothing };
        let Decision::Own(spans) = &decision else { return None };
        let trace = group.trace(&decision, true)?;
        Some((trace, spans.iter().map(|(_, span_id)| *span_id).collect()))
    }

    fn groups_of(&self, sender: Option<&Owner>) -> Vec<u64> {
        match sender {
            Some(sender) => self.processes.get(&sender.pid).map(|process| process.groups.clone()).unwrap_or_default(),
            None => self.groups.keys().copied().collect(),
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.waiting -= group.resets.len();
        self.by_connection.remove(&group.connection);
        let pid = group.owner.map_or(0, |owner| owner.pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.groups.retain(|other| *other != id);
        for other in &process.groups {
            let Some(other) = self.groups.get_mut(other) else { continue };
            let refused = other.is_attempt() && group.is_attempt();
            // What this connection claimed is not another's alone because this one has been judged before.
            other.candidates.incomplete |= !refused && group.candidates.shares_claim(&other.candidates);
        }
    }

    /// Lets go of requests that have been kept for long enough, and of processes that keep nothing.
    fn prune(&mut self, now: Instant) {
        let due = self.pruned.is_none_or(|pruned| now.saturating_duration_since(pruned) >= recent::KEPT);
        if !due {
            return;
        }
        self.pruned = Some(now);
        let used = &mut self.used;
        self.processes.retain(|_, process| {
            process.recent.forget(now, used);
            !process.groups.is_empty() || !process.recent.is_empty()
        });
    }
}
