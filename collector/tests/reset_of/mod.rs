//! Resets as the kernel's records would make them, for the tests of enrichment.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use reset_collector::reset::{Cause, Connection, Direction, Endpoint, Hook, Origin, Owner, OwnerSource, Reset};

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
    let endpoint = Endpoint { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 1 };
    Reset {
        time_unix_ns: 0,
        observed_unix_ns: 0,
        direction: Direction::Receive,
        origin: Origin::Peer,
        cause: Cause::ResetByPeer,
        reason: None,
        state: None,
        local: endpoint,
        peer: endpoint,
        connection: Connection::default(),
        network_namespace: None,
        owner,
        socket: 0,
        credential: 0,
        cgroup_id,
        actor: None,
        segment_flags: 0,
        not_accepted: false,
        hook: Hook::ReceiveReset,
        workload: Arc::default(),
        trace: None,
        sample_weight: 1.0,
    }
}
