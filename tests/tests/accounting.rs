//! The accounting invariant of the whole program, sampled every 100 ms while its backend dies, hangs and is cut off, while
//! the ring buffer overflows, and while the collector itself is killed.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what was seen is worth a line")]

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::Collector,
    configuration_file, flood,
    metrics::Metrics,
    network::{Layout, Network},
    poll::eventually,
    record::Record,
    require_root,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use tempfile::NamedTempFile;
use tempfile::TempDir;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// After the last fault, until all has gone out.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Nobody listens there.
const CLOSED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);

/// How often the backend is killed, how long it is stopped and cut off: in CI, and where `RESET_TESTS_LONG` is set.
const SHORT: BackendFaults =
    BackendFaults { kills: 5, stopped: Duration::from_secs(10), cut_off: Duration::from_secs(5) };
const LONG: BackendFaults =
    BackendFaults { kills: 20, stopped: Duration::from_secs(60), cut_off: Duration::from_secs(20) };
/// The whole disk of a queue.
const SMALL_DISK: &std::ffi::CStr = c"size=512k";
/// How often the collector is killed, unless `RESET_TESTS_KILLS` says it.
const COLLECTOR_KILLS: u64 = 10;
const MAX_RUN_MS: u64 = 2_000;
/// Resets as young as this may go with a killed collector: it looks into the ring buffer every 20 ms, as far as a busy
/// machine lets it.
const TAIL: Duration = Duration::from_secs(1);
/// The Collector's file is written this often, and it needs a moment for it.
const BACKEND_WRITES: Duration = Duration::from_millis(300);
/// Ports that resets are made from, each once in a long while; none that the kernel gives to others.
const LOAD_PORTS: std::ops::Range<u16> = 10_000..30_000;
const BURST: u64 = 20_000;

/// A configuration of the tests, by what differs.
fn configuration(capture: &str, console: &str, destination: &str) -> Result<NamedTempFile> {
    configuration_file(&format!(
        "admin: {{ endpoint: \"127.0.0.1:0\" }}\ncapture: {{ max_records_per_second: null{capture} }}\n\
         export:\n  signals: [logs]\n  console: {console}\n  otlp:\n{destination}    timeout: 2s\n\
         \x20   retry_on_failure: {{ initial_interval: 100ms, max_interval: 500ms, max_elapsed_time: 0s }}\n\
         \x20   batch: {{ flush_timeout: 50ms }}\n"
    ))
}

/// Runs a test on a host of its own, where nothing but its own connections can be cut.
fn on_own_host(act: impl FnOnce(&Network) -> Result<()> + Send) -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    network.client.enter(|| act(&network))?
}

fn term(metrics: &Metrics, name: &str) -> u64 {
    metrics.sum(&format!("reset_collector_{name}"), &[])
}

/// The metrics, in which the accounting invariant holds.
fn look(admin: SocketAddr) -> Result<Metrics> {
    let metrics = Metrics::read(admin)?;
    metrics.check_accounting()?;
    Ok(metrics)
}

/// Samples the invariant until it is over; how often, and the most that was queued.
fn looks(admin: SocketAddr, over: &AtomicBool) -> Result<(usize, u64)> {
    let (mut times, mut most) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let metrics = look(admin)?;
        (times, most) = (times + 1, most.max(term(&metrics, "queued_resets")));
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok((times, most))
}

