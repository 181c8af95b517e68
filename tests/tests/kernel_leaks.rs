//! What the collector puts into the kernel: nothing of it stays, however it ends, and two of them do not meet.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Result, ensure};
use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use reset_collector_tests::{
    collector::Collector,
    configuration_file, flood,
    network::{Layout, Network},
    poll::eventually,
    record::Record,
    require_root,
};

const STARTS: usize = 200;
/// Every so many is killed, and has no time to clean up.
const KILLED_EVERY: usize = 10;
/// The kernel frees what nobody holds a little later.
const TIMEOUT: Duration = Duration::from_secs(20);
const RESETS: u64 = 500;
/// All that can be attached: programs of cgroups too.
const EVERYTHING: &str = "correlation: { http_headers: { ports: [8080] } }\n";

/// What the kernel holds of eBPF, by identifier: none is given twice.
#[derive(Debug, Default)]
struct Held {
    programs: HashSet<u32>,
    maps: HashSet<u32>,
    links: HashSet<u32>,
}

impl Held {
    fn now() -> Self {
        // What is freed while it is looked at is gone.
        Self {
            programs: loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect(),
            maps: loaded_maps().filter_map(Result::ok).map(|map| map.id()).collect(),
            links: loaded_links().filter_map(Result::ok).map(|link| link.id()).collect(),
        }
    }

    fn beyond(&self, before: &Self) -> (usize, usize, usize) {
        (
            self.programs.difference(&before.programs).count(),
            self.maps.difference(&before.maps).count(),
            self.links.difference(&before.links).count(),
        )
    }
}

/// Names in a directory, none where there is none.
fn names(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn two_hundred_starts_leave_nothing() -> Result<()> {
    require_root()?;
    let file = configuration_file(EVERYTHING)?;
    let directories = ["/sys/fs/bpf", "/run/netns", "/sys/fs/cgroup"];
    let (before, before_names) = (Held::now(), directories.map(names));
    let mut most = (0, 0, 0);
    for start in 0..STARTS {
        let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
        most = Held::now().beyond(&before).max(most);
        if start % KILLED_EVERY == 0 {
            collector.kill()?;
        } else {
            let (status, said) = collector.stop()?;
            ensure!(status.success(), "start {start} ended with {status}: {said}");
        }
    }
    ensure!(most.0 > 10 && most.1 > 5 && most.2 > 5, "what runs is not seen: {most:?}");
    let left = eventually(
        TIMEOUT,
        "nothing left in the kernel",
        || Ok(Held::now().beyond(&before)),
        |left| *left == (0, 0, 0),
    )?;
    println!("{STARTS} starts, {most:?} programs, maps and links at most; {left:?} left");
    ensure!(left == (0, 0, 0), "programs, maps and links stay in the kernel: {left:?}");
    ensure!(directories.map(names) == before_names, "names stay: {before_names:?}, now {:?}", directories.map(names));
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn two_side_by_side_see_the_same() -> Result<()> {
    require_root()?;
    let file = configuration_file(EVERYTHING)?;
    let network = Network::new(Layout::Loopback)?;
    let refuse = |times| {
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        network.client.enter(|| flood::refused(closed, times, 1))
    };
    let first = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
    let second = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
    refuse(RESETS)?;
    let both = [told(&first, &network, RESETS)?, told(&second, &network, RESETS)?];
    ensure!(both[0] == both[1], "one tells of what the other does not");
    // One that ends takes nothing of the other's with it, and one that is killed neither.
    let (status, said) = first.stop()?;
    ensure!(status.success(), "the first ended with {status}: {said}");
    refuse(RESETS)?;
    told(&second, &network, 2 * RESETS)?;
    let third = Collector::start(&[], &[])?;
    second.kill()?;
    refuse(RESETS)?;
    told(&third, &network, RESETS)?;
    third.stop()?;
    Ok(())
}

/// What tells each record of another, once each of so many resets has its two.
fn told(collector: &Collector, network: &Network, resets: u64) -> Result<BTreeSet<(String, SocketAddr, SocketAddr)>> {
    let look = || collector.records(&[network.client.inode]);
    let records = eventually(TIMEOUT, "two records of each reset", look, |records| records.len() as u64 >= 2 * resets)?;
    ensure!(records.len() as u64 == 2 * resets, "{resets} resets, {} records", records.len());
    let told = |record: &Record| (record.text("network.io.direction").to_owned(), record.source, record.destination);
    Ok(records.iter().map(told).collect())
}
