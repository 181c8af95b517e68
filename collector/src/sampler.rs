//! Which of the kept resets are exported: a share of them, or a number per second.
//!
//! The adjusted counts of the exported resets always add up to the number of resets: a reset kept at a ratio represents its
//! share of the others; a rate limit later emits one of the suppressed resets, which represents all of them.
//!
//! Pure: the time is an argument. Randomness only keys the hashes.

mod buckets;

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use crate::sampler::buckets::Buckets;

use crate::{
    filter::{Condition, EvalContext},
    model::resource::ResourceValue,
    model::{
        Reset, TraceMethod,
        attribute::{Attribute, Value},
    },
};

/// Rules in order; the first that matches decides, no match takes the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// For resets that no rule matches.
    pub default: Rate,
    rules: Vec<Rule>,
}

/// One sampling rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The resets that it applies to.
    pub condition: Condition,
    /// How many of them are exported.
    pub rate: Rate,
}

/// How many resets are exported.
#[derive(Clone, Debug, PartialEq)]
pub enum Rate {
    /// This share of them.
    Ratio(Ratio),
    /// A maximum number of records per second.
    PerSecond(RateLimit),
}

impl Default for Rate {
    fn default() -> Self {
        Self::Ratio(Ratio::ALL)
    }
}

/// A share from 0 to 1, as OpenTelemetry's probability sampling has it: a trace is kept where the 56 random bits of its
/// id are no less than a threshold. So every part of the system that samples at this ratio keeps the same traces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    share: f64,
    threshold: u64,
}

/// One more than the greatest of the 56 random bits of a trace id (W3C Trace Context Level 2).
const RANDOM_VALUES: u64 = 1 << 56;

impl Ratio {
    /// All.
    pub const ALL: Self = Self { share: 1.0, threshold: 0 };

    /// A share from 0 to 1; `None` for any other number.
    pub fn new(share: f64) -> Option<Self> {
        let threshold = ((1.0 - share) * RANDOM_VALUES as f64).round() as u64;
        (0.0..=1.0).contains(&share).then_some(Self { share, threshold })
    }

    /// As it was given.
    pub fn share(self) -> f64 {
        self.share
    }

    /// The adjusted count of a reset with this 56-bit number, if it is kept.
    fn weight(self, random: u64) -> Option<f64> {
        (random >= self.threshold).then(|| RANDOM_VALUES as f64 / (RANDOM_VALUES - self.threshold) as f64)
    }
}

/// Maximum records per second for each key: in any t seconds no more than `per_second × t + burst`.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// Records per second.
    pub per_second: f64,
    /// Records at once after an idle period.
    pub burst: f64,
    /// The attributes that make a key; empty is one key for all resets.
    pub group_by: Vec<Key>,
}

/// An attribute that a rate limit is grouped by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Of the record.
    Record(Attribute),
    /// Of the resource.
    Resource(Arc<str>),
}

impl Sampling {
    /// Sampling by these rules.
    pub fn new(default: Rate, mut rules: Vec<Rule>) -> Self {
        let mut names = crate::filter::ResourceNames::default();
        for rule in &mut rules {
            rule.condition = names.settle(std::mem::replace(&mut rule.condition, Condition::Any(Vec::new())));
        }
        Self { default, rules }
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn rate(&self, rule: Option<usize>) -> &Rate {
        rule.and_then(|rule| self.rules.get(rule)).map_or(&self.default, |rule| &rule.rate)
    }
}

/// The decision of the sampler about a reset. The rule is counted from 0; `None` is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleDecision {
    /// It is exported, with its adjusted count.
    Keep {
        /// The rule that decided.
        rule: Option<usize>,
    },
    /// It is not exported; others represent it.
    SampledOut {
        /// The rule that decided.
        rule: Option<usize>,
    },
    /// A limit holds it back, the first of its key: the sampler keeps a copy, which goes on later, in a [`Summary`], for
    /// itself and all that were sampled out after it. Until then it is queued, not sampled out.
    Held {
        /// The rule that decided.
        rule: Option<usize>,
    },
}

impl fmt::Display for SampleDecision {
    /// `sampled out by sampling.rules[0]`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, rule) = match self {
            Self::Keep { rule } => ("kept", rule),
            Self::SampledOut { rule } => ("sampled out", rule),
            Self::Held { rule } => ("held for a summary", rule),
        };
        match rule {
            Some(rule) => write!(formatter, "{what} by sampling.rules[{rule}]"),
            None => write!(formatter, "{what} by sampling.default"),
        }
    }
}

/// The resets that a rate limit suppressed, represented by one of them.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The first of them, with the adjusted count of all.
    pub reset: Reset,
    /// How many records there were, this one with them.
    pub suppressed: u64,
    /// The rule of the limit; `None` is the default.
    pub rule: Option<usize>,
}

impl Summary {
    /// The sentence for the record's body: `1,204 more resets like this in 10 s`.
    pub fn sentence(&self) -> String {
        let seconds = SUMMARY_INTERVAL_NS / 1_000_000_000;
        match self.suppressed {
            1 => format!("1 more reset like this in {seconds} s"),
            count => format!("{} more resets like this in {seconds} s", grouped(count)),
        }
    }
}

