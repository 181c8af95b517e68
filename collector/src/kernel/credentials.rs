//! Owners that the kernel's programs could not name at once: processes by the credentials that opened a socket's file.
//!
//! A process that has set its user id has credentials that no hook told of. A look through all tasks finds them while it
//! lives; only then is the reset handed on.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData};
use probes::{COMM_LEN, OwnerSource};

use crate::{
    kernel::clock::Now,
    model::{Owner, Reset},
};

/// Between two looks through all tasks: each takes some microseconds for each of them.
const PAUSE: Duration = Duration::from_millis(100);
/// Resets that wait for a look at most; more go out as they are.
const MOST_WAITING: usize = 4_096;
/// Bytes of a process with one number more: start, pid, padding, name, and its task, or when it ended.
const KNOWN_LEN: usize = 8 + 4 + 4 + COMM_LEN + 8;

/// A map of the kernel's: a process and a number, by the address of its credentials.
pub type ByCredential = HashMap<MapData, u64, [u8; KNOWN_LEN]>;

/// What the kernel's programs know of processes by their credentials.
#[derive(Debug)]
pub struct Credentials {
    /// Those that live.
    pub processes: ByCredential,
    /// Those that have ended lately, and when (CLOCK_BOOTTIME, ns).
    pub ended: ByCredential,
}

/// Resets that wait for their owner.
pub struct Owners {
    credentials: Credentials,
    waiting: Vec<Reset>,
    looked: Option<Instant>,
}

impl Owners {
    /// Nobody waits.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, waiting: Vec::new(), looked: None }
    }

    /// Keeps a reset whose file was opened by a process that is not known yet, or gives it back.
    pub fn admit(&mut self, reset: Reset) -> Option<Reset> {
        let is_named = reset.owner.is_some_and(|owner| owner.source != OwnerSource::Listener);
        if is_named || reset.credential == 0 || self.waiting.len() >= MOST_WAITING {
            return Some(reset);
        }
        self.waiting.push(reset);
        None
    }

    /// Whether all tasks are to be looked at now.
    pub fn want_look(&self, now: Instant) -> bool {
        self.next_look(now).is_some_and(|next| next <= now)
    }

    /// When they are; `None` while nobody waits.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.looked.map_or(now, |looked| looked + PAUSE))
    }

    /// Resets that wait.
    pub fn held(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// All tasks have been looked at: names the owners that were found, and gives all resets back.
    pub fn looked(&mut self, now: Now) -> Vec<Reset> {
        self.looked = Some(now.instant);
        self.take(now)
    }

    /// Gives every reset back, named where its owner is known by now.
    pub fn take(&mut self, now: Now) -> Vec<Reset> {
        let mut waiting = std::mem::take(&mut self.waiting);
        for reset in &mut waiting {
            let at_boot_ns = reset.time_unix_ns.saturating_add_signed(now.clock.boot_offset_ns.saturating_neg());
            let get = |map: &ByCredential| map.get(&reset.credential, 0).ok().and_then(|bytes| parse(&bytes));
            let (known, ended) = (get(&self.credentials.processes), get(&self.credentials.ended));
            if let Some(owner) = holder_at(at_boot_ns, known, ended) {
                reset.owner = Some(owner);
            }
        }
        waiting
    }
}

/// Who had the credentials at a time: whoever gave them up after it by ending, else who has them now. Nobody, where that
/// process began later: then another had them.
fn holder_at(at_boot_ns: u64, known: Option<(Owner, u64)>, ended: Option<(Owner, u64)>) -> Option<Owner> {
    let (owner, _) = ended.filter(|&(_, ended_ns)| ended_ns >= at_boot_ns).or(known)?;
    (owner.start_boot_ns <= at_boot_ns).then_some(owner)
}

/// A process and its number out of the bytes of a map's value.
fn parse(bytes: &[u8; KNOWN_LEN]) -> Option<(Owner, u64)> {
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
    fn a_value_of_the_map_is_read_as_the_programs_write_it() {
        let mut bytes = [0; KNOWN_LEN];
        bytes[..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&9u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(b"name");
        bytes[32..].copy_from_slice(&11u64.to_ne_bytes());
        let (owner, number) = parse(&bytes).expect("a whole value");
        assert_eq!((owner.start_boot_ns, owner.pid, &owner.comm[..5], number), (7, 9, &b"name\0"[..], 11));
    }
}
