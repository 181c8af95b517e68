//! Owners on a busy machine: resets of known processes among thousands of other connections a second, none misnamed.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the shares are worth a line")]

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    configuration_file,
    network::{Host, Layout, Network},
    owner::build_peer,
    record::Record,
    require_root,
};

/// Pairs of processes, each with addresses of its own: so the address tells whose a record is.
const PAIRS: u64 = 4;
const RESETS: u64 = 50_000;
/// Connections a second of processes that reset nothing, and how many such processes.
const NOISE_RATE: u64 = 5_000;
const NOISE_PROCESSES: u64 = 2;
/// One record in so many may be without an owner.
const NAMELESS_ALLOWED_OF: u64 = 1_000;
const TIMEOUT: Duration = Duration::from_secs(180);
const PORT: &str = "7000";
/// The noise is stopped when the resets are done.
const NOISE_SECONDS: &str = "600";

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    fn start(host: &Host, peer: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(peer);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(host.enter(|| command.spawn())??))
    }

    fn wait(&mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "a process ended with {status}");
        Ok(())
    }
}

/// Records by local address, and by who is named.
type Tally = HashMap<String, HashMap<Option<(i64, String)>, u64>>;

fn count(tally: &mut Tally, record: &Record) {
    let owner = record.number("process.pid").map(|pid| (pid, record.text("process.executable.name").to_owned()));
    *tally.entry(record.text("network.local.address").to_owned()).or_default().entry(owner).or_default() += 1;
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn among_other_connections_none_is_misnamed() -> Result<()> {
    require_root()?;
    let peer = build_peer()?;
    let network = Network::new(Layout::Loopback)?;
    let host = &network.server;
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let (to_tally, mine) = (Arc::clone(&tally), format!("\"network.namespace.inode\":{}", host.inode));
    let keep = move |line: &str| {
        if line.contains(&mine)
            && let Ok(record) = Record::parse(line)
        {
            count(&mut to_tally.lock().unwrap_or_else(PoisonError::into_inner), &record);
        }
        false
    };
    let file = configuration_file("capture: { max_records_per_second: null, ring_buffer_size: 64MiB }\n")?;
    let collector = Collector::start_keeping(&["--config", &file.path().to_string_lossy()], &[], keep)?;

    let started = Instant::now();
    let owners = act(host, &peer)?;
    let elapsed = started.elapsed();
    wait_for(&tally, 2 * RESETS);
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    judge(&tally, &owners, elapsed, &said)
}

/// Makes the resets, and returns whose each address is.
fn act(host: &Host, peer: &Path) -> Result<HashMap<String, u32>> {
    let noise_server = "127.0.3.1";
    let mut programs = vec![Running::start(host, peer, &["answer", noise_server, PORT])?];
    let mut owners = HashMap::new();
    for pair in 1..=PAIRS {
        let server = format!("127.0.1.{pair}");
        programs.push(Running::start(host, peer, &["answer", &server, PORT])?);
        owners.insert(server, programs.last().context("a server")?.0.id());
    }
    // Until all listen.
    std::thread::sleep(Duration::from_secs(1));
    let rate = (NOISE_RATE / NOISE_PROCESSES).to_string();
    for number in 1..=NOISE_PROCESSES {
        let from = format!("127.0.4.{number}");
        programs.push(Running::start(host, peer, &["noise", &from, noise_server, PORT, &rate, NOISE_SECONDS])?);
    }
    let times = (RESETS / PAIRS).to_string();
    let noise_before = host.tcp_counter("ActiveOpens")?;
    let started = Instant::now();
    let mut clients = Vec::new();
    for pair in 1..=PAIRS {
        let (from, to) = (format!("127.0.2.{pair}"), format!("127.0.1.{pair}"));
        clients.push(Running::start(host, peer, &["demand", &from, &to, PORT, &times])?);
        owners.insert(from, clients.last().context("a client")?.0.id());
    }
    clients.iter_mut().try_for_each(Running::wait)?;
    let opened = host.tcp_counter("ActiveOpens")? - noise_before - RESETS;
    println!("{:.0} other connections a second", opened as f64 / started.elapsed().as_secs_f64());
    Ok(owners)
}

fn wait_for(tally: &Mutex<Tally>, records: u64) {
    let total = || -> u64 {
        let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.values().flat_map(HashMap::values).sum()
    };
    let deadline = Instant::now() + TIMEOUT;
    while total() < records && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn judge(tally: &Tally, owners: &HashMap<String, u32>, elapsed: Duration, said: &str) -> Result<()> {
    let (mut right, mut nameless, mut wrong, mut examples) = (0, 0, 0, Vec::new());
    for (address, named) in tally {
        let Some(&due) = owners.get(address) else {
            // The noise is stopped in the middle of its connections.
            continue;
        };
        for (owner, times) in named {
            match owner {
                None => nameless += times,
                Some((pid, name)) if *pid == i64::from(due) && name == "reset-peer" => right += times,
                Some(other) => {
                    wrong += times;
                    examples.push(format!("{address} is {due}'s, {times} times named {other:?}"));
                }
            }
        }
    }
    println!(
        "{RESETS} resets in {elapsed:?}: {right} ends right, {nameless} without an owner, {wrong} wrong {examples:?}"
    );
    ensure!(wrong == 0, "{wrong} wrong owners: {examples:?}");
    ensure!(right + nameless == 2 * RESETS, "{} records for {RESETS} resets: {said}", right + nameless);
    ensure!(nameless * NAMELESS_ALLOWED_OF < 2 * RESETS, "{nameless} without an owner");
    Ok(())
}