/// Minimum time between summaries of a key.
pub const SUMMARY_INTERVAL_NS: u64 = 10_000_000_000;

/// Samples resets by its rules; its memory is bounded, whatever the number of keys.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    buckets: Buckets,
    hashes: RandomState,
}

impl Sampler {
    /// A sampler with all its limits unused.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, buckets: Buckets::new(MAX_KEYS), hashes: RandomState::new() }
    }

    /// Whether the reset is exported; sets its adjusted count. `now_ns` is from a monotonic clock, the same at every call.
    pub fn decide(&mut self, reset: &mut Reset, now_ns: u64) -> SampleDecision {
        let subject = EvalContext::new(reset);
        let rule = self.sampling.rules.iter().position(|rule| rule.condition.matches(&subject));
        match self.sampling.rate(rule) {
            Rate::Ratio(ratio) => match ratio.weight(randomness(reset)) {
                Some(weight) => {
                    reset.adjusted_count *= weight;
                    SampleDecision::Keep { rule }
                }
                None => SampleDecision::SampledOut { rule },
            },
            Rate::PerSecond(limit) => {
                let key = key(&self.hashes, rule, &limit.group_by, reset);
                match self.buckets.take(key, rule, limit, reset, now_ns) {
                    buckets::TokenResult::Yes => SampleDecision::Keep { rule },
                    buckets::TokenResult::Held => SampleDecision::Held { rule },
                    buckets::TokenResult::Counted => SampleDecision::SampledOut { rule },
                }
            }
        }
    }

    /// The summaries that are due; to be called about once a second.
    pub fn due_summaries(&mut self, now_ns: u64) -> Vec<Summary> {
        self.buckets.summaries(|held_since_ns| held_since_ns.saturating_add(SUMMARY_INTERVAL_NS) <= now_ns)
    }

    /// All remaining summaries, at the end or before new rules apply.
    pub fn drain(&mut self) -> Vec<Summary> {
        self.buckets.summaries(|_| true)
    }

    /// Number of suppressed resets that wait for their summary.
    pub fn held(&self) -> usize {
        self.buckets.held()
    }

    /// Resets whose key had no bucket because the table was full, and that used the shared one.
    pub fn overflowed(&self) -> u64 {
        self.buckets.overflowed()
    }
}

/// Maximum number of keys with a bucket of their own, of about 0.6 kB each with a suppressed reset.
const MAX_KEYS: usize = 8_192;

/// 56 bits: of the trace id, so that a trace is kept or dropped whole; else of the connection, the same seen from either
/// end, and of the second, so that a peer that uses one port for ever is not always dropped.
fn randomness(reset: &Reset) -> u64 {
    const TIME_SHIFT: u32 = 30;
    if let Some(trace) = &reset.trace
        && trace.method != TraceMethod::Ambiguous
    {
        let [.., a, b, c, d, e, f, g] = trace.trace_id;
        return u64::from_be_bytes([0, a, b, c, d, e, f, g]);
    }
    let ends = [reset.local, reset.peer].map(|end| {
        let bits = match end.address {
            std::net::IpAddr::V4(address) => u128::from(address.to_bits()),
            std::net::IpAddr::V6(address) => address.to_bits(),
        };
        (bits, end.port)
    });
    let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
    let second = reset.time_unix_ns >> TIME_SHIFT;
    let words = [
        low.0 as u64,
        (low.0 >> 64) as u64,
        high.0 as u64,
        (high.0 >> 64) as u64,
        u64::from(low.1) << 16 | u64::from(high.1),
        second,
    ];
    words.into_iter().fold(0, |hash, word| mix(hash ^ word)) >> 8
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014) after its increment: the same on every host and in every run.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A hash in place of the values, so that a key's size does not depend on them. Keyed anew in every run, so that colliding
/// keys cannot be constructed.
fn key(hashes: &RandomState, rule: Option<usize>, group_by: &[Key], reset: &Reset) -> u64 {
    let mut hasher = hashes.build_hasher();
    rule.hash(&mut hasher);
    for key in group_by {
        match key {
            Key::Record(attribute) => match attribute.value(reset) {
                None => 0_u8.hash(&mut hasher),
                Some(Value::Text(text)) => text.hash(&mut hasher),
                Some(Value::Address(address)) => address.hash(&mut hasher),
                Some(Value::Integer(number)) => number.hash(&mut hasher),
                Some(Value::Float(number)) => number.to_bits().hash(&mut hasher),
            },
            Key::Resource(name) => match reset.resource.get(name) {
                None => 0_u8.hash(&mut hasher),
                Some(ResourceValue::Text(text)) => text.hash(&mut hasher),
                Some(ResourceValue::Integer(number)) => number.hash(&mut hasher),
                Some(ResourceValue::List(texts)) => texts.hash(&mut hasher),
            },
        }
    }
    hasher.finish()
}

/// `1,204`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests;
