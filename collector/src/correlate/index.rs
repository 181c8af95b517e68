//! Which pending resets a span is compared with: found by what both name, so that the work of a request grows with its
//! matches and not with spans times resets.
//!
//! Each lookup is the necessary condition of one branch of [`matching::strength`]; a span that shares no key with a reset
//! cannot match it. A budget bounds what is left, as where every span of a request fails against one server.

use std::{collections::HashMap, ops::Range, sync::Arc};

use crate::{
    correlate::{
        candidates::Candidates,
        failure::Failure,
        matching::{self, MatchStrength},
        pending_reset::PendingReset,
        sender::Sender,
        span_info::{Host, SpanInfo, SpanSide},
    },
    model::{Cause, Endpoint, Owner, Reset},
};

/// What a span and a reset both name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// The trace id that was read from the connection.
    Trace([u8; 16]),
    /// Both ends, this host's first.
    Ends(Endpoint, Endpoint),
    /// The other end.
    Peer(Endpoint),
    /// The port of this end.
    LocalPort(u16),
    /// The port of the other end; `None` matches every port.
    PeerPort(Option<u16>),
    /// The same of resets that refused a connection attempt.
    RefusedPort(Option<u16>),
    /// The same of resets that answered data after this end's close.
    ClosedPort(Option<u16>),
    /// The other end of such a reset.
    ClosedPeer(Endpoint),
    /// Any reset of the process.
    Any,
}

/// The comparisons that one request may make.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
    /// Comparisons made.
    pub(crate) used: usize,
    /// Some were not made.
    pub(crate) exceeded: bool,
}

impl Budget {
    pub(crate) fn new(comparisons: usize) -> Self {
        Self { left: comparisons, used: 0, exceeded: false }
    }

    /// Takes the comparisons of one span with the resets of one connection.
    fn take(&mut self, comparisons: usize) -> bool {
        if comparisons > self.left {
            self.exceeded = true;
            return false;
        }
        self.left -= comparisons;
        self.used += comparisons;
        true
    }
}

/// The pending resets of one connection while a request is compared with them, apart from the correlator's state.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) id: u64,
    resets: Vec<Arc<Reset>>,
    owner: Option<Owner>,
    /// The spans that match.
    pub(crate) candidates: Candidates,
    /// A span that ended well after the resets was seen, so that all that ended near them have been exported.
    pub(crate) passed: bool,
}

impl Comparison {
    pub(crate) fn new(id: u64, pending: &PendingReset) -> Self {
        Self {
            id,
            resets: pending.resets.clone(),
            owner: pending.owner,
            candidates: Candidates::new(false),
            passed: false,
        }
    }

    /// Compares one span with the resets and notes it where it matches; `false` where the budget is spent.
    pub(crate) fn compare(&mut self, span: &SpanInfo, sender: &Sender, budget: &mut Budget) -> bool {
        if !budget.take(self.resets.len()) {
            return false;
        }
        let owner = self.owner.as_ref();
        let claimable = self.resets.iter().filter(|reset| sender.may_claim(reset, owner));
        let named_only = sender.process().is_none();
        let strengths = claimable.map(|reset| {
            if named_only { matching::strength_of_named(span, reset) } else { matching::strength(span, reset) }
        });
        let strength = strengths.max().unwrap_or(MatchStrength::No);
        if self.is_own(sender) {
            self.candidates.incomplete |= self.resets.iter().any(|reset| matching::may_have_cancelled(span, reset));
        }
        self.candidates.note(span, strength);
        true
    }

    /// The same, and whether the span ended well after the resets: for spans that are not compared through an index.
    pub(crate) fn compare_all(&mut self, span: &SpanInfo, sender: &Sender, budget: &mut Budget) -> bool {
        if self.is_own(sender) {
            self.passed |= self.resets.iter().all(|reset| matching::ends_well_after(span, reset));
        }
        self.compare(span, sender, budget)
    }

    /// Resets compared with.
    pub(crate) fn len(&self) -> usize {
        self.resets.len()
    }

    fn is_own(&self, sender: &Sender) -> bool {
        sender.process().is_some() && self.owner.as_ref().is_some_and(|owner| sender.is_process(owner))
    }

    /// The ends, ns since 1970, of spans that ended well after every one of the resets.
    fn well_after(&self) -> Range<u64> {
        let ranges = self.resets.iter().map(|reset| matching::well_after(reset));
        ranges.reduce(|one, other| one.start.max(other.start)..one.end.min(other.end)).unwrap_or_default()
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.resets.iter().flat_map(|reset| keys_of_reset(reset))
    }
}

/// The pending resets that spans of one process are compared with.
#[derive(Debug)]
pub(crate) struct Comparisons {
    all: Vec<Comparison>,
    by_key: HashMap<Key, Vec<usize>>,
    /// Starts of [`Comparison::well_after`], ascending, each with its comparison.
    starts: Vec<(u64, usize)>,
    /// The earliest end of a span that came after this many of them.
    earliest_end: Vec<u64>,
    found: Vec<usize>,
}

