//! Floods of resets against the limit, with a clock of their own.

use std::{cell::Cell, vec, vec::Vec};

use super::*;

/// Records a second, as the default configuration has it.
const LIMIT: u64 = 10_000;
const INTERVAL: u64 = 1_000_000_000 / LIMIT;
const SEED: u32 = 0x1234_5678;

struct Memory(Vec<Cell<u64>>);

impl Memory {
    fn new() -> Self {
        Self(vec![Cell::new(0); BUCKETS])
    }
}

impl Buckets for Memory {
    type Bucket = usize;

    fn bucket(&self, index: u32) -> Option<usize> {
        ((index as usize) < BUCKETS).then_some(index as usize)
    }

    fn read(&self, bucket: usize) -> u64 {
        self.0[bucket].get()
    }

    fn write(&self, bucket: usize, spent_until: u64) {
        self.0[bucket].set(spent_until);
    }
}

fn facts(network_namespace: u32, local_port: u16, peer: u32) -> Facts {
    Facts {
        reason: u32::MAX,
        network_namespace,
        local_address: [0; 4],
        peer_address: [0, 0, 0xffff_u32.to_be(), peer],
        local_port,
        peer_port: 40_000,
        cause: 1,
        state: 0,
        direction: 0,
        origin: 1,
        ip_version: 4,
        reserved: [0; 3],
    }
}

/// What came of a flood and of the resets that came now and then beside it.
#[derive(Debug, Default)]
struct Outcome {
    flooding: u64,
    quiet_sent: u64,
    quiet: u64,
}

/// So many namespaces reset `per_second` in all for `seconds`, each port and peer another; a quiet one resets every 100 ms.
/// The first seconds empty the bucket.
fn flood(namespaces: u32, per_second: u64, seconds: u64) -> Outcome {
    let buckets = Memory::new();
    let start = 1_000_000_000_000;
    let mut outcome = Outcome::default();
    let mut next_quiet = start;
    for number in 0..per_second * seconds {
        let now = start + number * 1_000_000_000 / per_second;
        let source = number as u32;
        let flooding = facts(1 + source % namespaces, source as u16, source.wrapping_mul(7));
        outcome.flooding += u64::from(admits(&buckets, SEED, INTERVAL, now, PARTS, || flooding));
        if now >= next_quiet {
            next_quiet += 100_000_000;
            outcome.quiet_sent += 1;
            let quiet = facts(0xffff_0000, 80, 1);
            outcome.quiet += u64::from(admits(&buckets, SEED, INTERVAL, now + 1, PARTS, || quiet));
        }
    }
    outcome
}

#[test]
fn a_quiet_namespace_has_its_records_however_many_namespaces_flood() {
    for namespaces in [1, 16, 640] {
        let outcome = flood(namespaces, 80_000, 40);
        assert_eq!(outcome.quiet, outcome.quiet_sent, "{namespaces} namespaces: {outcome:?}");
        // The flood gets the rest: the burst but for its last quarter, and 40 s at the limit.
        let admitted = outcome.flooding + outcome.quiet;
        assert!((BURST / 2 + 39 * LIMIT..=BURST + 40 * LIMIT).contains(&admitted), "{namespaces}: {outcome:?}");
    }
}

#[test]
fn a_full_ring_buffer_refuses_the_kinds_that_flood() {
    let buckets = Memory::new();
    let at = |number: u64| 1_000_000_000_000 + number * 10_000;
    // One port of each of 16 namespaces, 100,000 resets a second, while a sixteenth of the ring is free.
    let admitted =
        (0..100_000).filter(|&n| admits(&buckets, SEED, INTERVAL, at(n), PARTS / 16, || facts(n as u32 % 16, 1, 2)));
    assert!(admitted.count() < 2_000);
    assert!(admits(&buckets, SEED, INTERVAL, at(100_000), PARTS / 16, || facts(77, 1, 2)), "another kind");
}

#[test]
fn a_low_limit_still_gives_each_key_one_a_second() {
    let buckets = Memory::new();
    let second = |second: u64| (1_000 + second) * 1_000_000_000;
    for turn in 0..5 {
        // One record a second, and less than half of the ring buffer is free.
        assert!(admits(&buckets, SEED, 1_000_000_000, second(2 * turn), PARTS / 3, || facts(1, 2, 3)), "{turn}");
        assert!(!admits(&buckets, SEED, 1_000_000_000, second(2 * turn) + 1, PARTS / 3, || facts(1, 2, 3)), "{turn}");
    }
}

#[test]
fn a_clock_that_is_set_back_refuses_nothing_for_long() {
    let buckets = Memory::new();
    let late = 5_000_000_000_000;
    assert!(admits(&buckets, SEED, INTERVAL, late, 0, || facts(1, 2, 3)));
    assert!(admits(&buckets, SEED, INTERVAL, late - 100_000_000_000, 0, || facts(1, 2, 3)));
}

#[test]
fn keys_that_collide_without_the_seed_do_not_with_it() {
    // Each half of the words of an IPv6 address goes into the hash by itself.
    let mut address = facts(1, 2, 3);
    let first = peer(kind(SEED, &address), &address);
    address.peer_address[0] ^= 1;
    address.peer_address[2] ^= 1_u32.rotate_right(7);
    assert_ne!(first, peer(kind(SEED, &address), &address));
    let spread: std::collections::HashSet<u32> =
        (0..1_000).map(|seed| mix(kind(seed, &facts(1, 2, 3)), 1) & INDEX_MASK).collect();
    assert!(spread.len() > 900, "the seed decides where a key lies: {}", spread.len());
}
