//! A host that resets nothing: how soon the collector captures, what it takes while idle, and what it costs the host's
//! connections and throughput, in turns with and without it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::{Collector, program},
    network::{Layout, Network},
    process::usage,
};
use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};

use crate::table::{Report, spread};

const STARTS: usize = 7;
const IDLE: Duration = Duration::from_secs(10);
/// Windows tried for one in which nobody on the host was reset.
const IDLE_TRIES: usize = 6;
const TURNS: usize = 5;
const TURN: Duration = Duration::from_millis(1_000);

/// From the start of the process to the first line on a reset, where resets are made without a pause.
///
/// # Errors
/// The collector fails.
pub(crate) fn first_capture(report: &mut Report) -> Result<()> {
    let program = program()?;
    let network = Network::new(Layout::Loopback)?;
    let here = format!("\"network.namespace.inode\":{}", network.client.inode);
    let mut figures = Vec::new();
    for _ in 0..STARTS {
        let over = AtomicBool::new(false);
        let elapsed = std::thread::scope(|scope| -> Result<Duration> {
            let resets = scope.spawn(|| {
                network.client.enter(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(TcpStream::connect((network.client.v4, 1)));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                })
            });
            let elapsed = first_line(Command::new(&program).arg("run"), &here);
            over.store(true, Ordering::Relaxed);
            resets.join().map_err(|_| anyhow::anyhow!("the maker of resets panicked"))??;
            elapsed
        })?;
        figures.push(elapsed.as_secs_f64() * 1e3);
    }
    let [least, middle, most] = spread(&figures, 0);
    report.table(
        "From the start of the process to the first record printed, ms (a reset every ms)",
        &["starts", "least", "median", "most"],
        &[vec![STARTS.to_string(), least, middle, most]],
    );
    Ok(())
}

fn first_line(command: &mut Command, here: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(here)));
    let elapsed = started.elapsed();
    kill_process(Pid::from_child(&child), Signal::INT)?;
    // What it prints until its end must go somewhere.
    lines.for_each(drop);
    child.wait()?;
    found.context("the collector ended without a record")??;
    Ok(elapsed)
}

/// Memory, processor time and wake-ups while nothing is reset.
///
/// # Errors
/// The collector fails.
pub(crate) fn idle(report: &mut Report) -> Result<()> {
    let collector = Collector::start(&[], &[])?;
    let mut rows = Vec::new();
    for _ in 0..IDLE_TRIES {
        let (records, before) = (collector.count_lines(|_| true), usage(collector.pid())?);
        std::thread::sleep(IDLE);
        let (after, records) = (usage(collector.pid())?, collector.count_lines(|_| true) - records);
        rows = vec![vec![
            format!("{:.1}", after.resident_bytes as f64 / f64::from(1 << 20)),
            after.threads.to_string(),
            (after.voluntary_switches - before.voluntary_switches).to_string(),
            format!("{}", (after.processor - before.processor).as_millis()),
            records.to_string(),
        ]];
        if records == 0 {
            break;
        }
    }
    collector.stop()?;
    report.table(
        "Idle for 10 s, the whole process",
        &[
            "MiB resident, the ring buffer apart",
            "threads",
            "wake-ups",
            "processor time, ms",
            "resets meanwhile on the host",
        ],
        &rows,
    );
    Ok(())
}

/// What is compared: with the collector, and with part of it.
const KINDS: [(&str, Option<&str>); 3] = [
    ("without", None),
    ("with", Some("{}")),
    ("with, `capture.firewall: false`", Some("capture: { firewall: false }")),
];

