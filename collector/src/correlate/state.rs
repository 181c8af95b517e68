//! The correlator's state: pending resets, and the requests that have just passed. One lock guards it; nothing here
//! reads spans or grows with their number.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    correlate::{
        candidates::{Candidates, Decision, SpanKey},
        index::{Comparison, NamedKey},
        matching::MatchStrength,
        metrics::Stats,
        pending_reset::{Connection, PendingReset, START_TICK_NS},
        sender::Sender,
        span_history::{HISTORY_WINDOW, KeptRequest, KeptSpans, RETENTION, SpanHistory, Totals},
    },
    model::{Owner, Reset, Trace},
};

/// Maximum resets that wait; one more goes out at once.
pub const MAX_PENDING: usize = 16_384;
/// Maximum connections of one process whose resets wait.
const MAX_PENDING_OF_PROCESS: usize = 256;
/// Maximum resets of one connection that wait.
const MAX_PENDING_OF_CONNECTION: usize = 16;
/// Maximum processes whose requests are kept; the one that has sent nothing for longest goes.
const MAX_PROCESSES: usize = 256;
/// Two resets that happened together have both been read after this time: the reader reads every 20 ms, and waits for a
/// quarter of a second at most for a process that hangs.
const SETTLE_DELAY: Duration = Duration::from_millis(300);
/// How long a reset that did not wait makes spans doubtful: a call may end this long after its reset was read.
const OVERFLOW_WINDOW: Duration = Duration::from_secs(10);

/// The pending resets, by number, connection and process.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) next: u64,
    /// By number, which is the order of their deadlines.
    pub(crate) pending: BTreeMap<u64, PendingReset>,
    pub(crate) by_connection: HashMap<Connection, u64>,
    by_name: HashMap<NamedKey, Vec<u64>>,
    /// By pid; 0 are the senders whose process is not known.
    processes: HashMap<u32, Process>,
    waiting: usize,
    totals: Totals,
    pub(crate) ready: Vec<Reset>,
    pruned: Option<Instant>,
    /// Pending resets whose spans may have passed already.
    pub(crate) searches: VecDeque<u64>,
}

/// A process that has sent spans or has a reset waiting.
#[derive(Debug)]
struct Process {
    start_boot_ns: u64,
    pending: Vec<u64>,
    history: SpanHistory,
    used: Instant,
    /// When a reset of its went out without waiting.
    overflowed: Option<Instant>,
}

/// What a pending reset is to be compared with, of the spans that have passed.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) comparison: Comparison,
    /// Each with the pid that it is kept under.
    pub(crate) requests: Vec<(u32, KeptRequest)>,
}

/// Spans that a pending reset claims, each with those resets.
#[derive(Debug, Default)]
pub(crate) struct Claims(HashMap<[u8; 8], Vec<u64>>);

/// The process of a sender, new where it is not known.
fn process<'a>(
    processes: &'a mut HashMap<u32, Process>,
    sender: Option<&Owner>,
    now: Instant,
    totals: &mut Totals,
) -> &'a mut Process {
    let (pid, start_boot_ns) = sender.map_or((0, 0), |sender| (sender.pid, sender.start_boot_ns));
    if !processes.contains_key(&pid) && processes.len() >= MAX_PROCESSES {
        let idle = processes.iter().filter(|(_, process)| process.pending.is_empty());
        let oldest = idle.min_by_key(|(_, process)| process.used).map(|(pid, _)| *pid);
        if let Some(mut oldest) = oldest.and_then(|pid| processes.remove(&pid)) {
            oldest.history.clear(totals);
        }
    }
    let process = processes.entry(pid).or_insert_with(|| Process {
        start_boot_ns,
        pending: Vec::new(),
        history: SpanHistory::default(),
        used: now,
        overflowed: None,
    });
    if process.start_boot_ns != start_boot_ns && start_boot_ns != 0 {
        // The pid of an old process, used again; or the same start, known better.
        if process.start_boot_ns.abs_diff(start_boot_ns) > START_TICK_NS {
            process.history.clear(totals);
        }
        process.start_boot_ns = start_boot_ns;
    }
    process.used = now;
    process
}

impl State {
    /// Adds another reset of a connection that waits or is decided; its number if it waits.
    pub(crate) fn merge(&mut self, id: u64, mut reset: Reset, stats: &Stats) -> Option<u64> {
        let pending = self.pending.get_mut(&id)?;
        if let Some(decided) = &pending.decided {
            let trace = Trace { on_application_span: false, ..decided.clone() };
            reset.trace.get_or_insert(trace);
            stats.count_passed(1);
            self.ready.push(reset);
            return None;
        }
        if pending.resets.len() >= MAX_PENDING_OF_CONNECTION || self.waiting >= MAX_PENDING {
            stats.count_overflow();
            self.ready.push(reset);
            return None;
        }
        index_names(&mut self.by_name, &reset, id);
        pending.resets.push(Arc::new(reset));
        self.waiting += 1;
        Some(id)
    }

