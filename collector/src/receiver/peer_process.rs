//! Who is behind a connection to the receivers: the process that holds the other end, found in /proc.
//!
//! Once per connection, off the way of requests. A socket is known by both of its ends: in the collector's own network
//! namespace first, then in all others (containers beside it), but for loopback, which means one namespace only. There its
//! own end is enough where no socket has both: the other is translated on the way to a Service or a host port. Where its
//! own end is, nobody is found. Nobody is found either where /proc has pids of its own (a pod with
//! shareProcessNamespace): resets name their owners by the first namespace's, and a pid that is compared with one of
//! another namespace may be equal to a stranger's.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use probes::OwnerSource;

use crate::{enrich::process::has_foreign_pids, model::Owner};

/// The process that holds the socket whose own end is `peer` and whose other end is `local`, as the receiver sees them.
pub fn find_owner(peer: SocketAddr, local: SocketAddr) -> Option<Owner> {
    if has_foreign_pids(Path::new("/proc")) {
        return None;
    }
    let mut inode = choose(sockets_in("/proc/net", peer), local, false);
    if inode.is_none() && !peer.ip().to_canonical().is_loopback() {
        inode = choose(sockets_elsewhere(peer), local, true);
    }
    let wanted = format!("socket:[{}]", inode?);
    owner(pids().find(|pid| holds(*pid, &wanted))?)
}

/// A socket by its other end, with its inode.
type Socket = (SocketAddr, u64);

/// The socket whose other end is this one; where `translated`, else the one that has another, as behind a Service's or a
/// host port's address. Two that fit as well are as good as none.
fn choose(sockets: Vec<Socket>, other: SocketAddr, translated: bool) -> Option<u64> {
    let exact: Vec<_> = sockets.iter().filter(|(end, _)| *end == canonical(other)).copied().collect();
    let fitting = if exact.is_empty() && translated { sockets } else { exact };
    if let [(_, inode)] = fitting[..] { Some(inode) } else { None }
}

fn pids() -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The sockets with this own end, in one network namespace.
fn sockets_in(directory: &str, own: SocketAddr) -> Vec<Socket> {
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("{directory}/{name}")).unwrap_or_default());
    tables.iter().flat_map(|table| sockets_of(table, own)).collect()
}

/// The same in all other network namespaces.
fn sockets_elsewhere(own: SocketAddr) -> Vec<Socket> {
    let mut namespaces: HashSet<_> = fs::read_link("/proc/self/ns/net").into_iter().collect();
    let mut sockets = Vec::new();
    for pid in pids() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        if namespaces.insert(namespace) {
            sockets.extend(sockets_in(&format!("/proc/{pid}/net"), own));
        }
    }
    sockets
}

/// The sockets with this own end in the text of /proc/net/tcp: local end, other end, both in hexadecimal, state, …, inode.
fn sockets_of(table: &str, own: SocketAddr) -> impl Iterator<Item = Socket> {
    const INODE: usize = 9;
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if endpoint(words.next()?)? != canonical(own) {
            return None;
        }
        let other = endpoint(words.next()?)?;
        let inode = line.split_ascii_whitespace().nth(INODE)?.parse().ok()?;
        (inode != 0).then_some((other, inode))
    })
}

/// `0100007F:1F90`: words of the host's byte order, a port.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?)))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn holds(pid: u32, wanted: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted))
}

/// A process by its pid, with its start as far as /proc knows it.
fn owner(pid: u32) -> Option<Owner> {
    const START: usize = 19;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets too: what follows is behind the last one.
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.as_bytes();
    let ticks: u64 = rest.split_ascii_whitespace().nth(START)?.parse().ok()?;
    let mut comm = [0; probes::COMM_LEN];
    let length = name.len().min(comm.len() - 1);
    comm[..length].copy_from_slice(&name[..length]);
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Some(Owner { pid, start_boot_ns: ticks * tick_ns, comm, source: OwnerSource::File })
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        process::Command,
    };

    use super::*;

    #[test]
    fn finds_this_process_behind_its_own_connection() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("a port");
            let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
            let (accepted, peer) = listener.accept().expect("a connection");
            let local = accepted.local_addr().expect("an address");
            let owner = find_owner(peer, local).expect("an owner");
            assert_eq!(owner.pid, std::process::id());
            assert!(owner.start_boot_ns > 0);
            drop(client);
            let closed = TcpStream::connect(local).expect("a connection").local_addr().expect("an address");
            assert_eq!(find_owner(closed, local), None, "nobody holds it any more");
        }
    }

    /// A sidecar in a pid namespace of its own sees other numbers than the kernel's records have.
    #[test]
    fn nobody_is_found_where_pids_are_foreign() {
        let mut unshare = Command::new("unshare");
        unshare.args(["--fork", "--pid", "--mount-proc"]).arg(std::env::current_exe().expect("this program"));
        let child = "receiver::peer_process::tests::in_another_pid_namespace";
        let output = unshare.args(["--ignored", "--exact", child]).output().expect("unshare");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains("Operation not permitted") {
            eprintln!("skipped: no namespace can be made here: {said}");
            return;
        }
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    /// The other half of the test above.
    #[test]
    #[ignore = "run by nobody_is_found_where_pids_are_foreign"]
    fn in_another_pid_namespace() {
        assert!(has_foreign_pids(Path::new("/proc")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let (accepted, peer) = listener.accept().expect("a connection");
        assert_eq!(find_owner(peer, accepted.local_addr().expect("an address")), None);
    }

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0100007F:9C41 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 20 4 30 10 -1\n   \
            1: 0000000000000000FFFF00000100007F:9C41 0000000000000000FFFF00000100007F:1F90 01 0:0 0:0 0 0 0 77 1\n   \
            2: 0100007F:9C42 0100007F:1F90 06 0:0 0:0 0 0 0 0 1\n";
        let address = |port| SocketAddr::new([127, 0, 0, 1].into(), port);
        let sockets = |table, port| sockets_of(table, address(port)).collect::<Vec<_>>();
        assert_eq!(sockets(table, 8080), [(address(40_001), 4242)]);
        assert_eq!(sockets(table, 40_001), [(address(8080), 77)], "IPv4 on a socket for both");
        assert_eq!(sockets(table, 40_002), [], "TIME_WAIT has no inode");
        assert_eq!(sockets(table, 1), []);
        assert_eq!(sockets("", 1), []);
    }

    #[test]
    fn a_translated_end_counts_only_where_nothing_fits_better() {
        let end = |port| SocketAddr::new([10, 0, 0, 1].into(), port);
        let (exact, translated) = ((end(4317), 1), (end(80), 2));
        assert_eq!(choose(vec![translated, exact], end(4317), true), Some(1));
        assert_eq!(choose(vec![translated], end(4317), true), Some(2));
        assert_eq!(choose(vec![translated], end(4317), false), None);
        assert_eq!(choose(vec![translated, (end(81), 3)], end(4317), true), None, "either could be meant");
        assert_eq!(
            choose(vec![exact, (end(4317), 3)], end(4317), true),
            None,
            "two namespaces with the same addresses"
        );
    }
}
