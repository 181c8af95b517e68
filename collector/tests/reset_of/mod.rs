//! Resets as the kernel's records would make them, for the tests of enrichment.

mod blank;

use std::{fs, path::Path};

use reset_collector::model::{Owner, OwnerSource, Reset};

/// A clock tick of procfs.
pub(crate) const TICK_NS: u64 = 10_000_000;

/// The owner as the kernel's record would have it, with a start somewhere inside the tick that procfs shows.
pub(crate) fn owner(pid: u32) -> Owner {
    owner_in(Path::new("/proc"), pid)
}

/// The same by another procfs.
pub(crate) fn owner_in(proc: &Path, pid: u32) -> Owner {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).expect("the process lives");
    let (head, rest) = stat.rsplit_once(')').expect("stat");
    let ticks: u64 = rest.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).expect("start");
    let mut comm = [0; 16];
    let name = head.split_once('(').expect("stat").1.as_bytes();
    comm[..name.len()].copy_from_slice(name);
    Owner { pid, start_boot_ns: ticks * TICK_NS + 1_234_567, comm, source: OwnerSource::Storage }
}

/// A reset with these, and nothing else that enrichment looks at.
pub(crate) fn reset(owner: Option<Owner>, cgroup_id: Option<u64>) -> Reset {
    Reset { owner, cgroup_id, ..blank::reset() }
}