impl Comparisons {
    pub(crate) fn new(all: Vec<Comparison>) -> Self {
        let mut by_key: HashMap<Key, Vec<usize>> = HashMap::new();
        for (index, comparison) in all.iter().enumerate() {
            for key in comparison.keys() {
                let indexes = by_key.entry(key).or_default();
                // The resets of one connection share most keys and come one after the other.
                if indexes.last() != Some(&index) {
                    indexes.push(index);
                }
            }
        }
        let mut starts: Vec<_> =
            all.iter().enumerate().map(|(index, comparison)| (comparison.well_after().start, index)).collect();
        starts.sort_unstable();
        let earliest_end = vec![u64::MAX; all.len() + 1];
        Self { all, by_key, starts, earliest_end, found: Vec::new() }
    }

    /// Compares a span with the resets that it may match; `false` where the budget is spent.
    pub(crate) fn compare(&mut self, span: &SpanInfo, sender: &Sender, budget: &mut Budget) -> bool {
        let ended_before = self.starts.partition_point(|(start, _)| *start <= span.end_unix_ns);
        let earliest = &mut self.earliest_end[ended_before];
        *earliest = span.end_unix_ns.min(*earliest);
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        for_each_key(span, |key| found.extend(self.by_key.get(&key).into_iter().flatten()));
        found.sort_unstable();
        found.dedup();
        let compared = found.iter().all(|index| self.all[*index].compare(span, sender, budget));
        self.found = found;
        compared
    }

    /// The comparisons, each with what was found.
    pub(crate) fn finish(mut self, sender: &Sender) -> Vec<Comparison> {
        let mut earliest = u64::MAX;
        for (rank, (_, index)) in self.starts.iter().enumerate().rev() {
            earliest = earliest.min(self.earliest_end[rank + 1]);
            let comparison = &mut self.all[*index];
            comparison.passed |= comparison.is_own(sender) && comparison.well_after().contains(&earliest);
        }
        self.all
    }
}

fn keys_of_reset(reset: &Reset) -> Vec<Key> {
    let (local, peer) = (reset.local, reset.peer);
    let mut keys = vec![Key::Ends(local, peer), Key::Peer(peer), Key::LocalPort(local.port), Key::Any];
    let mut ports = |key: fn(Option<u16>) -> Key| keys.extend([key(Some(peer.port)), key(None)]);
    ports(Key::PeerPort);
    match reset.cause {
        Cause::RefusedByPeer => ports(Key::RefusedPort),
        Cause::DataAfterClose => {
            ports(Key::ClosedPort);
            keys.push(Key::ClosedPeer(peer));
        }
        _ => {}
    }
    keys.extend(reset.trace.as_ref().map(|trace| Key::Trace(trace.trace_id)));
    keys
}

/// The keys of every reset that a span may match.
fn for_each_key(span: &SpanInfo, mut found: impl FnMut(Key)) {
    found(Key::Trace(span.trace_id));
    if let Some((local, peer)) = span.connection {
        found(Key::Ends(local, peer));
        // Of a server's span the ends are its own only where its port is; see `matching::strength`.
        if span.side == SpanSide::Client {
            return may_have_cancelled(span, found);
        }
    }
    let failed = !matches!(span.failure, Failure::None | Failure::ErrorResponse);
    match (span.side, span.peer) {
        (SpanSide::Neither, _) => {}
        (SpanSide::Server, Some(peer)) => found(Key::Peer(peer)),
        (SpanSide::Server, None) if failed => found(span.server.port.map_or(Key::Any, Key::LocalPort)),
        (SpanSide::Server, None) => {}
        (SpanSide::Client, Some(peer)) if failed => {
            found(Key::Peer(peer));
            found(Key::RefusedPort(span.server.port));
        }
        (SpanSide::Client, None) if failed => found(Key::PeerPort(span.server.port)),
        (SpanSide::Client, _) => {
            if span.failure == Failure::None && span.server.host == Host::Loopback && span.server.port.is_some() {
                found(Key::RefusedPort(span.server.port));
            }
            may_have_cancelled(span, found);
        }
    }
}

/// The keys for [`matching::may_have_cancelled`].
fn may_have_cancelled(span: &SpanInfo, mut found: impl FnMut(Key)) {
    if span.side == SpanSide::Client && span.failure == Failure::None {
        found(span.peer.map_or(Key::ClosedPort(span.server.port), Key::ClosedPeer));
    }
}

/// What a span of a sender without a known process must name of a connection, see [`matching::strength_of_named`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NamedKey {
    /// The trace id that was read from the connection.
    Trace([u8; 16]),
    /// The port of this end, and the other end.
    Ends(u16, Endpoint),
}

impl NamedKey {
    pub(crate) fn of_reset(reset: &Reset) -> [Option<Self>; 2] {
        let trace = reset.trace.as_ref().map(|trace| Self::Trace(trace.trace_id));
        [trace, Some(Self::Ends(reset.local.port, reset.peer))]
    }

    pub(crate) fn of_span(span: &SpanInfo) -> [Option<Self>; 3] {
        let server = span.side == SpanSide::Server;
        let ends = span.server.port.filter(|_| server).zip(span.peer);
        [
            Some(Self::Trace(span.trace_id)),
            ends.map(|(port, peer)| Self::Ends(port, peer)),
            span.connection.map(|(local, peer)| Self::Ends(local.port, peer)),
        ]
    }
}
