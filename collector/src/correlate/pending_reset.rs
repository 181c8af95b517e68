//! The resets of one connection while they wait: one fate for all of them.

use std::time::Instant;

use crate::{
    correlate::{
        candidates::{Candidates, Decision},
        matching::{self, Fit},
        span_info::Seen,
    },
    model::{Cause, Endpoint, Owner, Reset, Trace, TraceMethod},
};

/// The start in /proc is cut to the clock's tick of 10 ms; a pid is not used again so soon.
pub(crate) const START_TICK_NS: u64 = 20_000_000;

/// Network namespace, this host's end, the other end.
pub(crate) type Connection = (Option<u32>, Endpoint, Endpoint);

/// The resets of one connection: one fate.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) resets: Vec<Reset>,
    pub(crate) connection: Connection,
    pub(crate) owner: Option<Owner>,
    pub(crate) offered: Instant,
    pub(crate) deadline: Instant,
    pub(crate) candidates: Candidates,
    /// Every span of the owner's that ended near the resets has passed.
    pub(crate) passed: bool,
    /// Requests with this connection's events that the backend has not answered.
    pub(crate) in_flight: u32,
    /// Said already; spans that come still get the event where the first did.
    pub(crate) verdict: Option<Trace>,
}

impl Reset {
    pub(crate) fn with_trace(&self, trace: &Trace) -> Self {
        Self { trace: Some(trace.clone()), ..self.clone() }
    }
}

impl Group {
    /// Notes the span where it fits one of the resets, and says whether it does.
    pub(crate) fn hold_against(&mut self, seen: &Seen, sender: Option<&Owner>) -> bool {
        let fit = self.resets.iter().map(|reset| match (sender, self.owner) {
            (Some(sender), Some(owner)) if !same_process(sender, &owner) => Fit::No,
            (Some(_), _) => matching::fit(seen, reset),
            (None, _) => matching::fit_of_unknown_sender(seen, reset),
        });
        let fit = fit.max().unwrap_or(Fit::No);
        let own = sender.zip(self.owner).is_some_and(|(sender, owner)| same_process(sender, &owner));
        self.passed |= own && self.resets.iter().all(|reset| matching::ends_long_after(seen, reset));
        self.candidates.incomplete |= own && self.resets.iter().any(|reset| matching::may_have_left(seen, reset));
        self.candidates.note(seen, fit)
    }

    /// Whether another connection's reset claims this span as well: each failed call has one of its own.
    pub(crate) fn contests(&self, other: &Self, span_id: [u8; 8]) -> bool {
        other.candidates.claims(span_id) && !self.is_other_attempt(other)
    }

    /// One call tries the addresses of a name one after the other, and may be refused by each.
    pub(crate) fn is_other_attempt(&self, other: &Self) -> bool {
        let refused = |group: &Self| group.resets.iter().all(|reset| reset.cause == Cause::RefusedByPeer);
        refused(self) && refused(other) && self.connection.2.address != other.connection.2.address
    }

    /// The trace that a decision names; a context from the wire stays, with the span that it was found on.
    pub(crate) fn trace(&self, decision: &Decision, on_application_span: bool) -> Option<Trace> {
        let given = self.resets.iter().find_map(|reset| reset.trace.as_ref());
        let method = given.map_or(TraceMethod::Span, |given| given.method);
        let trace = |spans: &[([u8; 16], [u8; 8])], method| {
            let (first, rest) = spans.split_first()?;
            let span_id = Some(first.1);
            Some(Trace {
                trace_id: first.0,
                span_id,
                method,
                on_application_span,
                incoming: false,
                candidates: rest.to_vec(),
            })
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
