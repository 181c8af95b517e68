//! The conservation law of the whole program, looked at every 100 ms while its backend dies, hangs and is cut off, while
//! the ring buffer overflows, and while the collector itself is killed.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what was seen is worth a line")]

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::{Backend, free_address},
    collector::Collector,
    flood,
    metrics::Metrics,
    network::{Layout, Network},
    record::Record,
    skip_reason,
};
use rustix::process::{Pid, Signal, kill_process};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After the last fault, until all has gone out.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nobody listens there.
const CLOSED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

const BACKEND_KILLS: usize = 5;
const STOPPED_FOR: Duration = Duration::from_secs(10);
const CUT_OFF_FOR: Duration = Duration::from_secs(5);
/// How often the collector is killed, unless `RESET_TESTS_KILLS` says it.
const COLLECTOR_KILLS: u64 = 20;
const LONGEST_RUN_MS: u64 = 1_200;
/// What a killed collector may take with it: a batch that waits for more, and a pipeline on a machine that is busy.
const TAIL: Duration = Duration::from_millis(500);
const BURST: u64 = 20_000;

/// Removes a file or a directory at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("reset-collector-law-{}-{name}", std::process::id())))
    }

    fn configuration(name: &str, admin: SocketAddr, capture: &str, console: &str, destination: &str) -> Result<Self> {
        let scratch = Self::new(name);
        let text = format!(
            "admin: {{ endpoint: \"{admin}\" }}\ncapture: {{ max_records_per_second: null{capture} }}\n\
             export:\n  signals: [logs]\n  console: {console}\n  otlp:\n{destination}    timeout: 2s\n\
             \x20   retry_on_failure: {{ initial_interval: 100ms, max_interval: 500ms, max_elapsed_time: 0s }}\n\
             \x20   batch: {{ flush_timeout: 50ms }}\n"
        );
        std::fs::write(&scratch.0, text)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs a test on a host of its own, where nothing but its own connections can be cut.
fn on_own_host(act: impl FnOnce(&Network) -> Result<()> + Send) -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("{reason}");
        return Ok(());
    }
    let network = Network::new(Layout::Loopback)?;
    network.client.enter(|| act(&network))?
}

fn term(metrics: &Metrics, name: &str) -> u64 {
    metrics.sum(&format!("reset_collector_{name}"), &[])
}

/// Looks at the law until it is over; how often, and the most that was queued.
fn looks(admin: SocketAddr, over: &AtomicBool) -> Result<(usize, u64)> {
    let (mut times, mut most) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let metrics = Metrics::read(admin)?;
        metrics.check_law()?;
        (times, most) = (times + 1, most.max(term(&metrics, "queued_resets")));
        std::thread::sleep(LOOK_EVERY);
    }
    Ok((times, most))
}

