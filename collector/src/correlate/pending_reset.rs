//! The resets of one connection while they wait: one outcome for all of them.

use std::{sync::Arc, time::Instant};

use crate::{
    correlate::{
        candidates::{Candidates, Decision},
        sender::Sender,
    },
    model::{Cause, Endpoint, Owner, Reset, Trace, TraceMethod},
};

/// The start in /proc is cut to the clock's tick of 10 ms; a pid is not used again so soon.
pub(crate) const START_TICK_NS: u64 = 20_000_000;

/// Network namespace, this host's end, the other end.
pub(crate) type Connection = (Option<u32>, Endpoint, Endpoint);

/// The resets of one connection: one outcome.
#[derive(Debug)]
pub(crate) struct PendingReset {
    pub(crate) resets: Vec<Arc<Reset>>,
    pub(crate) connection: Connection,
    pub(crate) owner: Option<Owner>,
    pub(crate) offered: Instant,
    pub(crate) deadline: Instant,
    pub(crate) candidates: Candidates,
    /// Every span of the owner's that ended near the resets has passed.
    pub(crate) passed: bool,
    /// Requests with this connection's events that the backend has not answered.
    pub(crate) in_flight: u32,
    /// Searches of the span history that have not ended.
    pub(crate) searches: u32,
    /// Decided already; spans that come still get the event where the first did.
    pub(crate) decided: Option<Trace>,
}

impl Reset {
    pub(crate) fn with_trace(&self, trace: &Trace) -> Self {
        Self { trace: Some(trace.clone()), ..self.clone() }
    }
}

impl PendingReset {
    /// Nothing that was begun for it has yet to end.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight == 0 && self.searches == 0
    }

    /// Whether the spans of this sender are compared with it.
    pub(crate) fn may_be_of(&self, sender: &Sender) -> bool {
        sender.process().is_none_or(|sender| self.owner.is_none_or(|owner| owner.pid == sender.pid))
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