    /// Adds the first reset of a connection; its number unless too many wait.
    pub(crate) fn begin(
        &mut self,
        connection: Connection,
        reset: Reset,
        now: Instant,
        deadline: Instant,
        stats: &Stats,
    ) -> Option<u64> {
        let process = process(&mut self.processes, reset.owner.as_ref(), now, &mut self.totals);
        if process.pending.len() >= MAX_PENDING_OF_PROCESS || self.waiting >= MAX_PENDING {
            process.overflowed = Some(now);
            for id in &process.pending {
                if let Some(pending) = self.pending.get_mut(id) {
                    pending.candidates.incomplete = true;
                }
            }
            stats.count_overflow();
            self.ready.push(reset);
            return None;
        }
        let id = self.next;
        self.next += 1;
        process.pending.push(id);
        self.by_connection.insert(connection, id);
        index_names(&mut self.by_name, &reset, id);
        self.waiting += 1;
        // A span may be that of a reset which went out without waiting.
        let incomplete = process.overflowed.is_some_and(|at| now.saturating_duration_since(at) <= OVERFLOW_WINDOW);
        let pending = PendingReset {
            owner: reset.owner,
            resets: vec![Arc::new(reset)],
            connection,
            offered: now,
            deadline,
            candidates: Candidates::new(incomplete),
            passed: false,
            in_flight: 0,
            searches: 0,
            decided: None,
        };
        self.pending.insert(id, pending);
        Some(id)
    }

    /// The requests that a pending reset must be compared with, where there are any.
    pub(crate) fn search(&mut self, id: u64) -> Option<Search> {
        let pending = self.pending.get_mut(&id)?;
        let owner = pending.owner;
        let closed = pending.resets.iter().filter_map(|reset| reset.connection.closed_ns).max();
        let back = HISTORY_WINDOW.saturating_add(Duration::from_nanos(closed.unwrap_or(0)));
        // What passed in that time may have been dropped.
        pending.candidates.incomplete |= back > RETENTION;
        let since = pending.offered.checked_sub(back).unwrap_or(pending.offered);
        let mut requests = Vec::new();
        for (pid, owner) in [(owner.map_or(0, |owner| owner.pid), owner), (0, None)] {
            let Some(process) = self.processes.get(&pid) else { continue };
            let (kept, complete) = process.history.since(since);
            let own = owner.map(|owner| Sender::Process(Owner { start_boot_ns: process.start_boot_ns, ..owner }));
            requests.extend(kept.map(|request| (pid, request.from(own))));
            pending.candidates.incomplete |= !complete && owner.is_some();
        }
        let comparison = Comparison::new(id, pending);
        (!requests.is_empty()).then_some(Search { comparison, requests })
    }

    /// Takes in what a comparison found; the number of the connection where it has had more resets since.
    pub(crate) fn apply(&mut self, comparison: Comparison) -> Option<u64> {
        let pending = self.pending.get_mut(&comparison.id)?;
        let (id, grown) = (comparison.id, pending.resets.len() > comparison.len());
        pending.passed |= comparison.passed;
        pending.candidates.merge(comparison.candidates);
        grown.then_some(id)
    }

