//! The kernel's tables of TCP sockets and addresses as text: `/proc/PID/net/{tcp,tcp6,fib_trie,if_inet6}`, for network
//! namespaces that sock_diag cannot be asked about from outside.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// A socket in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Inode of the network namespace.
    pub(crate) namespace: u64,
    /// The socket's other end.
    pub(crate) other: SocketAddr,
    /// Inode of the socket; 0 where no file refers to it any more.
    pub(crate) inode: u64,
    /// The user that opened it.
    pub(crate) uid: u32,
}

/// The sockets with this own end. `net` is the directory of a network namespace.
pub(crate) fn with_own_end(net: &str, own: SocketAddr, namespace: u64) -> Vec<Socket> {
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("{net}/{name}")).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| rows(table)).filter(|row| row.own == own);
    rows.map(|row| Socket { namespace, other: row.other, inode: row.inode, uid: row.uid }).collect()
}

/// Whether the socket with these ends is connected.
pub(crate) fn is_established(net: &str, own: SocketAddr, other: SocketAddr) -> bool {
    const ESTABLISHED: &str = "01";
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("{net}/{name}")).unwrap_or_default());
    tables
        .iter()
        .flat_map(|table| rows(table))
        .any(|row| (row.own, row.other) == (own, other) && row.state == ESTABLISHED)
}

/// Whether a network namespace has this address.
pub(crate) fn has_address(net: &str, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => {
            let trie = fs::read_to_string(format!("{net}/fib_trie")).unwrap_or_default();
            local_addresses(&trie).any(|local| local == address)
        }
        IpAddr::V6(v6) => {
            let addresses = fs::read_to_string(format!("{net}/if_inet6")).unwrap_or_default();
            let wanted = format!("{:032x}", v6.to_bits());
            addresses.lines().any(|line| line.starts_with(&wanted))
        }
    }
}

/// One line of `/proc/net/tcp`: own end, other end, both in hexadecimal, state, …, inode.
struct Row<'a> {
    own: SocketAddr,
    other: SocketAddr,
    state: &'a str,
    uid: u32,
    inode: u64,
}

fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (own, other, state) = (endpoint(words.next()?)?, endpoint(words.next()?)?, words.next()?);
        // Columns 7 and 9.
        let (uid, inode) = (words.nth(3)?.parse().ok()?, words.nth(1)?.parse().ok()?);
        Some(Row { own, other, state, uid, inode })
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
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// The addresses in the text of `fib_trie` that have a `/32 host LOCAL` below them.
fn local_addresses(trie: &str) -> impl Iterator<Item = IpAddr> {
    let mut last = None;
    trie.lines().filter_map(move |line| {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        }
        line.trim().starts_with("/32 host LOCAL").then_some(last).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0100007F:9C41 01 00000000:00000000 00:00000000 00000000     7        0 4242 1 0 20 4 30 10 -1\n   \
            1: 0000000000000000FFFF00000100007F:9C41 0000000000000000FFFF00000100007F:1F90 01 0:0 0:0 0 9 0 77 1\n   \
            2: 0100007F:9C42 0100007F:1F90 06 0:0 0:0 0 0 0 0 1\n   3: 0100007F:9C43\n   4: zz:1 0100007F:1F90 01\n";
        let address = |port| SocketAddr::new([127, 0, 0, 1].into(), port);
        let found: Vec<_> = rows(table).map(|row| (row.own, row.other, row.state, row.uid, row.inode)).collect();
        let expected = [
            (address(8080), address(40_001), "01", 7, 4242),
            (address(40_001), address(8080), "01", 9, 77),
            (address(40_002), address(8080), "06", 0, 0),
        ];
        assert_eq!(found, expected, "IPv4 on a socket for both is IPv4; TIME_WAIT has no inode");
        assert_eq!(rows("").count(), 0);
    }

    #[test]
    fn reads_local_addresses() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.0\n        \
            /24 link UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(local_addresses(trie).collect::<Vec<_>>(), [IpAddr::from([10, 0, 0, 7])]);
        let own = "/proc/self/net";
        assert!(has_address(own, [127, 0, 0, 1].into()) && !has_address(own, [192, 0, 2, 1].into()));
    }
}
