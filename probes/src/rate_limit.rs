//! The limit on records a second, and how it is shared: the algorithm, over buckets that the programs keep in a map.
//!
//! The limit is a token bucket. Its first half is first come, first served. The third quarter is shared: each port, each peer
//! and each kind of reset has a share of the limit. The last quarter is for kinds that reset seldom: the less is left, the
//! lower the rate at which a kind is refused. So a kind that resets now and then gets its records, however many kinds flood.

use crate::{
    control::{self, BUCKETS, BURST, KEY_BURST_NS},
    hash::mix,
    rule::Facts,
};

/// The store of the buckets. Each is the time until which its tokens are spent, ns.
pub trait Buckets {
    /// A bucket.
    type Bucket: Copy;
    /// The bucket with this index, below [`BUCKETS`].
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// Reads a bucket.
    fn read(&self, bucket: Self::Bucket) -> u64;
    /// Writes a bucket. Processors may race for it: the limit is then a little higher.
    fn write(&self, bucket: Self::Bucket, spent_until: u64);
}

/// The bucket of the limit itself.
const TOTAL: u32 = 0;
/// Bits of a hash that make an index.
const INDEX_MASK: u32 = BUCKETS as u32 - 1;
/// Unit of what is left: one part in this many.
const PARTS: u64 = 1_024;

/// Takes a token, or refuses: whether the reset gets a record. `interval`: ns between two records at the limit, not 0.
/// `ring_left`: what is free of the ring buffer, in 1,024 parts.
#[inline(always)]
pub fn admits<B: Buckets>(
    buckets: &B,
    seed: u32,
    interval: u64,
    now: u64,
    ring_left: u64,
    facts: impl FnOnce() -> Facts,
) -> bool {
    let Some(total) = buckets.bucket(TOTAL) else { return true };
    let burst = interval * BURST;
    let arrival = spent_until(buckets, total, now).max(now.saturating_sub(burst)) + interval;
    if arrival > now {
        return false;
    }
    let left = ((now - arrival) * PARTS / burst).min(ring_left);
    if left < PARTS / 2 && !has_share(buckets, seed, interval, now, left, &facts()) {
        return false;
    }
    buckets.write(total, arrival);
    true
}

/// Whether the keys of the reset have a token each; then it takes them. A reset that one key refuses takes nothing from the
/// others: they are shared with resets that are not of the flood.
#[inline(always)]
fn has_share<B: Buckets>(buckets: &B, seed: u32, interval: u64, now: u64, left: u64, facts: &Facts) -> bool {
    let kind = kind(seed, facts);
    if left < PARTS / 4 && !is_seldom(buckets, mix(kind, 4), interval, now, left) {
        return false;
    }
    let of_key = interval * control::SHARE_OF_KEY;
    let port = mix(mix(kind, 1), u32::from(facts.local_port));
    let Some(port) = Share::of(buckets, port, now, of_key) else { return false };
    let Some(peer) = Share::of(buckets, peer(mix(kind, 2), facts), now, of_key) else { return false };
    let of_kind = interval * control::SHARE_OF_KIND;
    let Some(kind) = Share::of(buckets, mix(kind, 3), now, of_kind) else { return false };
    port.take(buckets);
    peer.take(buckets);
    kind.take(buckets);
    true
}

/// Whether a kind asked for less than its share of the last quarter within the last second. What it asks for in vain counts
/// as well, so that a flood gets nothing here.
#[inline(always)]
fn is_seldom<B: Buckets>(buckets: &B, hash: u32, interval: u64, now: u64, left: u64) -> bool {
    // The even ones, but for the limit's own.
    let index = hash & INDEX_MASK & !1;
    let Some(bucket) = buckets.bucket(if index == TOTAL { 2 } else { index }) else { return false };
    let share = control::SHARE_OF_SELDOM * (PARTS / 4) / (left + 1);
    let cost = (interval * share).min(KEY_BURST_NS);
    let asked = spent_until(buckets, bucket, now).max(now.saturating_sub(KEY_BURST_NS)) + cost;
    buckets.write(bucket, asked.min(now + KEY_BURST_NS));
    asked <= now
}

/// A token that a key may take.
struct Share<T> {
    bucket: T,
    arrival: u64,
}

impl<T: Copy> Share<T> {
    /// The next token of a bucket that gets one each `interval` and holds one second's worth, if there is one.
    #[inline(always)]
    fn of<B: Buckets<Bucket = T>>(buckets: &B, hash: u32, now: u64, interval: u64) -> Option<Self> {
        // The odd ones.
        let bucket = buckets.bucket(hash & INDEX_MASK | 1)?;
        let spent = spent_until(buckets, bucket, now);
        let arrival = spent.max(now.saturating_sub(KEY_BURST_NS)) + interval.min(KEY_BURST_NS);
        (arrival <= now).then_some(Self { bucket, arrival })
    }

    #[inline(always)]
    fn take<B: Buckets<Bucket = T>>(self, buckets: &B) {
        buckets.write(self.bucket, self.arrival);
    }
}

/// Until when a bucket's tokens are spent.
#[inline(always)]
fn spent_until<B: Buckets>(buckets: &B, bucket: B::Bucket, now: u64) -> u64 {
    /// Only another processor, or a key that asks in vain, is ahead of the clock, and by no more than this: beyond it, the
    /// clock was set back.
    const MAX_AHEAD_NS: u64 = 2 * KEY_BURST_NS;
    let spent = buckets.read(bucket);
    if spent > now + MAX_AHEAD_NS { 0 } else { spent }
}

/// Namespace, cause, direction and origin.
#[inline(always)]
fn kind(seed: u32, facts: &Facts) -> u32 {
    let kind = u32::from(facts.cause) << 8 | u32::from(facts.direction) << 4 | u32::from(facts.origin);
    mix(mix(seed, facts.network_namespace), kind)
}

#[inline(always)]
fn peer(kind: u32, facts: &Facts) -> u32 {
    let address = &facts.peer_address;
    mix(mix(mix(mix(kind, address[0]), address[1]), address[2]), address[3])
}

#[cfg(test)]
mod tests;
