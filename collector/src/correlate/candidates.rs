//! The spans that fit the resets of one connection, and what follows from there being one, several or none.

use crate::correlate::{
    matching::MatchStrength,
    span_info::{SpanInfo, SpanSide},
};

/// Spans kept at most; with more, only a span that names the connection is taken.
const MAX_CANDIDATES: usize = 32;
/// Spans that an ambiguous reset links to at most.
const MAX_AMBIGUOUS: usize = 8;

/// A span by its trace id and span id.
pub(crate) type SpanKey = ([u8; 16], [u8; 8]);

/// The key of a span by its ids as they are in a request.
pub(crate) fn span_key(trace_id: &[u8], span_id: &[u8]) -> Option<SpanKey> {
    Some((trace_id.try_into().ok()?, span_id.try_into().ok()?))
}

/// The spans that match.
#[derive(Debug)]
pub(crate) struct Candidates {
    spans: Vec<Candidate>,
    /// The strongest match.
    best: MatchStrength,
    /// Spans may have passed unseen, or one is claimed by another connection: none can be said to be the only one.
    pub(crate) incomplete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: SpanKey,
    parent: [u8; 8],
    start_unix_ns: u64,
    end_unix_ns: u64,
    side: SpanSide,
    multiplexed: bool,
    strength: MatchStrength,
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
        Self { spans: Vec::new(), best: MatchStrength::No, incomplete }
    }

    /// Notes a span where it fits, and says whether it does. A span that is sent again counts once.
    pub(crate) fn note(&mut self, span: &SpanInfo, strength: MatchStrength) -> bool {
        if strength == MatchStrength::No {
            return false;
        }
        self.insert(Candidate {
            key: (span.trace_id, span.span_id),
            parent: span.parent_span_id,
            start_unix_ns: span.start_unix_ns,
            end_unix_ns: span.end_unix_ns,
            side: span.side,
            multiplexed: span.multiplexed,
            strength,
        })
    }

    /// Adds the spans that were found apart from these.
    pub(crate) fn merge(&mut self, other: Self) {
        self.incomplete |= other.incomplete;
        other.spans.into_iter().for_each(|span| {
            self.insert(span);
        });
    }

    /// Nothing matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    fn insert(&mut self, candidate: Candidate) -> bool {
        if let Some(known) = self.spans.iter_mut().find(|span| span.key == candidate.key) {
            known.strength = known.strength.max(candidate.strength);
        } else {
            if self.spans.len() >= MAX_CANDIDATES {
                self.incomplete = true;
                // A stronger span must not be lost to weak ones.
                let Some(weaker) = self.spans.iter().position(|span| span.strength < candidate.strength) else {
                    return false;
                };
                self.spans.swap_remove(weaker);
            }
            self.spans.push(candidate);
        }
        self.best = self.spans.iter().map(|span| span.strength).max().unwrap_or(MatchStrength::No);
        true
    }

    /// The strongest match.
    pub(crate) fn best(&self) -> MatchStrength {
        self.best
    }

    /// The end of the last span that fits best, ns since 1970.
    pub(crate) fn last_end(&self) -> u64 {
        let best = self.best();
        let ends = self.spans.iter().filter(|span| span.strength == best).map(|span| span.end_unix_ns);
        ends.max().unwrap_or_default()
    }

    /// The ids of the spans that may be the one here: no other connection can be said to have them then.
    pub(crate) fn claimed(&self) -> impl Iterator<Item = [u8; 8]> {
        let disputable = (MatchStrength::Possible..=MatchStrength::Failed).contains(&self.best);
        let spans = self.spans.iter().filter(move |span| disputable && span.strength >= MatchStrength::Possible);
        spans.map(|span| span.key.1)
    }

    /// What follows; `contested` says whether the reset of another connection claims a span.
    pub(crate) fn decide(&self, contested: impl Fn([u8; 8]) -> bool) -> Decision {
        let best = self.best();
        let rivals = self.spans.iter().filter(|span| span.strength >= weakest_competitor(best));
        let mut spans: Vec<Candidate> = rivals.copied().collect();
        // The latest first: the innermost call.
        spans.sort_by_key(|span| std::cmp::Reverse(span.start_unix_ns));
        match best {
            MatchStrength::No => Decision::Nothing,
            // All streams of an HTTP/2 connection died with it.
            MatchStrength::Certain => {
                Decision::Own(keys(&drop_parent_spans(&spans, |span| span.side == SpanSide::Client)))
            }
            // The request that ended last was the one on the connection.
            MatchStrength::Late => Decision::Own(
                spans.iter().max_by_key(|span| span.end_unix_ns).map(|span| span.key).into_iter().collect(),
            ),
            MatchStrength::Failed | MatchStrength::Probable | MatchStrength::Possible | MatchStrength::Attempt => {
                let spans = drop_parent_spans(&spans, |_| true);
                let [first, rest @ ..] = spans.as_slice() else { return Decision::Nothing };
                // Calls that share connections and failed together with one connection were all on it.
                let alone = rest.is_empty()
                    || spans.iter().all(|span| span.multiplexed && span.strength == best && span.side == first.side);
                let undisputed = !self.incomplete && !spans.iter().any(|span| contested(span.key.1));
                if best != MatchStrength::Possible && alone && undisputed {
                    Decision::Own(keys(&spans))
                } else {
                    Decision::Ambiguous(keys(&spans[..spans.len().min(MAX_AMBIGUOUS)]))
                }
            }
        }
    }
}

/// The weakest fit of a span that may be meant where this is the best.
fn weakest_competitor(best: MatchStrength) -> MatchStrength {
    if best == MatchStrength::Probable { MatchStrength::Possible } else { best }
}

fn keys(spans: &[Candidate]) -> Vec<SpanKey> {
    spans.iter().map(|span| span.key).collect()
}

/// An error goes up from a call to its caller's span: the call is meant.
fn drop_parent_spans(spans: &[Candidate], may_call: impl Fn(&Candidate) -> bool) -> Vec<Candidate> {
    let calls = |span: &Candidate| spans.iter().any(|other| other.parent == span.key.1 && other.key.0 == span.key.0);
    spans.iter().filter(|span| !(may_call(span) && calls(span))).copied().collect()
}
