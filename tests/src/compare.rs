//! From what `tcpdump` saw to what the collector had to say, and whether it did.

use std::time::Duration;

use crate::{
    capture::{Rst, Way},
    network::{Host, Network},
    record::Record,
    scenario::Due,
};

/// How far a record's time may lie from the capture's.
pub const TIME_TOLERANCE: Duration = Duration::from_millis(1);

/// A reset on the wire for which one record is due.
#[derive(Clone, Debug)]
pub struct Wired {
    /// The namespace's inode of the host that sent or received it.
    pub namespace: u32,
    /// transmit or receive
    pub direction: &'static str,
    /// The segment.
    pub rst: Rst,
}

/// A segment takes no longer from one device to the one below.
const STACKED_NS: u64 = 100_000_000;

/// The resets of a host that its TCP or netfilter sent, and those that reached it.
pub fn wired(host: &Host, resets: &[Rst]) -> Vec<Wired> {
    let mut found = Vec::new();
    for (index, rst) in resets.iter().enumerate() {
        let entry = |direction| Wired { namespace: host.inode, direction, rst: rst.clone() };
        let same = |other: &Rst| {
            other.way == Way::In
                && (other.source, other.destination, other.sequence) == (rst.source, rst.destination, rst.sequence)
        };
        let forwarded = || resets[..index].iter().any(same);
        // A bridge's port sends what the bridge has sent.
        let stacked = |other: &Rst| {
            other.way == Way::Out
                && other.device != rst.device
                && rst.time_ns - other.time_ns < STACKED_NS
                && (other.source, other.destination, other.sequence) == (rst.source, rst.destination, rst.sequence)
        };
        let sent_before = || rst.way == Way::Out && resets[..index].iter().any(stacked);
        if rst.way != Way::In && !rst.forged && !forwarded() && !sent_before() {
            found.push(entry("transmit"));
        }
        // On loopback a segment arrives whatever its addresses: netfilter answers in the peer's name.
        if rst.way == Way::Loopback || (rst.way == Way::In && host.owns(rst.destination.ip())) {
            found.push(entry("receive"));
        }
    }
    found
}

/// What is wrong with the wire itself: not the collector's fault, but the scenario did not do what it says.
pub fn check_wire(due: &[Due], network: &Network, wired: &[Wired]) -> Vec<String> {
    let mut faults = Vec::new();
    for host in network.hosts() {
        for direction in ["transmit", "receive"] {
            let here = |due: &&Due| {
                due.direction == direction && network.host(&due.host).is_ok_and(|named| named.inode == host.inode)
            };
            let wanted: usize = due.iter().filter(here).map(|due| due.times).sum();
            let seen = wired.iter().filter(|one| one.direction == direction && one.namespace == host.inode).count();
            if wanted != seen {
                faults.push(format!("the wire: {} has {seen} resets in {direction}, not {wanted}", host.namespace));
            }
        }
    }
    faults
}

/// What the collector got wrong.
#[derive(Debug, Default)]
pub struct Verdict {
    /// One text a fault.
    pub faults: Vec<String>,
    /// How far each record's time lay from its packet's.
    pub time_differences: Vec<Duration>,
}

/// Pairs each reset on the wire with one record, and the records with what is due.
pub fn judge(due: &[Due], network: &Network, wired: &[Wired], records: &[Record]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut left: Vec<&Record> = records.iter().collect();
    for one in wired {
        let fits = |record: &Record| {
            record.namespace == one.namespace
                && record.text("network.io.direction") == one.direction
                && ((record.source, record.destination) == (one.rst.source, one.rst.destination)
                    || is_egress_reject(record, network, one))
        };
        let away = |record: &Record| record.time_ns.abs_diff(one.rst.time_ns);
        let nearest = (0..left.len()).filter(|&at| fits(left[at])).min_by_key(|&at| away(left[at]));
        let Some(at) = nearest else {
            let Rst { source, destination, .. } = one.rst;
            verdict.faults.push(format!("missed: {} {source} > {destination}", one.direction));
            continue;
        };
        let record = left.swap_remove(at);
        verdict.time_differences.push(Duration::from_nanos(away(record)));
        if let Err(fault) = record.check() {
            verdict.faults.push(format!("contradicts itself: {fault:#}: {}", describe(record)));
        }
    }
    verdict.faults.extend(left.iter().map(|record| format!("without a packet: {}", describe(record))));
    verdict.faults.extend(check_words(due, network, records));
    verdict
}

/// An egress rule of the host's own firewall answers the host's program in the peer's name, over loopback. The record has the
/// host's end as local all the same.
fn is_egress_reject(record: &Record, network: &Network, wired: &Wired) -> bool {
    let Rst { source, destination, way, .. } = &wired.rst;
    let own = |host: &Host| host.inode == wired.namespace && !host.owns(source.ip()) && host.owns(destination.ip());
    *way == Way::Loopback
        && record.text("tcp.reset.origin") == "firewall"
        && network.hosts().into_iter().any(own)
        && (record.source, record.destination) == (*destination, *source)
}

fn check_words(due: &[Due], network: &Network, records: &[Record]) -> Vec<String> {
    let mut left: Vec<&Record> = records.iter().collect();
    let mut faults = Vec::new();
    for one in due.iter().flat_map(|due| std::iter::repeat_n(due, due.times)) {
        let fits = |record: &Record| {
            one.is_met_by(record) && network.host(&one.host).is_ok_and(|host| host.inode == record.namespace)
        };
        match left.iter().position(|record| fits(record)) {
            Some(at) => drop(left.swap_remove(at)),
            None => faults.push(format!("due: {one}")),
        }
    }
    faults.extend(left.iter().map(|record| format!("said instead: {}", describe(record))));
    faults
}

fn describe(record: &Record) -> String {
    let words =
        ["network.io.direction", "tcp.reset.origin", "tcp.reset.cause", "network.connection.state", "tcp.reset.reason"];
    let words = words.map(|name| record.text(name)).join(" ");
    format!("{words} {} > {}", record.source, record.destination)
}
