//! Who is behind a connection to the receivers: the process that holds the other end.
//!
//! Once per connection, apart from requests. The kernel finds the socket by both of its ends in the collector's own
//! network namespace (sock_diag); where it has none, the tables of all namespaces are read. Behind a translated address
//! (DNAT: a Service, a host port) a socket's own end is enough where no socket has both.
//!
//! A socket that is here but is not held by the process that opened it is [`Sender::Unattributed`], whatever the reason: its
//! descriptor is in flight, in a thread with files of its own, in io_uring or another process, or its process has ended.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use probes::OwnerSource;

use crate::{
    correlate::Sender,
    host::netlink,
    model::Owner,
    procfs::{Stat, has_foreign_pids, pids, status_numbers},
    receiver::socket_table::{self, Socket},
};

const PROC: &str = "/proc";

/// Finds who sends over a connection whose other end is `peer`; `local` is the receiver's end.
pub fn find_sender(peer: SocketAddr, local: SocketAddr) -> Sender {
    let (peer, local) = (canonical(peer), canonical(local));
    let Some(here) = namespace("self") else { return Sender::Unattributed };
    if let Ok(Some(found)) = netlink::find_socket(peer, local) {
        return attribute(&Socket { namespace: here, other: local, inode: found.inode, uid: found.uid });
    }
    match choose(sockets(peer, local, here), local) {
        Choice::One(socket) if socket.other == local => attribute(&socket),
        Choice::Several => Sender::Unattributed,
        // Gone: another socket may have its port by now.
        Choice::One(_) | Choice::None if !is_established(local, peer) => Sender::Unattributed,
        Choice::One(socket) => attribute(&socket),
        // The other end lives, is not closed, and is no socket of this address.
        Choice::None if is_local(peer.ip()) => {
            Sender::Translated { network_namespace: u32::try_from(here).unwrap_or(0) }
        }
        Choice::None => Sender::Remote,
    }
}

enum Choice {
    One(Socket),
    Several,
    None,
}

/// The socket with this other end, else the only one with another, as behind a translated address.
fn choose(sockets: Vec<Socket>, other: SocketAddr) -> Choice {
    let exact: Vec<_> = sockets.iter().filter(|socket| socket.other == other).copied().collect();
    match if exact.is_empty() { sockets } else { exact }[..] {
        [] => Choice::None,
        [socket] => Choice::One(socket),
        _ => Choice::Several,
    }
}

/// The sockets with this own end in all network namespaces. A loopback address is of ours only. In ours the other end must
/// be `other`: an address that others are translated to (SNAT) has sockets of its own.
fn sockets(own: SocketAddr, other: SocketAddr, here: u64) -> Vec<Socket> {
    let mut sockets = socket_table::with_own_end(&format!("{PROC}/net"), own, here);
    sockets.retain(|socket| socket.other == other);
    if !own.ip().is_loopback() {
        for_each_other_namespace(here, |net, namespace| {
            sockets.extend(socket_table::with_own_end(net, own, namespace));
        });
    }
    sockets
}

/// Calls with the `net` directory of one process of each network namespace but ours.
fn for_each_other_namespace(here: u64, mut visitor: impl FnMut(&str, u64)) {
    let mut seen = HashSet::from([here]);
    for pid in pids(Path::new(PROC)) {
        let Some(namespace) = namespace(&pid.to_string()) else { continue };
        if seen.insert(namespace) {
            visitor(&format!("{PROC}/{pid}/net"), namespace);
        }
    }
}

/// The inode of a process's network namespace.
fn namespace(process: &str) -> Option<u64> {
    Some(fs::metadata(format!("{PROC}/{process}/ns/net")).ok()?.ino())
}

/// Whether the receiver's own socket is still connected, so that the other end has been open until now.
fn is_established(local: SocketAddr, peer: SocketAddr) -> bool {
    match netlink::find_socket(local, peer) {
        Ok(Some(socket)) => socket.state == netlink::ESTABLISHED,
        Ok(None) | Err(_) => socket_table::is_established(&format!("{PROC}/net"), local, peer),
    }
}

/// Whether an address is one of this host's, in any network namespace.
fn is_local(address: IpAddr) -> bool {
    let mut found = address.is_loopback() || socket_table::has_address(&format!("{PROC}/net"), address);
    if let (false, Some(here)) = (found, namespace("self")) {
        for_each_other_namespace(here, |net, _| found = found || socket_table::has_address(net, address));
    }
    found
}

/// A process that holds a socket.
#[derive(Clone, Debug)]
struct Candidate {
    pid: u32,
    stat: Stat,
}

/// The process that opened the socket and holds it.
fn attribute(socket: &Socket) -> Sender {
    if socket.inode == 0 {
        return Sender::Unattributed;
    }
    let candidates = pids(Path::new(PROC)).filter_map(|pid| candidate(pid, socket)).collect();
    let Some(candidate) = oldest(candidates) else { return Sender::Unattributed };
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let start_boot_ns = candidate.stat.start_ticks * tick_ns;
    if has_foreign_pids(Path::new(PROC)) {
        return Sender::ForeignPid { start_boot_ns };
    }
    let mut comm = [0; probes::COMM_LEN];
    let length = candidate.stat.comm.len().min(comm.len() - 1);
    comm[..length].copy_from_slice(&candidate.stat.comm[..length]);
    Sender::Process(Owner { pid: candidate.pid, start_boot_ns, comm, source: OwnerSource::File })
}

/// A process of the socket's network namespace that holds the socket and is of the user that opened it. Root needs no
/// borrowed socket, and a process may open its own before it gives up root.
fn candidate(pid: u32, socket: &Socket) -> Option<Candidate> {
    if namespace(&pid.to_string())? != socket.namespace {
        return None;
    }
    let wanted = format!("socket:[{}]", socket.inode);
    let descriptors = fs::read_dir(format!("{PROC}/{pid}/fd")).ok()?;
    if !descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == &*wanted)) {
        return None;
    }
    let status = fs::read(format!("{PROC}/{pid}/status")).ok()?;
    if socket.uid != 0 && !status_numbers(&status, "Uid").any(|uid| uid == socket.uid) {
        return None;
    }
    Some(Candidate { pid, stat: Stat::parse(&fs::read(format!("{PROC}/{pid}/stat")).ok()?)? })
}

/// The candidate whose descendants all others are: a child inherits its parent's sockets, at least until it executes a
/// program. `None` where they are not related.
fn oldest(candidates: Vec<Candidate>) -> Option<Candidate> {
    let first = candidates.iter().min_by_key(|candidate| candidate.stat.start_ticks)?.clone();
    let parent_of = |pid: u32| {
        let known = candidates.iter().find(|candidate| candidate.pid == pid).map(|candidate| candidate.stat.parent);
        known.or_else(|| Some(Stat::parse(&fs::read(format!("{PROC}/{pid}/stat")).ok()?)?.parent))
    };
    // A chain of parents ends at 0; the limit is for pids that are used again meanwhile.
    const MAX_GENERATIONS: usize = 64;
    let descends = |candidate: &Candidate| {
        let ancestors = std::iter::successors(Some(candidate.pid), |pid| parent_of(*pid)).take(MAX_GENERATIONS);
        ancestors.take_while(|pid| *pid != 0).any(|pid| pid == first.pid)
    };
    candidates.iter().all(descends).then_some(first)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => address,
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

#[cfg(test)]
#[path = "peer_process_tests.rs"]
mod tests;
