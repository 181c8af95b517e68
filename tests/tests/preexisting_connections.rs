//! Connections older than the collector, ten thousand of them: each is named at both ends, and how long looking for their
//! owners took is printed.

#![forbid(unsafe_code)]

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    network::{Host, Layout, Network},
    require_root,
};
use rustix::{
    net::sockopt,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

const CONNECTIONS: usize = 10_000;
/// Descriptors that each end needs, with some for the rest: more than a process has at first, less than it may have.
const DESCRIPTORS: u64 = CONNECTIONS as u64 + 1_000;
/// Accepts and holds so many connections until its standard input ends.
const SERVER: &str = "\
import resource, socket, sys
count, descriptors = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
listener = socket.create_server(('127.0.0.1', 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
held = [listener.accept()[0] for _ in range(count)]
print('held', flush=True)
sys.stdin.read()
";
const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn ten_thousand_older_connections_are_named() -> Result<()> {
    require_root()?;
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: most })?;
    let network = Network::new(Layout::Loopback)?;
    let (mut server, clients) = connect_all(&network.server)?;
    let collector = Collector::start(&[], &[])?;
    let said = collector.said();
    let took = said.lines().find_map(|line| line.split_once("walk_ms=")?.1.split_whitespace().next());
    println!(
        "{CONNECTIONS} connections older than the collector: their owners in {} ms",
        took.context("no time is said")?
    );
    for client in clients {
        sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        drop(client);
    }
    // A reset sent and one received of each.
    let deadline = Instant::now() + TIMEOUT;
    let here = format!("\"network.namespace.inode\":{}", network.server.inode);
    while collector.count_lines(|line| line.contains(&here)) < 2 * CONNECTIONS && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let records = collector.records(&[network.server.inode])?;
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    let owners = [("transmit", std::process::id()), ("receive", server.id())];
    drop(server.stdin.take());
    server.wait()?;
    for (direction, pid) in owners {
        let of_this_end = records.iter().filter(|record| record.text("network.io.direction") == direction);
        let pids: Vec<Option<i64>> = of_this_end.map(|record| record.number("process.pid")).collect();
        let right = pids.iter().filter(|named| **named == Some(pid.into())).count();
        let wrong = pids.iter().filter(|named| named.is_some_and(|named| named != i64::from(pid))).count();
        assert_eq!((pids.len(), right, wrong), (CONNECTIONS, CONNECTIONS, 0), "{direction}: records, named, wrongly");
    }
    Ok(())
}

/// The server, and the clients' ends of its connections.
fn connect_all(host: &Host) -> Result<(Child, Vec<TcpStream>)> {
    let mut command = host.command("python3");
    command.args(["-c", SERVER, &CONNECTIONS.to_string(), &DESCRIPTORS.to_string()]);
    let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("no stdout")?).lines();
    let port = lines.next().context("the server does not listen")??.parse()?;
    let there = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let clients = host.enter(|| (0..CONNECTIONS).map(|_| TcpStream::connect(there)).collect::<Result<_, _>>())??;
    ensure!(lines.next().context("the server does not hold them")?? == "held");
    Ok((server, clients))
}
