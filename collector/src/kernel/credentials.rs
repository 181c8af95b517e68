//! Owners that the kernel's programs cannot name at once.
//!
//! A process that sets its user id has credentials that no hook reports. A walk through all tasks finds them while the process
//! lives. And a listener may have another owner than the process that called listen(): it was inherited, or sent over a
//! Unix socket. A walk through all files finds who holds it. Resets of such owners wait for the walk.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData};
use probes::{COMM_LEN, OwnerSource};

use crate::{
    kernel::clock::Now,
    model::{Owner, Reset},
};

/// Between two walks through all tasks, at least: each takes some microseconds for each of them.
const MIN_WALK_INTERVAL: Duration = Duration::from_millis(100);
/// And at most: a reset does not wait longer for its owner, however slow a walk is.
const MAX_WALK_INTERVAL: Duration = Duration::from_secs(1);
/// The reader spends one part in this many of its time on walks, as far as the maximum allows.
const WALK_SHARE: u32 = 50;
/// Resets that wait for a walk; more go out as they are.
const MAX_WAITING: usize = 4_096;
/// Bytes of a process with one number more: start, pid, padding, name; and its task, or when it ended, or the walk, rank and
/// port of a listener's owner.
const ENTRY_LEN: usize = 8 + 4 + 4 + COMM_LEN + 8;

/// A map of the kernel's: a process and a number, by an address.
pub type ProcessByKey = HashMap<MapData, u64, [u8; ENTRY_LEN]>;

/// What the kernel's programs know of processes by their credentials and listeners.
#[derive(Debug)]
pub struct Credentials {
    /// Those that live, by credentials.
    pub processes: ProcessByKey,
    /// Those that have ended, and when (CLOCK_BOOTTIME, ns).
    pub ended: ProcessByKey,
    /// Who holds a listener, by its address.
    pub listeners: ProcessByKey,
}

/// What a walk is to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// All files of the tasks, too.
    pub files: bool,
}

/// Resets that wait for their owner.
pub struct OwnerResolver {
    credentials: Credentials,
    waiting: Vec<Reset>,
    next_walk: Option<Instant>,
}

impl OwnerResolver {
    /// Nothing waits.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, waiting: Vec::new(), next_walk: None }
    }

    /// Keeps a reset whose owner a walk may find, or gives it back.
    pub fn submit(&mut self, reset: Reset) -> Option<Reset> {
        let is_named = reset.owner.is_some_and(|owner| owner.source != OwnerSource::Listener);
        let is_complete = reset.listener == 0 && (is_named || reset.credential == 0);
        if is_complete || self.waiting.len() >= MAX_WAITING {
            return Some(reset);
        }
        self.waiting.push(reset);
        None
    }

    /// The walk that is due now.
    pub fn wants_walk(&self, now: Instant) -> Option<Walk> {
        self.next_walk(now)
            .is_some_and(|next| next <= now)
            .then(|| Walk { files: self.waiting.iter().any(|reset| reset.listener != 0) })
    }

    /// When the next walk is due; `None` while nothing waits.
    pub fn next_walk(&self, now: Instant) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.next_walk.unwrap_or(now))
    }

    /// Resets that wait.
    pub fn held(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// A walk is done: names the owners that were found, and gives all resets back.
    pub fn on_walked(&mut self, began: Instant, now: Now) -> Vec<Reset> {
        let took = now.instant.saturating_duration_since(began);
        self.next_walk = Some(now.instant + walk_interval(took));
        self.take(now)
    }

    /// Gives every reset back, named where its owner is known by now.
    pub fn take(&mut self, now: Now) -> Vec<Reset> {
        let mut waiting = std::mem::take(&mut self.waiting);
        for reset in &mut waiting {
            let at_boot_ns = reset.time_unix_ns.saturating_add_signed(now.clock.boot_offset_ns.saturating_neg());
            let get = |map: &ProcessByKey, key: u64| map.get(&key, 0).ok().and_then(|bytes| parse(&bytes));
            if reset.listener != 0 {
                let found = get(&self.credentials.listeners, reset.listener);
                reset.owner = listener_holder(at_boot_ns, reset, found);
                continue;
            }
            let known = get(&self.credentials.processes, reset.credential);
            let ended = get(&self.credentials.ended, reset.credential);
            if let Some(owner) = holder_at(at_boot_ns, known, ended) {
                reset.owner = Some(owner);
            }
        }
        waiting
    }
}

/// How long to wait after a walk that took this long.
fn walk_interval(took: Duration) -> Duration {
    took.saturating_mul(WALK_SHARE).clamp(MIN_WALK_INTERVAL, MAX_WALK_INTERVAL)
}