/// Refused connections, some hundred a second, until it is over.
fn load(over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        flood::refused(CLOSED, 10, 1);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until everything that is captured now has its fate; other resets of the machine go on.
fn wait_until_settled(admin: SocketAddr) -> Result<Metrics> {
    let fates = |metrics: &Metrics| term(metrics, "exported_resets_total") + term(metrics, "dropped_resets_total");
    let due = |metrics: &Metrics| term(metrics, "captured_resets_total") + term(metrics, "recovered_resets_total");
    let (first, deadline) = (due(&Metrics::read(admin)?), Instant::now() + PATIENCE);
    loop {
        let metrics = Metrics::read(admin)?;
        metrics.check_law()?;
        if fates(&metrics) >= first {
            return Ok(metrics);
        }
        ensure!(Instant::now() < deadline, "{first} captured, and they do not go out: {metrics:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(i32::try_from(pid)?).context("pid 0")?, signal)?;
    Ok(())
}

fn nft(command: &str) -> Result<()> {
    let output = Command::new("nft").arg(command).output().context("nft is missing: run tests/setup")?;
    ensure!(output.status.success(), "nft {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn the_backend_is_killed_stopped_and_cut_off() -> Result<()> {
    on_own_host(|network| {
        let mut backend = Backend::start()?;
        let admin = free_address()?;
        let destination = format!("    endpoint: \"http://{}\"\n", backend.grpc);
        let file = Scratch::configuration("backend", admin, "", "\"off\"", &destination)?;
        let _collector = Collector::start(&["--config", &file.0.to_string_lossy()], &[])?;
        let over = AtomicBool::new(false);
        let before = network.client.tcp_counter("OutRsts")?;
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| load(&over));
            let looks = scope.spawn(|| looks(admin, &over));
            let faults = backend_faults(&mut backend);
            let settled = wait_until_settled(admin);
            over.store(true, Ordering::Relaxed);
            let (times, most) = looks.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            faults?;
            let metrics = settled?;
            let dropped = term(&metrics, "dropped_resets_total");
            println!(
                "{times} looks, {most} queued at most; {} exported, {dropped} dropped, {} retries, {} perhaps twice",
                term(&metrics, "exported_resets_total"),
                term(&metrics, "retries_total"),
                term(&metrics, "possibly_duplicated_resets_total"),
            );
            ensure!(most > 100 && dropped == 0, "nothing waited, or something was lost");
            Ok(())
        })?;
        // What a killed backend had accepted and not written is its own loss, so what arrived is not counted here.
        let sent = network.client.tcp_counter("OutRsts")? - before;
        ensure!(sent > 1_000, "only {sent} resets were made");
        Ok(())
    })
}

fn backend_faults(backend: &mut Backend) -> Result<()> {
    for _ in 0..BACKEND_KILLS {
        std::thread::sleep(Duration::from_millis(700));
        backend.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        backend.restart()?;
    }
    signal(backend.pid(), Signal::STOP)?;
    std::thread::sleep(STOPPED_FOR);
    signal(backend.pid(), Signal::CONT)?;
    std::thread::sleep(Duration::from_secs(1));
    // No reset, no answer: as a cable that is cut.
    let rule = format!("tcp dport {0} drop; add rule inet law out tcp sport {0} drop", backend.grpc.port());
    nft(&format!(
        "add table inet law; add chain inet law out {{ type filter hook output priority 0; }}; add rule inet law out {rule}"
    ))?;
    std::thread::sleep(CUT_OFF_FOR);
    nft("delete table inet law")
}

/// How often each record of a network namespace has arrived.
fn arrived(backend: &Backend, namespace: u32) -> Result<HashMap<String, u64>> {
    let mut times = HashMap::new();
    for log in backend.logs()? {
        if log.attributes["tcp.network_namespace"].as_u64() == Some(namespace.into()) {
            let text = |name: &str| log.attributes[name].to_string();
            *times
                .entry(identity(log.time_ns, &text("source.port"), &log.attributes["network.io.direction"]))
                .or_default() += 1;
        }
    }
    Ok(times)
}

/// One record for ever: no two resets of one end have the same time and port.
fn identity(time_ns: u64, source_port: &str, direction: &serde_json::Value) -> String {
    format!("{time_ns} {source_port} {direction}")
}

#[test]
fn the_ring_buffer_overflows() -> Result<()> {
    on_own_host(|network| {
        let backend = Backend::start()?;
        let admin = free_address()?;
        let destination = format!("    endpoint: \"http://{}\"\n", backend.grpc);
        let file = Scratch::configuration("ring", admin, ", ring_buffer_size: 64KiB", "\"off\"", &destination)?;
        let collector = Collector::start(&["--config", &file.0.to_string_lossy()], &[])?;
        let before = network.client.tcp_counter("OutRsts")?;
        // It reads nothing meanwhile, as on a machine that gives it no time.
        signal(collector.pid(), Signal::STOP)?;
        flood::refused(CLOSED, BURST, 2);
        signal(collector.pid(), Signal::CONT)?;
        let metrics = wait_until_settled(admin)?;
        let lost = metrics.sum("reset_collector_dropped_resets_total", &[("reason", "ring_buffer_full")]);
        let captured = metrics.sum("tcp_resets_total", &[]);
        let (sent, arrived) = (network.client.tcp_counter("OutRsts")? - before, backend.logs()?.len() as u64);
        println!(
            "{sent} resets sent here; {captured} counted, {lost} lost for want of room, {arrived} records arrived"
        );
        ensure!(sent >= BURST && captured >= 2 * sent, "each is sent and received");
        ensure!(lost > BURST, "a small buffer cannot have held them");
        let exported = term(&metrics, "exported_resets_total");
        ensure!(arrived >= exported, "{exported} exported, {arrived} arrived");
        let (status, said) = collector.stop()?;
        ensure!(status.success(), "the collector ended with {status}: {said}");
        Ok(())
    })
}

#[test]
#[ignore = "not shown yet: records printed more than half a second before the kill were missing (README, known limits)"]
fn killed_at_any_instant_it_loses_no_more_than_the_tail() -> Result<()> {
    on_own_host(|network| {
        let backend = Backend::start()?;
        let admin = free_address()?;
        let storage = Scratch::new("storage");
        let destination = format!(
            "    endpoint: \"http://{}\"\n    sending_queue: {{ storage: \"{}\" }}\n",
            backend.grpc,
            storage.0.display()
        );
        let file = Scratch::configuration("killed", admin, "", "json", &destination)?;
        let kills = std::env::var("RESET_TESTS_KILLS").ok().map_or(Ok(COLLECTOR_KILLS), |text| text.parse())?;
        let over = AtomicBool::new(false);
        let (mut printed, mut tail, mut recovered) = (HashSet::new(), HashSet::new(), 0);
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| load(&over));
            let runs = (0..kills).try_for_each(|_| -> Result<()> {
                let run = killed_run(&file.0, admin, network.client.inode)?;
                recovered += run.recovered;
                printed.extend(run.printed);
                tail.extend(run.tail);
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            runs
        })?;
        // One that is not killed sends what the last one left.
        let collector = Collector::start(&["--config", &file.0.to_string_lossy()], &[])?;
        let metrics = wait_until_settled(admin)?;
        recovered += term(&metrics, "recovered_resets_total");
        collector.stop()?;
        let arrived = arrived(&backend, network.client.inode)?;
        let lost: Vec<_> = printed.iter().filter(|one| !arrived.contains_key(*one)).collect();
        let lost_tail = tail.iter().filter(|one| !arrived.contains_key(*one)).count();
        let twice: u64 = arrived.values().map(|times| times - 1).sum();
        println!(
            "{kills} kills: {} records printed and {} in the last {TAIL:?} before a kill; {} arrived, {twice} of \
             them again; lost: {} and {lost_tail}; {recovered} recovered from storage",
            printed.len(),
            tail.len(),
            arrived.len(),
            lost.len()
        );
        ensure!(printed.len() > 500, "there was no load");
        ensure!(lost.is_empty(), "lost, and no tail: {:?}", &lost[..lost.len().min(5)]);
        Ok(())
    })
}