/// Connections and bytes a second over veth in turns.
///
/// # Errors
/// A host or the collector fails.
pub(crate) fn cost(report: &mut Report, configuration: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    let network = Network::new(Layout::Wire)?;
    let mut figures = vec![[const { Vec::new() }; 4]; KINDS.len()];
    for turn in 0..TURNS {
        for at in 0..KINDS.len() {
            // Each turn begins with another, so that none is always the first.
            let at = (at + turn) % KINDS.len();
            let collector = match KINDS[at].1 {
                Some(text) => Some(Collector::start_keeping(&["--config", &configuration(text)?], &[], |_| false)?),
                None => None,
            };
            let connections = Pace::of(|| connections(&network))?;
            let bytes = Pace::of(|| bytes(&network))?;
            for (into, figure) in figures[at].iter_mut().zip([
                connections.a_second,
                bytes.a_second,
                connections.a_processor_second,
                bytes.a_processor_second,
            ]) {
                into.push(figure);
            }
            if let Some(collector) = collector {
                collector.stop()?;
            }
        }
    }
    let mut rows = Vec::new();
    for (name, of) in KINDS.iter().zip(&figures).skip(1).map(|(kind, of)| (kind.0, of)) {
        for (at, what) in
            ["connections a second", "bytes a second", "connections a processor second", "bytes a processor second"]
                .iter()
                .enumerate()
        {
            let ratios: Vec<f64> = of[at].iter().zip(&figures[0][at]).map(|(with, without)| with / without).collect();
            let [least, middle, most] = spread(&ratios, 3);
            let [_, absolute, _] = spread(&figures[0][at], 0);
            rows.push(vec![name.to_owned(), (*what).to_owned(), absolute, least, middle, most]);
        }
    }
    report.table(
        &format!("A host that resets nothing: with the collector / without, over veth, {TURNS} turns"),
        &["", "what", "without, median", "ratio, least", "median", "most"],
        &rows,
    );
    Ok(())
}

/// How much of something was done in the time and in the processor time of this process that it took: both ends are in
/// it, and on a busy machine the latter is the steadier.
struct Pace {
    a_second: f64,
    a_processor_second: f64,
}

impl Pace {
    fn of(act: impl FnOnce() -> Result<u64>) -> Result<Self> {
        let processor = || {
            let time = clock_gettime(ClockId::ProcessCPUTime);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        };
        let (started, before) = (Instant::now(), processor());
        let done = act()? as f64;
        ensure!(done > 0.0, "nothing was done");
        Ok(Self { a_second: done / started.elapsed().as_secs_f64(), a_processor_second: done / (processor() - before) })
    }
}

/// Connections opened, accepted and closed, the server first: neither end is reset, and no port is used up.
fn connections(network: &Network) -> Result<u64> {
    in_pair(
        network,
        |listener, over| {
            while !over.load(Ordering::Relaxed) {
                drop(listener.accept()?);
            }
            Ok(())
        },
        |there, until| {
            let mut count = 0;
            while Instant::now() < until {
                let mut stream = TcpStream::connect(there)?;
                ensure!(stream.read(&mut [0])? == 0, "the server sent something");
                count += 1;
            }
            Ok(count)
        },
    )
}

/// Bytes that one connection carries.
fn bytes(network: &Network) -> Result<u64> {
    in_pair(
        network,
        |listener, over| {
            let mut buffer = vec![0; 256 << 10];
            while !over.load(Ordering::Relaxed) {
                let (mut stream, _) = listener.accept()?;
                while stream.read(&mut buffer)? > 0 {}
            }
            Ok(())
        },
        |there, until| {
            let mut stream = TcpStream::connect(there)?;
            let buffer = vec![0; 256 << 10];
            let mut count = 0;
            while Instant::now() < until {
                stream.write_all(&buffer)?;
                count += buffer.len() as u64;
            }
            stream.shutdown(Shutdown::Write)?;
            // The server has read all when it closes.
            ensure!(stream.read(&mut [0])? == 0, "the server sent something");
            Ok(count)
        },
    )
}

fn in_pair(
    network: &Network,
    serve: impl Fn(&TcpListener, &AtomicBool) -> Result<()> + Send + Sync,
    load: impl Fn(SocketAddr, Instant) -> Result<u64> + Send + Sync,
) -> Result<u64> {
    let (client, server) = (&network.client, &network.server);
    let listener = server.enter(|| TcpListener::bind((server.v4, 0)))??;
    let there = listener.local_addr()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, &over));
        let done = client.enter(|| load(there, Instant::now() + TURN))?;
        over.store(true, Ordering::Relaxed);
        // One more, so that the server looks up.
        client.enter(|| TcpStream::connect(there).map(drop))??;
        serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        done
    })
}