/// The owner of a listener that the last walk found, in place of the process that called listen(); of a listener that is
/// gone, the owner that an earlier walk found. The process that called listen() stays where no walk found any.
fn listener_holder(at_boot_ns: u64, reset: &Reset, found: Option<(Owner, u64)>) -> Option<Owner> {
    let listened = reset.owner?;
    let Some((owner, number)) = found else { return Some(listened) };
    let port = (number >> 48) as u16;
    if port != reset.local.port || owner.start_boot_ns > at_boot_ns {
        return Some(listened);
    }
    Some(Owner { source: listened.source, ..owner })
}

/// Who had the credentials at a time: whoever gave them up after it by ending, else who has them now. Nobody, where that
/// process began later: then another had them.
fn holder_at(at_boot_ns: u64, known: Option<(Owner, u64)>, ended: Option<(Owner, u64)>) -> Option<Owner> {
    let (owner, _) = ended.filter(|&(_, ended_ns)| ended_ns >= at_boot_ns).or(known)?;
    (owner.start_boot_ns <= at_boot_ns).then_some(owner)
}

/// A process and its number out of the bytes of a map's value.
fn parse(bytes: &[u8; ENTRY_LEN]) -> Option<(Owner, u64)> {
    let (start, rest) = bytes.split_first_chunk()?;
    let (pid, rest) = rest.split_first_chunk()?;
    let (comm, number) = rest.get(4..)?.split_first_chunk()?;
    let owner = Owner {
        pid: u32::from_ne_bytes(*pid),
        start_boot_ns: u64::from_ne_bytes(*start),
        comm: *comm,
        source: OwnerSource::File,
    };
    Some((owner, u64::from_ne_bytes(*number.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, start_boot_ns: u64, number: u64) -> Option<(Owner, u64)> {
        Some((Owner { pid, start_boot_ns, comm: [0; COMM_LEN], source: OwnerSource::File }, number))
    }

    #[test]
    fn whoever_had_the_credentials_at_the_time_is_named() {
        let pid = |known, ended| holder_at(100, known, ended).map(|owner| owner.pid);
        assert_eq!(pid(process(1, 50, 0), None), Some(1), "it lives");
        assert_eq!(pid(None, process(2, 50, 150)), Some(2), "it ended after the reset");
        assert_eq!(pid(process(1, 50, 0), process(2, 50, 150)), Some(2), "and another got its credentials");
        assert_eq!(pid(process(1, 50, 0), process(2, 10, 90)), Some(1), "it had ended before");
        assert_eq!(pid(process(1, 120, 0), None), None, "it began after the reset");
        assert_eq!(pid(process(1, 50, 0), process(2, 120, 150)), None, "two have had them since");
        assert_eq!(pid(None, process(2, 10, 90)), None, "nobody has them");
    }

    #[test]
    fn a_slow_walk_is_repeated_after_a_second_at_most() {
        let interval = |took| walk_interval(Duration::from_millis(took)).as_millis();
        assert_eq!([0, 1, 10, 200, 60_000].map(interval), [100, 100, 500, 1_000, 1_000]);
    }

    #[test]
    fn a_listener_is_its_holders() {
        let listened = process(1, 50, 0).map(|(owner, _)| Owner { source: OwnerSource::Storage, ..owner });
        let reset = Reset { owner: listened, ..crate::model::sample::reset() };
        let number = |walk: u32, port: u16| u64::from(port) << 48 | 2 << 32 | u64::from(walk);
        let port = reset.local.port;
        let pid = |found| listener_holder(100, &reset, found).map(|owner| (owner.pid, owner.source));
        assert_eq!(pid(process(2, 60, number(7, port))), Some((2, OwnerSource::Storage)), "it has another owner");
        assert_eq!(pid(None), Some((1, OwnerSource::Storage)), "no walk found it");
        assert_eq!(pid(process(2, 60, number(7, port ^ 1))), Some((1, OwnerSource::Storage)), "another listener");
        assert_eq!(pid(process(2, 101, number(7, port))), Some((1, OwnerSource::Storage)), "it began after the reset");
    }

    #[test]
    fn a_value_of_the_map_is_read_as_the_programs_write_it() {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&9u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(b"name");
        bytes[32..].copy_from_slice(&11u64.to_ne_bytes());
        let (owner, number) = parse(&bytes).expect("a whole value");
        assert_eq!((owner.start_boot_ns, owner.pid, &owner.comm[..5], number), (7, 9, &b"name\0"[..], 11));
    }
}
