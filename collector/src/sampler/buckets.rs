//! Token buckets, one for each key of a limit, in bounded memory.
//!
//! A bucket is removed only when it is full again and has no suppressed reset: a new one would be the same, so removal
//! never loosens a limit. If no bucket can be removed, new keys share one bucket for each rule.

use std::collections::{HashMap, VecDeque};

use crate::model::Reset;
use crate::sampler::{RateLimit, Summary};

/// Number of buckets that are checked for removal when the table is full.
const MAX_CANDIDATES: usize = 16;

/// Result of taking a token.
pub(super) enum TokenResult {
    /// There was a token for it.
    Yes,
    /// There was none; the reset is kept for a summary.
    Held,
    /// There was none; the reset kept for the summary represents it too.
    Counted,
}

#[derive(Debug)]
pub(super) struct Buckets {
    slots: Vec<Bucket>,
    by_key: HashMap<u64, usize>,
    /// Shared by keys without a slot: a bucket for each rule.
    shared: HashMap<Option<usize>, Bucket>,
    max_keys: usize,
    /// Where the next search for a bucket to forget begins.
    hand: usize,
    /// When each suppressed reset was kept, and its bucket; oldest first.
    held: VecDeque<(u64, BucketRef)>,
    overflowed: u64,
}

#[derive(Clone, Copy, Debug)]
enum BucketRef {
    Slot(usize),
    Shared(Option<usize>),
}

#[derive(Debug)]
struct Bucket {
    key: u64,
    rule: Option<usize>,
    tokens: f64,
    per_second: f64,
    burst: f64,
    filled_ns: u64,
    held: Option<Box<SuppressedGroup>>,
}

#[derive(Debug)]
struct SuppressedGroup {
    reset: Reset,
    weight: f64,
    count: u64,
}

impl Bucket {
    fn new(key: u64, rule: Option<usize>, limit: &RateLimit, now_ns: u64) -> Self {
        let (per_second, burst) = (limit.per_second, limit.burst);
        Self { key, rule, tokens: burst, per_second, burst, filled_ns: now_ns, held: None }
    }

    /// Tokens at this time. A time before the last one adds none.
    fn tokens_at(&self, now_ns: u64) -> f64 {
        let elapsed_s = now_ns.saturating_sub(self.filled_ns) as f64 / 1e9;
        (self.tokens + elapsed_s * self.per_second).min(self.burst)
    }

    fn is_forgettable(&self, now_ns: u64) -> bool {
        self.held.is_none() && self.tokens_at(now_ns) >= self.burst
    }

    fn take(&mut self, reset: &Reset, now_ns: u64) -> TokenResult {
        self.tokens = self.tokens_at(now_ns);
        self.filled_ns = self.filled_ns.max(now_ns);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return TokenResult::Yes;
        }
        match &mut self.held {
            Some(held) => {
                held.weight += reset.adjusted_count;
                held.count += 1;
                TokenResult::Counted
            }
            none => {
                *none =
                    Some(Box::new(SuppressedGroup { reset: reset.clone(), weight: reset.adjusted_count, count: 1 }));
                TokenResult::Held
            }
        }
    }

    fn summary(&mut self) -> Option<Summary> {
        let SuppressedGroup { mut reset, weight, count } = *self.held.take()?;
        reset.adjusted_count = weight;
        Some(Summary { reset, suppressed: count, rule: self.rule })
    }
}

