//! A storm: a flood of SYN segments to closed ports, and beside it a slow stream of other resets. What was made is
//! counted by the kernel of the host and here; what was captured, by the collector.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    collector::Collector,
    flood::{self, Shape},
    network::{DEVICE, Layout, Network},
    process::{Usage, usage},
    record::Record,
};

/// Whence the slow stream comes: an address of the client's that the flood does not use.
const SLOW_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 77);
/// Its first port; one more for each.
const SLOW_FIRST_PORT: u16 = 20_000;
/// A port of the server's that is closed and that the flood is not aimed at.
const SLOW_CLOSED: u16 = 7;
/// Threads that flood.
const FLOODS: usize = 2;
/// Between two pairs of the slow stream.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);
/// The causes that each pair of the slow stream certainly has.
const CERTAIN: [&str; 3] = ["linger_zero", "port_closed", "refused_by_peer"];
/// After the storm, until what is under way has arrived.
const SETTLE: Duration = Duration::from_secs(2);

/// What was made and what came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// SYN segments of the flood.
    pub segments: u64,
    /// How long the flood went on.
    pub elapsed: Duration,
    /// Resets that the kernels of both hosts counted as sent (`OutRsts`).
    pub sent: u64,
    /// Resets that the collector counted as sent on these hosts.
    pub captured: u64,
    /// Resets of the slow stream that were certainly made, whatever packets the flood pushed off the wire.
    pub slow_made: u64,
    /// Those of which a record was printed.
    pub slow_told: u64,
    /// Records of the flood.
    pub flood_records: u64,
    /// The collector before the flood, and after it.
    pub before: Usage,
    /// See `before`.
    pub after: Usage,
    /// What the collector said at its end.
    pub said: String,
}

impl Report {
    /// The collector's processor time as a share of one core.
    pub fn processor_share(&self) -> f64 {
        (self.after.processor - self.before.processor).as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

/// How long a storm goes on: both must be reached.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// At least so long.
    pub time: Duration,
    /// At least so many segments of the flood.
    pub segments: u64,
}

/// Lets a storm of one shape go over a collector started with these arguments.
///
/// # Errors
/// A host, the collector or a socket fails.
pub fn run(shape: Shape, length: Length, arguments: &[&str]) -> Result<Report> {
    // Hosts first: their numbers are needed to tell their records from others'.
    let network = Network::new(Layout::Wire)?;
    prepare(&network)?;
    let here = [&network.client, &network.server].map(|host| format!("\"network.namespace.inode\":{}", host.inode));
    let slow = format!("\"{SLOW_SOURCE}\"");
    let flood_records = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&flood_records);
    let in_storm = here.clone();
    let collector = Collector::start_keeping(arguments, &[], move |line| {
        let is_flood = in_storm.iter().any(|host| line.contains(host)) && !line.contains(&slow);
        counter.fetch_add(u64::from(is_flood), Ordering::Relaxed);
        !is_flood
    })?;
    let out_before = sent(&network)?;
    let before = usage(collector.pid())?;
    let started = Instant::now();
    let (segments, slow_ports) = storm(&network, shape, length)?;
    let elapsed = started.elapsed();
    std::thread::sleep(SETTLE);
    let after = usage(collector.pid())?;
    let sent = sent(&network)? - out_before;
    let (slow_told, foreign, said) = gather(collector, &here, &slow_ports)?;
    let captured = counted(&said).checked_sub(foreign).context("more foreign records than resets counted")?;
    Ok(Report {
        segments,
        elapsed,
        sent,
        captured,
        // Each pair: one connection refused, whose reset was sent and received, and one closed, whose reset was sent.
        slow_made: slow_ports.len() as u64 / 2 * CERTAIN.len() as u64,
        slow_told,
        flood_records: flood_records.load(Ordering::Relaxed),
        before,
        after,
        said,
    })
}

