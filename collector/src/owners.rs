//! Owners that the kernel's programs could not name at once: processes by the credentials that opened a socket's file.
//!
//! A process that has set its user id has credentials that no hook told of. A look through all tasks finds them while it
//! lives; only then is the reset handed on.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData};
use probes::{COMM_LEN, OwnerSource};

use crate::reset::{Owner, Reset};

/// Between two looks through all tasks: each takes some microseconds for each of them.
const PAUSE: Duration = Duration::from_millis(100);
/// Resets that wait for a look at most; more go out as they are.
const MOST_WAITING: usize = 4_096;
/// Bytes of a known process: start, pid, padding, name, ids.
pub(crate) const KNOWN_LEN: usize = 8 + 4 + 4 + COMM_LEN + 8;

/// The kernel's map of processes by their credentials.
pub type Processes = HashMap<MapData, u64, [u8; KNOWN_LEN]>;

/// Resets that wait for their owner.
pub struct Owners {
    processes: Processes,
    waiting: Vec<Reset>,
    looked: Option<Instant>,
}

impl Owners {
    /// Nobody waits.
    pub fn new(processes: Processes) -> Self {
        Self { processes, waiting: Vec::new(), looked: None }
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

    /// All tasks have been looked at: names the owners that were found, and gives all resets back.
    pub fn looked(&mut self, now: Instant) -> Vec<Reset> {
        self.looked = Some(now);
        self.take()
    }

    /// Gives every reset back, named where its owner is known by now.
    pub fn take(&mut self) -> Vec<Reset> {
        let mut waiting = std::mem::take(&mut self.waiting);
        for reset in &mut waiting {
            if let Some(owner) = self.find(reset.credential) {
                reset.owner = Some(owner);
            }
        }
        waiting
    }

    /// Resets that wait.
    pub fn held(&self) -> u64 {
        self.waiting.len() as u64
    }

    fn find(&self, credential: u64) -> Option<Owner> {
        let known = self.processes.get(&credential, 0).ok()?;
        let (start, rest) = known.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let comm = rest.get(4..)?.first_chunk()?;
        Some(Owner {
            pid: u32::from_ne_bytes(*pid),
            start_boot_ns: u64::from_ne_bytes(*start),
            comm: *comm,
            source: OwnerSource::File,
        })
    }
}
