//! Connections older than the collector, ten thousand of them: each is named at both ends, and how long looking for their
//! owners took is printed.

#![forbid(unsafe_code)]

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    network::{Layout, Network},
    skip_reason,
};
use rustix::{
    net::sockopt,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

const CONNECTIONS: usize = 10_000;
/// Descriptors: two for each connection, and some for the rest.
const DESCRIPTORS: u64 = 2 * CONNECTIONS as u64 + 1_000;
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn ten_thousand_older_connections_are_named() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("{reason}");
        return Ok(());
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit { current: Some(DESCRIPTORS), maximum: limit.maximum.map(|most| most.max(DESCRIPTORS)) },
    )?;
    let network = Network::new(Layout::Loopback)?;
    let pairs = network.server.enter(connect_all)??;
    let collector = Collector::start(&[], &[])?;
    let said = collector.said();
    let took = said.lines().find_map(|line| line.split_once("owners of open sockets in ")?.1.strip_suffix(" ms"));
    println!(
        "{CONNECTIONS} connections older than the collector: their owners in {} ms",
        took.context("no time is said")?
    );
    for (client, server) in pairs {
        sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        drop(client);
        drop(server);
    }
    // A reset sent and one received of each.
    let namespaces = [network.server.inode];
    let deadline = Instant::now() + PATIENCE;
    let here = format!("\"tcp.network_namespace\":{}", network.server.inode);
    while collector.count_lines(|line| line.contains(&here)) < 2 * CONNECTIONS && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let records = collector.records(&namespaces)?;
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    let me = i64::from(std::process::id());
    let named = records.iter().filter(|record| record.number("process.pid") == Some(me)).count();
    let wrong = records.iter().filter(|record| record.number("process.pid").is_some_and(|pid| pid != me)).count();
    assert_eq!((records.len(), named, wrong), (2 * CONNECTIONS, 2 * CONNECTIONS, 0), "records, named, named wrongly");
    Ok(())
}

/// Both ends of each.
fn connect_all() -> Result<Vec<(TcpStream, TcpStream)>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let there = listener.local_addr()?;
    (0..CONNECTIONS)
        .map(|_| {
            let client = TcpStream::connect(there)?;
            Ok((client, listener.accept()?.0))
        })
        .collect()
}