/// Gives the client its second address, and the server a way back to the forged sources.
fn prepare(network: &Network) -> Result<()> {
    for (host, arguments) in [
        (&network.client, ["addr", "add", &format!("{SLOW_SOURCE}/24"), "dev", DEVICE]),
        (&network.server, ["route", "add", flood::FORGED_SOURCES, "via", &network.client.v4.to_string()]),
    ] {
        let status = Command::new("ip").args(["-n", &host.namespace]).args(arguments).status()?;
        ensure!(status.success(), "ip {arguments:?} on {}", host.namespace);
    }
    Ok(())
}

fn sent(network: &Network) -> Result<u64> {
    Ok(network.client.tcp_counter("OutRsts")? + network.server.tcp_counter("OutRsts")?)
}

/// The flood and the slow stream: segments sent, and the ports that the slow stream came from.
fn storm(network: &Network, shape: Shape, length: Length) -> Result<(u64, HashSet<u16>)> {
    let (client, server) = (&network.client, &network.server);
    let listener = server.enter(|| TcpListener::bind((server.v4, 0)))??;
    let open = listener.local_addr()?.port();
    let (segments, over, until) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now() + length.time);
    let goes_on = |sent: u64| {
        let all = segments.fetch_add(sent, Ordering::Relaxed) + sent;
        !over.load(Ordering::Relaxed) && (all < length.segments || Instant::now() < until)
    };
    let ports = std::thread::scope(|scope| {
        let floods: Vec<_> = (0..FLOODS)
            .map(|_| scope.spawn(|| client.enter(|| flood::syn_flood(shape, client.v4, server.v4, goes_on))?))
            .collect();
        let accepts = scope.spawn(|| flood::accept_all(&listener, || over.load(Ordering::Relaxed)));
        let ports = client.enter(|| slow_stream(server.v4, open, || goes_on(0)));
        over.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread of the storm panicked");
        accepts.join().map_err(panicked)??;
        for flood in floods {
            flood.join().map_err(panicked)??;
        }
        ports?
    })?;
    Ok((segments.into_inner(), ports))
}

fn slow_stream(server: Ipv4Addr, open: u16, goes_on: impl Fn() -> bool) -> Result<HashSet<u16>> {
    let mut ports = HashSet::new();
    let mut next = Instant::now();
    let mut ends = (SLOW_FIRST_PORT..).map(|port| SocketAddrV4::new(SLOW_SOURCE, port));
    let mut end = || ends.next().context("the storm is too long: no port is left");
    while goes_on() {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += SLOW_INTERVAL;
        let (first, second) = (end()?, end()?);
        flood::linger_zero_from(first, SocketAddrV4::new(server, open))?;
        flood::refused_from(second, SocketAddrV4::new(server, SLOW_CLOSED))?;
        ports.extend([first.port(), second.port()]);
    }
    Ok(ports)
}

/// Ends the collector: records of the slow stream, records of other hosts that were sent, and what was said.
fn gather(collector: Collector, here: &[String], slow_ports: &HashSet<u16>) -> Result<(u64, u64, String)> {
    let (status, said, lines) = collector.stop_with_lines()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    let (mut slow, mut foreign) = (HashSet::new(), 0);
    for line in lines {
        if here.iter().any(|host| line.contains(host)) {
            let record = Record::parse(&line)?;
            let ends = [record.source, record.destination];
            let end = ends.iter().find(|end| end.ip() == SLOW_SOURCE && slow_ports.contains(&end.port()));
            let cause = CERTAIN.iter().find(|cause| record.text("tcp.reset.cause") == **cause);
            // Where a segment was lost the same is sent again.
            slow.extend(end.map(|end| end.port()).zip(cause));
        } else if line.contains("\"transmit\"") {
            foreign += 1;
        }
    }
    Ok((slow.len() as u64, foreign, said))
}

/// All resets sent, on every host, by the counts said at the end.
fn counted(said: &str) -> u64 {
    let origins = ["active", "passive", "firewall"];
    let causes = probes::Cause::ALL.iter().map(|cause| cause.word());
    causes.flat_map(|cause| origins.map(|origin| Collector::counted(said, "transmit", origin, cause))).sum()
}