    /// Puts the spans of an opened request in the place of its bytes.
    pub(crate) fn replace(&mut self, pid: u32, number: u64, spans: KeptSpans) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.history.replace(number, spans, &mut self.totals);
        }
    }

    /// Keeps what a sender sent.
    pub(crate) fn keep(&mut self, sender: &Sender, now: Instant, keep: impl FnOnce(&mut SpanHistory, &mut Totals)) {
        let process = process(&mut self.processes, sender.process(), now, &mut self.totals);
        keep(&mut process.history, &mut self.totals);
    }

    pub(crate) fn decide_if_certain(&mut self, id: u64, stats: &Stats) {
        if self.pending.get(&id).is_some_and(|pending| pending.candidates.best() == MatchStrength::Certain) {
            self.decide(id, &Claims::default(), stats);
        }
    }

    /// Decides by what is known by now: the resets of this connection are ready.
    pub(crate) fn decide(&mut self, id: u64, claims: &Claims, stats: &Stats) {
        let decision = self.decision(id, claims);
        let Some(pending) = self.pending.get_mut(&id).filter(|pending| pending.decided.is_none()) else { return };
        let trace = pending.trace(&decision, false);
        stats.count(trace.as_ref(), pending.resets.len());
        match trace {
            Some(trace) => {
                self.ready.extend(pending.resets.iter().map(|reset| reset.with_trace(&trace)));
                pending.decided = Some(trace);
            }
            None => self.ready.extend(pending.resets.iter().map(|reset| Reset::clone(reset))),
        }
    }

    fn decision(&self, id: u64, claims: &Claims) -> Decision {
        let Some(pending) = self.pending.get(&id) else { return Decision::Nothing };
        let contests =
            |other: &u64| *other != id && self.pending.get(other).is_some_and(|other| !pending.is_other_attempt(other));
        pending.candidates.decide(|span_id| claims.of(span_id).any(contests))
    }

    /// The spans that get this connection's events if they pass now, and the trace that is named then.
    pub(crate) fn targets(&self, id: u64, claims: &Claims, now: Instant) -> Option<(Trace, Vec<SpanKey>)> {
        let pending = self.pending.get(&id)?;
        if pending.decided.as_ref().is_some_and(|decided| !decided.on_application_span) {
            return None;
        }
        // Its span's own reset, if that was another, happened before the span's end.
        let first = pending.resets.iter().map(|reset| reset.time_unix_ns).min().unwrap_or_default();
        let longer = Duration::from_nanos(pending.candidates.last_end().saturating_sub(first));
        let settled = now.saturating_duration_since(pending.offered) >= SETTLE_DELAY.saturating_add(longer);
        let ready = match pending.candidates.best() {
            MatchStrength::Certain => true,
            MatchStrength::Late | MatchStrength::Failed => settled,
            // Another that matches as well may be in the SDK's next batch.
            MatchStrength::Probable => settled && pending.passed,
            MatchStrength::Possible | MatchStrength::Attempt | MatchStrength::No => false,
        };
        let decision = if ready { self.decision(id, claims) } else { Decision::Nothing };
        let trace = pending.trace(&decision, true)?;
        let Decision::Own(spans) = decision else { return None };
        Some((trace, spans))
    }

    /// The connections whose resets a process's spans are compared with: its own, and those of which only the context is
    /// known.
    pub(crate) fn pending_of(&self, sender: &Owner) -> impl Iterator<Item = u64> {
        let of = |pid: u32| self.processes.get(&pid).map_or(&[][..], |process| &process.pending);
        of(sender.pid).iter().chain(of(0)).copied()
    }

    /// The connections that a span names; for senders whose process is not known.
    pub(crate) fn pending_named(&self, key: &NamedKey) -> &[u64] {
        self.by_name.get(key).map_or(&[][..], |ids| ids)
    }

    pub(crate) fn has_pending_of(&self, sender: &Sender) -> bool {
        match sender {
            Sender::Process(sender) => self.pending_of(sender).next().is_some(),
            Sender::Unattributed => false,
            Sender::ForeignPid { .. } | Sender::Translated { .. } | Sender::Remote => !self.pending.is_empty(),
        }
    }

    /// No other span can be said to be the only one of the process's resets.
    pub(crate) fn mark_incomplete(&mut self, sender: &Sender) {
        let Some(owner) = sender.process() else { return };
        for id in self.pending_of(owner).collect::<Vec<_>>() {
            if let Some(pending) = self.pending.get_mut(&id) {
                pending.candidates.incomplete = true;
            }
        }
    }

    /// The spans that pending resets of these connections' processes claim.
    pub(crate) fn claims(&self, ids: &[u64]) -> Claims {
        let mut claims = Claims::default();
        let of = |id: &u64| self.pending.get(id).map(|pending| pending.owner.map_or(0, |owner| owner.pid));
        let pids: HashSet<u32> = ids.iter().filter_map(of).collect();
        for id in pids.iter().filter_map(|pid| self.processes.get(pid)).flat_map(|process| &process.pending) {
            let claimed = self.pending.get(id).into_iter().flat_map(|pending| pending.candidates.claimed());
            claimed.for_each(|span_id| claims.0.entry(span_id).or_default().push(*id));
        }
        claims
    }

    /// Removes a connection. What it claimed is not another's alone because this one has been decided before.
    pub(crate) fn remove(&mut self, id: u64, claims: &Claims) {
        let Some(removed) = self.pending.remove(&id) else { return };
        self.waiting -= removed.resets.len();
        self.by_connection.remove(&removed.connection);
        for key in removed.resets.iter().flat_map(|reset| NamedKey::of_reset(reset)).flatten() {
            if let Some(ids) = self.by_name.get_mut(&key) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_name.remove(&key);
                }
            }
        }
        let pid = removed.owner.map_or(0, |owner| owner.pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.pending.retain(|other| *other != id);
        for other in removed.candidates.claimed().flat_map(|span_id| claims.of(span_id)) {
            let Some(other) = self.pending.get_mut(other) else { continue };
            other.candidates.incomplete |= !removed.is_other_attempt(other);
        }
    }

    /// Drops requests that have been kept for long enough, and processes that keep nothing.
    pub(crate) fn prune(&mut self, now: Instant) {
        let due = self.pruned.is_none_or(|pruned| now.saturating_duration_since(pruned) >= HISTORY_WINDOW);
        if !due {
            return;
        }
        self.pruned = Some(now);
        let totals = &mut self.totals;
        self.processes.retain(|_, process| {
            process.history.prune(now, totals);
            let overflowed = process.overflowed.is_some_and(|at| now.saturating_duration_since(at) <= OVERFLOW_WINDOW);
            !process.pending.is_empty() || !process.history.is_empty() || overflowed
        });
    }
}

impl Claims {
    fn of(&self, span_id: [u8; 8]) -> impl Iterator<Item = &u64> {
        self.0.get(&span_id).into_iter().flatten()
    }
}

fn index_names(by_name: &mut HashMap<NamedKey, Vec<u64>>, reset: &Reset, id: u64) {
    for key in NamedKey::of_reset(reset).into_iter().flatten() {
        let ids = by_name.entry(key).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
}