impl Buckets {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            slots: Vec::new(),
            by_key: HashMap::new(),
            shared: HashMap::new(),
            max_keys,
            hand: 0,
            held: VecDeque::new(),
            overflowed: 0,
        }
    }

    pub(super) fn take(
        &mut self,
        key: u64,
        rule: Option<usize>,
        limit: &RateLimit,
        reset: &Reset,
        now_ns: u64,
    ) -> TokenResult {
        let slot = self.by_key.get(&key).copied().or_else(|| self.add(Bucket::new(key, rule, limit, now_ns), now_ns));
        let (bucket_ref, bucket) = match slot {
            Some(slot) => (BucketRef::Slot(slot), &mut self.slots[slot]),
            None => {
                self.overflowed += 1;
                let bucket = self.shared.entry(rule).or_insert_with(|| Bucket::new(key, rule, limit, now_ns));
                (BucketRef::Shared(rule), bucket)
            }
        };
        let taken = bucket.take(reset, now_ns);
        if matches!(taken, TokenResult::Held) {
            self.held.push_back((now_ns, bucket_ref));
        }
        taken
    }

    /// Gives the bucket a slot: a new one, or that of a bucket that can be forgotten.
    fn add(&mut self, bucket: Bucket, now_ns: u64) -> Option<usize> {
        let slot = if self.slots.len() < self.max_keys {
            self.slots.len()
        } else {
            let slots = self.slots.len();
            let candidates = (0..MAX_CANDIDATES.min(slots)).map(|step| (self.hand + step) % slots);
            let found = candidates.into_iter().find(|slot| self.slots[*slot].is_forgettable(now_ns));
            self.hand = found.map_or(self.hand + MAX_CANDIDATES, |slot| slot + 1) % slots.max(1);
            found?
        };
        let key = bucket.key;
        match self.slots.get_mut(slot) {
            Some(place) => {
                self.by_key.remove(&place.key);
                *place = bucket;
            }
            None => self.slots.push(bucket),
        }
        self.by_key.insert(key, slot);
        Some(slot)
    }

    /// Removes and returns the suppressed resets that are `due` by the time when they were kept.
    pub(super) fn summaries(&mut self, due: impl Fn(u64) -> bool) -> Vec<Summary> {
        let mut summaries = Vec::new();
        while let Some((_, bucket_ref)) = self.held.pop_front_if(|(held_since_ns, _)| due(*held_since_ns)) {
            let bucket = match bucket_ref {
                BucketRef::Slot(slot) => self.slots.get_mut(slot),
                BucketRef::Shared(rule) => self.shared.get_mut(&rule),
            };
            summaries.extend(bucket.and_then(Bucket::summary));
        }
        summaries
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::plain_reset;

    fn limit(per_second: f64, burst: f64) -> RateLimit {
        RateLimit { per_second, burst, group_by: Vec::new() }
    }

    #[test]
    fn keys_are_bounded_and_overflow_shares_a_bucket() {
        let mut buckets = Buckets::new(4);
        let limit = limit(1.0, 2.0);
        let taken =
            (0..100).filter(|key| matches!(buckets.take(*key, None, &limit, &plain_reset(), 0), TokenResult::Yes));
        // Four keys of their own, and two tokens of the shared bucket.
        assert_eq!(taken.count(), 6);
        assert_eq!((buckets.slots.len(), buckets.by_key.len(), buckets.overflowed()), (4, 4, 96));
    }

    #[test]
    fn a_bucket_that_is_full_again_makes_room() {
        let mut buckets = Buckets::new(1);
        let limit = limit(1.0, 1.0);
        assert!(matches!(buckets.take(1, None, &limit, &plain_reset(), 0), TokenResult::Yes));
        buckets.take(2, None, &limit, &plain_reset(), 500_000_000);
        assert_eq!(buckets.overflowed(), 1);
        buckets.take(3, None, &limit, &plain_reset(), 1_000_000_000);
        assert_eq!((buckets.overflowed(), buckets.by_key.contains_key(&3), buckets.by_key.len()), (1, true, 1));
    }

    #[test]
    fn a_bucket_that_holds_a_reset_is_not_forgotten() {
        let mut buckets = Buckets::new(1);
        let limit = limit(1.0, 1.0);
        buckets.take(1, None, &limit, &plain_reset(), 0);
        assert!(matches!(buckets.take(1, None, &limit, &plain_reset(), 0), TokenResult::Held));
        buckets.take(2, None, &limit, &plain_reset(), 60_000_000_000);
        assert_eq!(buckets.overflowed(), 1);
        assert_eq!(buckets.summaries(|_| true).len(), 1);
        buckets.take(2, None, &limit, &plain_reset(), 60_000_000_000);
        assert_eq!(buckets.overflowed(), 1);
    }
}
