//! Who waits, and what has passed of late: the state that the correlator locks.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::{
    correlate::{
        candidates::{Candidates, Decision, SpanKey},
        matching::Fit,
        metrics::Tally,
        pending_reset::{Connection, Group, START_TICK_NS},
        span_history::{self, Recent},
    },
    model::{Owner, Reset, Trace},
};

/// Resets that wait at most; one more goes out at once.
pub const MOST_WAITING: usize = 16_384;
/// Connections of one process whose resets wait at most.
const MOST_OF_PROCESS: usize = 256;
/// Resets of one connection that wait at most.
const MOST_OF_CONNECTION: usize = 16;
/// Processes whose requests are kept at most; the one that has sent nothing for longest goes.
const MOST_PROCESSES: usize = 256;
/// Two resets that happened together have both been read after this time: the reader looks every 20 ms, and waits a
/// quarter of a second at most for a process that hangs.
const SETTLED: Duration = Duration::from_millis(300);
/// For how long a reset that did not wait makes spans doubtful: a call may end this long after its reset was read.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The resets that wait, by number, connection and process.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) next: u64,
    /// By number, which is the order of their deadlines.
    pub(crate) groups: BTreeMap<u64, Group>,
    pub(crate) by_connection: HashMap<Connection, u64>,
    /// By pid; 0 are the senders whose process is not known.
    pub(crate) processes: HashMap<u32, Process>,
    pub(crate) waiting: usize,
    /// Bytes of requests kept.
    pub(crate) used: usize,
    pub(crate) ready: Vec<Reset>,
    pub(crate) pruned: Option<Instant>,
}

/// A process that has sent spans or has a reset waiting.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) start_boot_ns: u64,
    pub(crate) groups: Vec<u64>,
    pub(crate) recent: Recent,
    pub(crate) used: Instant,
    /// When a reset of its went out without waiting.
    pub(crate) overflowed: Option<Instant>,
}