/// Refused connections, some hundred a second, until it is over.
fn load(over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        flood::refused(CLOSED.into(), 10, 1);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until everything that is captured now has its outcome; other resets of the machine go on.
fn wait_until_settled(admin: SocketAddr) -> Result<Metrics> {
    let outcomes = |metrics: &Metrics| term(metrics, "exported_resets_total") + term(metrics, "dropped_resets_total");
    let due = |metrics: &Metrics| term(metrics, "captured_resets_total") + term(metrics, "recovered_resets_total");
    let first = due(&Metrics::read(admin)?);
    let metrics = eventually(
        TIMEOUT,
        "an outcome for each captured reset",
        || look(admin),
        |metrics| outcomes(metrics) >= first,
    )?;
    ensure!(outcomes(&metrics) >= first, "{first} captured, and they do not go out: {metrics:?}");
    Ok(metrics)
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
#[ignore = "needs root: run by `make e2e`"]
fn the_backend_is_killed_stopped_and_cut_off() -> Result<()> {
    on_own_host(|network| {
        let mut backend = Backend::start()?;
        // Room for what the rest of the machine does meanwhile.
        let destination =
            format!("    endpoint: \"http://{}\"\n    sending_queue: {{ queue_size: 2000000 }}\n", backend.grpc);
        let file = configuration("", "\"off\"", &destination)?;
        let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
        let admin = collector.admin()?;
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
                term(&metrics, "resent_resets_total"),
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

struct BackendFaults {
    kills: usize,
    stopped: Duration,
    cut_off: Duration,
}

fn backend_faults(backend: &mut Backend) -> Result<()> {
    let faults = if std::env::var_os("RESET_TESTS_LONG").is_some() { LONG } else { SHORT };
    for _ in 0..faults.kills {
        std::thread::sleep(Duration::from_millis(700));
        backend.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        backend.restart()?;
    }
    signal(backend.pid(), Signal::STOP)?;
    std::thread::sleep(faults.stopped);
    signal(backend.pid(), Signal::CONT)?;
    std::thread::sleep(Duration::from_secs(1));
    // No reset, no answer: as a cable that is cut.
    let rule = format!("tcp dport {0} drop; add rule inet accounting out tcp sport {0} drop", backend.grpc.port());
    nft(&format!(
        "add table inet accounting; add chain inet accounting out {{ type filter hook output priority 0; }}; add rule inet accounting out {rule}"
    ))?;
    std::thread::sleep(faults.cut_off);
    nft("delete table inet accounting")
}

/// A record, the same wherever it is exported: no two resets of one direction to one port have the same time.
type Identity = (u16, String, u64);

/// How often each record of a network namespace has arrived.
fn arrived(backend: &Backend, namespace: u32) -> Result<HashMap<Identity, u64>> {
    let mut times = HashMap::new();
    backend.each_log(|log| {
        if log.is_of(namespace) {
            *times.entry(identity(log.time_ns, |name| log.attributes.get(name))?).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(times)
}

fn identity<'a>(time_ns: u64, attribute: impl Fn(&str) -> Option<&'a serde_json::Value>) -> Result<Identity> {
    let direction = attribute("network.io.direction").and_then(|value| value.as_str()).context("no direction")?;
    let to = if direction == "transmit" { "network.peer.port" } else { "network.local.port" };
    let port = attribute(to).and_then(serde_json::Value::as_u64).context("no port")?;
    Ok((u16::try_from(port)?, direction.to_owned(), time_ns))
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_ring_buffer_overflows() -> Result<()> {
    on_own_host(|network| {
        let backend = Backend::start()?;
        let destination = format!("    endpoint: \"http://{}\"\n", backend.grpc);
        let file = configuration(", ring_buffer_size: 64KiB", "\"off\"", &destination)?;
        let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
        let admin = collector.admin()?;
        let before = network.client.tcp_counter("OutRsts")?;
        // It reads nothing meanwhile, as on a machine that gives it no time.
        signal(collector.pid(), Signal::STOP)?;
        flood::refused(CLOSED.into(), BURST, 2);
        signal(collector.pid(), Signal::CONT)?;
        let metrics = wait_until_settled(admin)?;
        let lost = metrics.sum("reset_collector_dropped_resets_total", &[("reason", "ring_buffer_full")]);
        let captured = metrics.sum("tcp_resets_total", &[]);
        let exported = term(&metrics, "exported_resets_total");
        let sent = network.client.tcp_counter("OutRsts")? - before;
        // The backend writes what it has taken later.
        let arrived = eventually(
            TIMEOUT,
            "all exported records at the backend",
            || Ok(backend.logs()?.len() as u64),
            |arrived| *arrived >= exported,
        )?;
        println!(
            "{sent} resets sent here; {captured} counted, {lost} lost for want of room, {arrived} records arrived"
        );
        ensure!(sent >= BURST && captured >= 2 * sent, "each is sent and received");
        ensure!(lost > BURST, "a small buffer cannot have held them");
        ensure!(arrived >= exported, "{exported} exported, {arrived} arrived");
        let (status, said) = collector.stop()?;
        ensure!(status.success(), "the collector ended with {status}: {said}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_disk_is_full() -> Result<()> {
    on_own_host(|_| {
        let backend = Backend::start()?;
        let disk = Disk::new()?;
        let destination = format!(
            "    endpoint: \"http://{}\"\n    sending_queue: {{ storage: {{ directory: \"{}\" }} }}\n",
            backend.grpc,
            disk.0.path().display()
        );
        let file = configuration("", "\"off\"", &destination)?;
        let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
        let admin = collector.admin()?;
        signal(backend.pid(), Signal::STOP)?;
        let lost =
            |metrics: &Metrics| metrics.sum("reset_collector_dropped_resets_total", &[("reason", "storage_full")]);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            flood::refused(CLOSED.into(), 100, 1);
            let metrics = look(admin)?;
            if lost(&metrics) > 100 {
                break;
            }
            ensure!(Instant::now() < deadline, "the disk does not fill: {metrics:?}");
        }
        let kept = term(&Metrics::read(admin)?, "queued_resets");
        signal(backend.pid(), Signal::CONT)?;
        let settled = |is_so: &dyn Fn(&Metrics) -> bool| -> Result<Metrics> {
            let metrics = eventually(TIMEOUT, "the queue after the disk was full", || look(admin), is_so)?;
            ensure!(is_so(&metrics), "{kept} were kept, and: {metrics:?}");
            Ok(metrics)
        };
        let metrics = settled(&|metrics| term(metrics, "exported_resets_total") >= kept)?;
        println!("a full disk: {kept} kept and sent, {} dropped and counted", lost(&metrics));
        ensure!(kept > 100 && term(&metrics, "dropped_resets_total") == lost(&metrics), "{metrics:?}");
        // What is sent makes room, sooner or later: then nothing is lost any more.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let before = Metrics::read(admin)?;
            flood::refused(CLOSED.into(), 20, 1);
            let exported = term(&before, "exported_resets_total");
            let after = settled(&|metrics| {
                term(metrics, "captured_resets_total") >= term(&before, "captured_resets_total") + 40
            })?;
            std::thread::sleep(POLL_INTERVAL);
            if lost(&Metrics::read(admin)?) == lost(&before) && term(&after, "exported_resets_total") >= exported {
                break;
            }
            ensure!(Instant::now() < deadline, "there is room again, and it is not used");
        }
        let (status, said) = collector.stop()?;
        let lines = said.lines().filter(|line| line.contains("storage_full")).count();
        ensure!(status.success() && lines == 1, "{status}, {lines} lines tell of it: {said}");
        Ok(())
    })
}

/// A small file system, unmounted at the end.
struct Disk(TempDir);

impl Disk {
    fn new() -> Result<Self> {
        let directory = TempDir::new()?;
        mount("none", directory.path(), "tmpfs", MountFlags::empty(), Some(SMALL_DISK))?;
        Ok(Self(directory))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.0.path(), UnmountFlags::DETACH) {
            println!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn killed_at_any_instant_it_loses_no_more_than_the_tail() -> Result<()> {
    on_own_host(|network| {
        let backend = Backend::start()?;
        let storage = TempDir::new()?;
        let destination = format!(
            "    endpoint: \"http://{}\"\n    sending_queue: {{ storage: {{ directory: \"{}\" }} }}\n",
            backend.grpc,
            storage.path().display()
        );
        let file = configuration("", "json", &destination)?;
        let kills = std::env::var("RESET_TESTS_KILLS").ok().map_or(Ok(COLLECTOR_KILLS), |text| text.parse())?;
        let over = AtomicBool::new(false);
        let mut runs = Vec::new();
        let made = std::thread::scope(|scope| -> Result<Vec<Made>> {
            let made = scope.spawn(|| made(&over));
            let killed = (0..kills).try_for_each(|number| -> Result<()> {
                // Hung in every other run, so that there is something to be recovered.
                let hung = number % 2 == 1;
                if hung {
                    signal(backend.pid(), Signal::STOP)?;
                }
                let run = killed_run(file.path(), network.client.inode);
                signal(backend.pid(), Signal::CONT)?;
                runs.push(run?);
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            let made = made.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            killed?;
            made
        })?;
        // One that is not killed sends what the last one left.
        let collector = Collector::start(&["--config", &file.path().to_string_lossy()], &[])?;
        let admin = collector.admin()?;
        let metrics = wait_until_settled(admin)?;
        collector.stop()?;
        let printed: HashSet<&Identity> = runs.iter().flat_map(|run| &run.printed).collect();
        let all_there = |arrived: &HashMap<Identity, u64>| printed.iter().all(|one| arrived.contains_key(*one));
        // What is missing is reported below.
        eventually(
            TIMEOUT,
            "all printed records at the backend",
            || arrived(&backend, network.client.inode),
            all_there,
        )
        .ok();
        std::thread::sleep(BACKEND_WRITES);
        check_kills(&runs, &made, &metrics, &arrived(&backend, network.client.inode)?)
    })
}

/// What was printed has arrived, and what was made long enough before a kill.
fn check_kills(runs: &[KilledRun], made: &[Made], last: &Metrics, arrived: &HashMap<Identity, u64>) -> Result<()> {
    let printed: HashSet<&Identity> = runs.iter().flat_map(|run| &run.printed).collect();
    let lost: Vec<_> = printed.iter().filter(|one| !arrived.contains_key(**one)).collect();
    let mut times: HashMap<u16, Vec<u64>> = HashMap::new();
    arrived.keys().for_each(|(port, _, time_ns)| times.entry(*port).or_default().push(*time_ns));
    let (mut under_watch, mut unseen, mut oldest) = (0, 0, Duration::ZERO);
    for run in runs {
        let (before, mut oldest_here) = (unseen, Duration::ZERO);
        for one in made.iter().filter(|one| one.from_ns >= run.ready_ns && one.to_ns < run.killed_ns) {
            let within = times.get(&one.port).into_iter().flatten();
            // Sent and received: two records.
            let told = within.filter(|time| (one.from_ns..=one.to_ns).contains(time)).count();
            under_watch += 2;
            if told < 2 {
                unseen += 2 - told;
                oldest_here = oldest_here.max(Duration::from_nanos(run.killed_ns - one.to_ns));
            }
        }
        oldest = oldest.max(oldest_here);
        println!(
            "killed after {:?}: {} resets lost, made {oldest_here:?} before at most",
            Duration::from_nanos(run.killed_ns - run.ready_ns),
            unseen - before
        );
    }
    let sum = |of: fn(&KilledRun) -> u64| runs.iter().map(of).sum::<u64>();
    let recovered = sum(|run| run.recovered) + term(last, "recovered_resets_total");
    println!(
        "{} kills: {under_watch} resets made under watch, {unseen} of them lost, made {oldest:?} before the kill at most; \
         {} printed, {} of them lost; {} arrived, {} of them again; {recovered} recovered from storage, {} counted as lost \
         with the collector",
        runs.len(),
        printed.len(),
        lost.len(),
        arrived.len(),
        arrived.values().map(|times| times - 1).sum::<u64>(),
        sum(|run| run.counted_lost) + counted_lost(last),
    );
    ensure!(printed.len() > 100 * runs.len() && recovered > 0, "there was no load, or nothing waited");
    ensure!(lost.is_empty(), "printed, and lost: {:?}", &lost[..lost.len().min(5)]);
    ensure!(oldest < TAIL, "resets are lost that were made {oldest:?} before a kill");
    Ok(())
}

/// A connection that was refused: the port that it came from, and when at the earliest and at the latest.
struct Made {
    port: u16,
    from_ns: u64,
    to_ns: u64,
}

/// Refused connections, some hundred a second, until it is over.
fn made(over: &AtomicBool) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    for port in LOAD_PORTS.cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let from_ns = unix_ns()?;
        flood::refused_from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), CLOSED)?;
        made.push(Made { port, from_ns, to_ns: unix_ns()? });
        if made.len() % 10 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(made)
}

fn unix_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// What one run did until it was killed.
struct KilledRun {
    printed: HashSet<Identity>,
    ready_ns: u64,
    killed_ns: u64,
    recovered: u64,
    counted_lost: u64,
}

fn counted_lost(metrics: &Metrics) -> u64 {
    let of = |reason| metrics.sum("reset_collector_dropped_resets_total", &[("reason", reason)]);
    of("process_killed") + of("storage_unsynced")
}

fn killed_run(file: &Path, namespace: u32) -> Result<KilledRun> {
    let mine = format!("\"network.namespace.inode\":{namespace}");
    let keep = move |line: &str| line.contains(&mine);
    let collector = Collector::start_keeping(&["--config", &file.to_string_lossy()], &[], keep)?;
    let ready_ns = unix_ns()?;
    let admin = collector.admin()?;
    let until = Instant::now() + Duration::from_millis(ready_ns / 1_000 % MAX_RUN_MS);
    let (mut recovered, mut counted) = (0, 0);
    while Instant::now() < until {
        let metrics = Metrics::read(admin)?;
        metrics.check_accounting()?;
        recovered = term(&metrics, "recovered_resets_total");
        counted = counted_lost(&metrics);
        std::thread::sleep(POLL_INTERVAL.min(until.saturating_duration_since(Instant::now())));
    }
    let killed_ns = unix_ns()?;
    let mut printed = HashSet::new();
    for line in collector.kill()? {
        // The last line may be cut off.
        let Ok(record) = Record::parse(&line) else { continue };
        printed.insert(identity(record.time_ns, |name| record.attribute(name))?);
    }
    Ok(KilledRun { printed, ready_ns, killed_ns, recovered, counted_lost: counted })
}
