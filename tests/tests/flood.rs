//! At full speed nothing is lost, and what the kernel counted is what was captured.

#![forbid(unsafe_code)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    configuration_file, flood,
    network::{Layout, Network},
    require_root,
};

const CONNECTIONS: u64 = 200_000;
const THREADS: u64 = 2;
const TIMEOUT: Duration = Duration::from_secs(120);
/// After so long without a new record there come no more.
const QUIET: Duration = Duration::from_secs(3);
/// No rate limit: the default one keeps a flood like this from the backend.
const CONFIGURATION: &str = "capture: { max_records_per_second: null }\n";

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn refused_connections_at_full_speed() -> Result<()> {
    require_root()?;
    let file = configuration_file(CONFIGURATION)?;
    let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
    let network = Network::new(Layout::Loopback)?;
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let started = Instant::now();
    network.client.enter(|| flood::refused(closed, CONNECTIONS, THREADS))?;
    let elapsed = started.elapsed();

    let sent = network.client.tcp_counter("OutRsts")?;
    ensure!(sent >= CONNECTIONS, "the kernel has sent {sent} resets only");
    let here = format!("\"network.namespace.inode\":{}", network.client.inode);
    let printed = |direction: &str| {
        let direction = format!("\"{direction}\"");
        collector.count_lines(|line| line.contains(&here) && line.contains(&direction)) as u64
    };
    let deadline = Instant::now() + TIMEOUT;
    let (mut transmitted, mut received) = (printed("transmit"), printed("receive"));
    while Instant::now() < deadline {
        std::thread::sleep(QUIET);
        let before = (transmitted, received);
        (transmitted, received) = (printed("transmit"), printed("receive"));
        if before == (transmitted, received) {
            break;
        }
    }
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    let lost = lost(&said)?;
    println!("{sent} resets in {elapsed:?}; records: {transmitted} transmit, {received} receive; {lost} lost");
    // On loopback each reset is both sent and received.
    assert_eq!(transmitted + received + lost, 2 * sent, "captured and lost are not what was sent: {said}");
    assert_eq!((transmitted, received, lost), (sent, sent, 0), "{said}");
    Ok(())
}

/// What the collector says at its end that it lost.
fn lost(said: &str) -> Result<u64> {
    let (before, _) = said.rsplit_once(" (ring buffer full)").context("no count of lost resets")?;
    before.rsplit(' ').next().context("no count of lost resets")?.parse().context("the count of lost resets")
}