/// The process of a sender, new where it has not been heard of.
pub(crate) fn process<'a>(
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
        overflowed: None,
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
    pub(crate) fn join(&mut self, id: u64, mut reset: Reset, tally: &Tally) -> Option<u64> {
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
    pub(crate) fn begin(
        &mut self,
        connection: Connection,
        reset: Reset,
        now: Instant,
        deadline: Instant,
        tally: &Tally,
    ) -> Option<u64> {
        let process = process(&mut self.processes, reset.owner.as_ref(), now, &mut self.used);
        if process.groups.len() >= MOST_OF_PROCESS || self.waiting >= MOST_WAITING {
            process.overflowed = Some(now);
            for id in &process.groups {
                if let Some(group) = self.groups.get_mut(id) {
                    group.candidates.incomplete = true;
                }
            }
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
        // A span may be that of a reset which went out unseen.
        let incomplete = process.overflowed.is_some_and(|at| now.saturating_duration_since(at) <= FORGOTTEN);
        let candidates = Candidates::new(incomplete);
        let (resets, offered, passed) = (vec![reset], now, false);
        let group =
            Group { resets, connection, owner, offered, deadline, candidates, passed, in_flight: 0, verdict: None };
        self.groups.insert(id, group);
        Some(id)
    }

    /// Holds the spans that have passed of late against a connection's resets.
    pub(crate) fn look_back(&mut self, id: u64, limit: usize) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let owner = group.owner;
        let closed = group.resets.iter().filter_map(|reset| reset.connection.closed_ns).max();
        let back = span_history::LOOKED_BACK.saturating_add(Duration::from_nanos(closed.unwrap_or(0)));
        // What passed in that time may not be kept any more.
        group.candidates.incomplete |= back > span_history::KEPT;
        let since = group.offered.checked_sub(back).unwrap_or(group.offered);
        for (pid, sender) in [(owner.map_or(0, |owner| owner.pid), owner), (0, None)] {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let sender = sender.map(|owner| Owner { start_boot_ns: process.start_boot_ns, ..owner });
            let complete = process.recent.visit(since, limit, &mut self.used, |seen| {
                group.hold_against(seen, sender.as_ref());
            });
            group.candidates.incomplete |= !complete && sender.is_some();
        }
    }

    pub(crate) fn conclude_if_certain(&mut self, id: u64, tally: &Tally) {
        if self.groups.get(&id).is_some_and(|group| group.candidates.best() == Fit::Certain) {
            self.conclude(id, tally);
        }
    }

    /// Says what is known by now: the resets of this connection are ready.
    pub(crate) fn conclude(&mut self, id: u64, tally: &Tally) {
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

    pub(crate) fn decide(&self, id: u64) -> Decision {
        let Some(group) = self.groups.get(&id) else { return Decision::Nothing };
        let process = self.processes.get(&group.owner.map_or(0, |owner| owner.pid));
        let others = process.map_or(&[][..], |process| &process.groups).iter().filter(|other| **other != id);
        let others: Vec<&Group> = others.filter_map(|other| self.groups.get(other)).collect();
        group.candidates.decide(|span_id| others.iter().any(|other| group.contests(other, span_id)))
    }

    /// The spans that get this connection's events if they pass now, and the trace that is named then.
    pub(crate) fn targets(&self, id: u64, now: Instant) -> Option<(Trace, Vec<SpanKey>)> {
        let group = self.groups.get(&id)?;
        if group.verdict.as_ref().is_some_and(|verdict| !verdict.on_application_span) {
            return None;
        }
        let best = group.candidates.best();
        // Its span's own reset, if that was another, happened before the span's end.
        let first = group.resets.iter().map(|reset| reset.time_unix_ns).min().unwrap_or_default();
        let longer = Duration::from_nanos(group.candidates.last_end().saturating_sub(first));
        let settled = now.saturating_duration_since(group.offered) >= SETTLED.saturating_add(longer);
        let ready = match best {
            Fit::Certain => true,
            Fit::Late | Fit::Failed => settled,
            // Another that fits as well may be in the SDK's next batch.
            Fit::Likely => settled && group.passed,
            Fit::Suspect | Fit::Attempt | Fit::No => false,
        };
        let decision = if ready { self.decide(id) } else { Decision::Nothing };
        let trace = group.trace(&decision, true)?;
        let Decision::Own(spans) = decision else { return None };
        Some((trace, spans))
    }

    /// The connections whose resets a sender's spans are held against: its own, and those of which only the context is
    /// known; of an unknown sender all.
    pub(crate) fn groups_of(&self, sender: Option<&Owner>) -> Vec<u64> {
        let groups = |pid: u32| self.processes.get(&pid).map_or(&[][..], |process| &process.groups);
        match sender {
            Some(sender) => groups(sender.pid).iter().chain(groups(0)).copied().collect(),
            None => self.groups.keys().copied().collect(),
        }
    }

    pub(crate) fn has_groups_of(&self, sender: Option<&Owner>) -> bool {
        let has = |pid: u32| self.processes.get(&pid).is_some_and(|process| !process.groups.is_empty());
        sender.map_or(!self.groups.is_empty(), |sender| has(sender.pid) || has(0))
    }

    pub(crate) fn remove(&mut self, id: u64) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.waiting -= group.resets.len();
        self.by_connection.remove(&group.connection);
        let pid = group.owner.map_or(0, |owner| owner.pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.groups.retain(|other| *other != id);
        for other in &process.groups {
            let Some(other) = self.groups.get_mut(other) else { continue };
            let own = group.is_other_attempt(other);
            // What this connection claimed is not another's alone because this one has been judged before.
            other.candidates.incomplete |= !own && group.candidates.shares_claim(&other.candidates);
        }
    }

    /// Lets go of requests that have been kept for long enough, and of processes that keep nothing.
    pub(crate) fn prune(&mut self, now: Instant) {
        let due = self.pruned.is_none_or(|pruned| now.saturating_duration_since(pruned) >= span_history::LOOKED_BACK);
        if !due {
            return;
        }
        self.pruned = Some(now);
        let used = &mut self.used;
        self.processes.retain(|_, process| {
            process.recent.forget(now, used);
            let overflowed = process.overflowed.is_some_and(|at| now.saturating_duration_since(at) <= FORGOTTEN);
            !process.groups.is_empty() || !process.recent.is_empty() || overflowed
        });
    }
}
