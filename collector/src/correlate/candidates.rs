//! The spans that fit the resets of one connection, and what follows from there being one, several or none.

use crate::correlate::{
    matching::Fit,
    span_info::{Role, Seen},
};

/// Spans kept at most; with more, only a span that names the connection is taken.
const MOST: usize = 32;
/// Spans that an ambiguous reset links to at most.
const MOST_NAMED: usize = 8;

/// A span by its trace id and span id.
pub(crate) type SpanKey = ([u8; 16], [u8; 8]);

/// The spans that fit.
#[derive(Debug)]
pub(crate) struct Candidates {
    spans: Vec<Candidate>,
    /// Spans may have passed unseen, or one is claimed by another connection: none can be said to be the only one.
    pub(crate) incomplete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: SpanKey,
    parent: [u8; 8],
    start_unix_ns: u64,
    end_unix_ns: u64,
    role: Role,
    multiplexed: bool,
    fit: Fit,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// These, all of them; first the one that is named.
    Own(Vec<SpanKey>),
    /// One of these.
    Ambiguous(Vec<SpanKey>),
    /// None.
    Nothing,
}

impl Candidates {
    /// None yet; `incomplete` where some may have passed unseen already.
    pub(crate) fn new(incomplete: bool) -> Self {
        Self { spans: Vec::new(), incomplete }
    }

    /// Notes a span where it fits, and says whether it does. A span that is sent again counts once.
    pub(crate) fn note(&mut self, seen: &Seen, fit: Fit) -> bool {
        if fit == Fit::No {
            return false;
        }
        let key = (seen.trace_id, seen.span_id);
        if let Some(known) = self.spans.iter_mut().find(|span| span.key == key) {
            known.fit = known.fit.max(fit);
            return true;
        }
        if self.spans.len() >= MOST {
            self.incomplete = true;
            // A stronger span must not be lost to weak ones.
            let Some(weaker) = self.spans.iter().position(|span| span.fit < fit) else { return false };
            self.spans.swap_remove(weaker);
        }
        self.spans.push(Candidate {
            key,
            parent: seen.parent_span_id,
            start_unix_ns: seen.start_unix_ns,
            end_unix_ns: seen.end_unix_ns,
            role: seen.role,
            multiplexed: seen.multiplexed,
            fit,
        });
        true
    }

    /// The strongest fit.
    pub(crate) fn best(&self) -> Fit {
        self.spans.iter().map(|span| span.fit).max().unwrap_or(Fit::No)
    }

    /// The end of the last span that fits best, ns since 1970.
    pub(crate) fn last_end(&self) -> u64 {
        let best = self.best();
        let ends = self.spans.iter().filter(|span| span.fit == best).map(|span| span.end_unix_ns);
        ends.max().unwrap_or_default()
    }

    /// Whether this span may be the one here: another connection cannot be said to have it then.
    pub(crate) fn claims(&self, span_id: [u8; 8]) -> bool {
        let disputable = (Fit::Suspect..=Fit::Failed).contains(&self.best());
        disputable && self.spans.iter().any(|span| span.key.1 == span_id && span.fit >= Fit::Suspect)
    }

    /// Whether both may have the same span.
    pub(crate) fn shares_claim(&self, other: &Self) -> bool {
        self.spans.iter().any(|span| self.claims(span.key.1) && other.claims(span.key.1))
    }

    /// What follows; `contested` says whether the reset of another connection claims a span.
    pub(crate) fn decide(&self, contested: impl Fn([u8; 8]) -> bool) -> Decision {
        let best = self.best();
        let rivals = self.spans.iter().filter(|span| span.fit >= weakest_rival(best));
        let mut spans: Vec<Candidate> = rivals.copied().collect();
        // The latest first: the innermost call.
        spans.sort_by_key(|span| std::cmp::Reverse(span.start_unix_ns));
        match best {
            Fit::No => Decision::Nothing,
            // All streams of an HTTP/2 connection died with it.
            Fit::Certain => Decision::Own(keys(&without_callers(&spans, |span| span.role == Role::Client))),
            // The request that ended last was the one on the connection.
            Fit::Late => Decision::Own(
                spans.iter().max_by_key(|span| span.end_unix_ns).map(|span| span.key).into_iter().collect(),
            ),
            Fit::Failed | Fit::Likely | Fit::Suspect | Fit::Attempt => {
                let spans = without_callers(&spans, |_| true);
                let [first, rest @ ..] = spans.as_slice() else { return Decision::Nothing };
                // Calls that share connections and failed together with one connection were all on it.
                let alone = rest.is_empty()
                    || spans.iter().all(|span| span.multiplexed && span.fit == best && span.role == first.role);
                let undisputed = !self.incomplete && !spans.iter().any(|span| contested(span.key.1));
                if best != Fit::Suspect && alone && undisputed {
                    Decision::Own(keys(&spans))
                } else {
                    Decision::Ambiguous(keys(&spans[..spans.len().min(MOST_NAMED)]))
                }
            }
        }
    }
}

/// The weakest fit of a span that may be meant where this is the best.
fn weakest_rival(best: Fit) -> Fit {
    if best == Fit::Likely { Fit::Suspect } else { best }
}

fn keys(spans: &[Candidate]) -> Vec<SpanKey> {
    spans.iter().map(|span| span.key).collect()
}

/// An error goes up from a call to its caller's span: the call is meant.
fn without_callers(spans: &[Candidate], may_call: impl Fn(&Candidate) -> bool) -> Vec<Candidate> {
    let calls = |span: &Candidate| spans.iter().any(|other| other.parent == span.key.1 && other.key.0 == span.key.0);
    spans.iter().filter(|span| !(may_call(span) && calls(span))).copied().collect()
}