/// What one run printed until it was killed.
struct KilledRun {
    printed: HashSet<String>,
    /// Of the last moments.
    tail: HashSet<String>,
    recovered: u64,
}

fn killed_run(file: &Path, admin: SocketAddr, namespace: u32) -> Result<KilledRun> {
    let mine = format!("\"tcp.network_namespace\":{namespace}");
    let keep = move |line: &str| line.contains(&mine);
    let collector = Collector::start_keeping(&["--config", &file.to_string_lossy()], &[], keep)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let until = Instant::now() + Duration::from_millis(u64::from(clock.subsec_nanos()) % LONGEST_RUN_MS);
    let mut recovered = 0;
    while Instant::now() < until {
        let metrics = Metrics::read(admin)?;
        metrics.check_law()?;
        recovered = term(&metrics, "recovered_resets_total");
        std::thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
    }
    let killed = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let lines = collector.kill()?;
    let last = u64::try_from((killed - TAIL).as_nanos())?;
    let mut run = KilledRun { printed: HashSet::new(), tail: HashSet::new(), recovered };
    for line in lines {
        // The last line may be cut off.
        let Ok(record) = Record::parse(&line) else { continue };
        let direction = record.attribute("network.io.direction").context("no direction")?;
        let identity = identity(record.time_ns, &record.source.port().to_string(), direction);
        let of = if record.time_ns < last { &mut run.printed } else { &mut run.tail };
        of.insert(identity);
    }
    Ok(run)
}
