//! What applications and the network send, made up: the fuzz targets of `fuzz/`, driven by mutations of valid input.
//!
//! Each target runs for a second and a half; HOSTILE_SECONDS=60 makes it a minute, HOSTILE_SEED another one. A failure
//! prints its input.

#[path = "../../../fuzz/targets/json.rs"]
mod json;
#[path = "../../../fuzz/targets/payload.rs"]
mod payload;
#[path = "../../../fuzz/targets/record.rs"]
mod record;
mod seeds;
#[path = "../../../fuzz/targets/splice.rs"]
mod splice;
#[path = "../../../fuzz/targets/splice_json.rs"]
mod splice_json;
#[path = "../../../fuzz/targets/storage.rs"]
mod storage;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Bytes of an input at most.
const MAX: usize = 8 << 10;
/// Changed inputs that are tried at least.
const MIN: u64 = 500;
/// Inputs that are kept to be changed further.
const POOL: usize = 256;

fn number(name: &str) -> Option<f64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a target on the seeds and on what becomes of them, and says how many inputs those were.
fn drive(seeds: Vec<Vec<u8>>, target: fn(&[u8])) {
    let seed = number("HOSTILE_SEED").unwrap_or(1.0) as u64;
    let until = Instant::now() + Duration::from_secs_f64(number("HOSTILE_SECONDS").unwrap_or(1.5));
    let mut random = SmallRng::seed_from_u64(seed);
    let run = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            let text = input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            eprintln!("seed {seed}, input {text}");
            std::panic::resume_unwind(panic);
        }
    };
    seeds.iter().for_each(|input| run(input));
    // Every cut of a valid input: what a connection that breaks leaves.
    seeds.iter().for_each(|input| (0..input.len()).for_each(|end| run(&input[..end])));
    let mut pool = seeds;
    let mut inputs = 0_u64;
    // On a machine with much else to do the cuts alone take all the time.
    while inputs < MIN || Instant::now() < until {
        let mut input = pool[random.random_range(0..pool.len())].clone();
        for _ in 0..=random.random_range(0..6) {
            mutate(&mut input, &pool, &mut random);
        }
        input.truncate(MAX);
        run(&input);
        inputs += 1;
        let place = random.random_range(0..POOL * 4);
        if pool.len() < POOL {
            pool.push(input);
        } else if let Some(old) = pool.get_mut(place) {
            *old = input;
        }
    }
}

/// One change: of a bit, of a byte to one that means much, of a length, of a part.
fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut SmallRng) {
    const TELLING: [u8; 12] = [0, 1, 2, 0x0a, 0x12, 0x5a, 0x7f, 0x80, 0xff, b'"', b'{', b'\\'];
    if input.is_empty() {
        return input.push(random.random());
    }
    let at = random.random_range(0..input.len());
    let end = random.random_range(at..=input.len().min(at + 64));
    match random.random_range(0..9) {
        0 => input[at] ^= 1 << random.random_range(0..8),
        1 => input[at] = TELLING[random.random_range(0..TELLING.len())],
        2 => input[at] = random.random(),
        3 => input[at] = input[at].wrapping_add(if random.random() { 1 } else { 255 }),
        4 => drop(input.drain(at..end)),
        5 => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        6 => {
            let other = &pool[random.random_range(0..pool.len())];
            let from = random.random_range(0..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        // A varint of ten bytes, or of eleven.
        7 => drop(input.splice(at..at, std::iter::repeat_n(0xff, random.random_range(1..11)).chain([1]))),
        _ => input.truncate(at),
    }
}

#[test]
fn spliced_requests() {
    drive(seeds::requests(), splice::run);
}

#[test]
fn spliced_json() {
    drive(seeds::json(), splice_json::run);
}

#[test]
fn json_to_protobuf() {
    drive(seeds::json(), json::run);
}

#[test]
fn compressed_bodies() {
    drive(seeds::bodies(), payload::run);
}

#[test]
fn records_of_the_kernel() {
    drive(seeds::records(), record::run);
}

#[test]
fn storage_directories() {
    drive(seeds::storage(), storage::run);
}
