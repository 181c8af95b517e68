//! A day in miniature: mixed resets while the backend dies, hangs and comes back. The accounting invariant holds at each
//! look, and memory, threads and file descriptors do not grow.
//!
//! `RESET_TESTS_SOAK_SECONDS` says for how long; 30 minutes stand for a day.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what was seen is worth a line")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::Collector,
    configuration_file, flood,
    metrics::Metrics,
    network::{Host, Layout, Network},
    process::{Usage, usage},
    require_root,
};
use rustix::process::{Pid, Signal, kill_process};

const DEFAULT_SECONDS: u64 = 30;
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// After the last fault, until all has gone out.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long the backend is well, and how long it is not.
const WELL: Duration = Duration::from_millis(1_500);
const ILL: Duration = Duration::from_millis(800);
/// Memory that may come and go with what waits while the backend is ill.
const SLACK_BYTES: u64 = 8 << 20;
/// Connections to the backend and the admin endpoint that may be open at one look and not at another.
const SLACK_DESCRIPTORS: u64 = 8;

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_day_in_miniature() -> Result<()> {
    require_root()?;
    let seconds = std::env::var("RESET_TESTS_SOAK_SECONDS").ok().map_or(Ok(DEFAULT_SECONDS), |text| text.parse())?;
    let mut backend = Backend::start()?;
    let file = configuration_file(&configuration(backend.grpc))?;
    let collector = Collector::start_keeping(&["--config", &file.path().to_string_lossy()], &[], |_| false)?;
    let admin = collector.admin()?;
    let network = Network::new(Layout::Loopback)?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let over = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| -> Result<Vec<Usage>> {
        let load = scope.spawn(|| network.client.enter(|| load(until))?);
        let looks = scope.spawn(|| looks(collector.pid(), admin, &over));
        let faults = faults(&mut backend, until);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let load = load.join().map_err(panicked)?;
        // The backend is well again: what waits goes out while the invariant is still sampled.
        let drained = wait_until_drained(admin);
        over.store(true, Ordering::Relaxed);
        let looks = looks.join().map_err(panicked)?;
        faults?;
        load?;
        drained?;
        looks
    })?;
    check_end(&Metrics::read(admin)?, &network.client)?;
    check_flat(&looks)?;
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    Ok(())
}

fn configuration(backend: SocketAddr) -> String {
    format!(
        "admin: {{ endpoint: \"127.0.0.1:0\" }}\n\
         filters:\n  - drop: {{ network.local.port: 3 }}\n\
         sampling:\n  rules:\n    - match: {{ tcp.reset.cause: refused_by_peer }}\n      ratio: 0.5\n\
         export:\n  console: \"off\"\n  otlp:\n    endpoint: \"http://{backend}\"\n    timeout: 2s\n\
         \x20   retry_on_failure: {{ initial_interval: 100ms, max_interval: 500ms, max_elapsed_time: 0s }}\n"
    )
}

/// Connections refused, on a port that the filters drop too, and closed with SO_LINGER 0.
fn load(until: Instant) -> Result<()> {
    while Instant::now() < until {
        for port in [1, 2, 3] {
            flood::refused((Ipv4Addr::LOCALHOST, port).into(), 5, 1);
        }
        flood::linger_zero(Ipv4Addr::LOCALHOST, 10)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The backend is killed and started again, and stopped and continued, in turns; at the end it is well.
fn faults(backend: &mut Backend, until: Instant) -> Result<()> {
    let mut kill = true;
    while Instant::now() + ILL < until {
        std::thread::sleep(WELL);
        if kill {
            backend.kill()?;
            std::thread::sleep(ILL);
            backend.restart()?;
        } else {
            let pid = Pid::from_raw(i32::try_from(backend.pid())?).context("pid 0")?;
            kill_process(pid, Signal::STOP)?;
            std::thread::sleep(ILL);
            kill_process(pid, Signal::CONT)?;
        }
        kill = !kill;
    }
    Ok(())
}

/// Samples the invariant and the process until it is over.
fn looks(pid: u32, admin: SocketAddr, over: &AtomicBool) -> Result<Vec<Usage>> {
    let mut looks = Vec::new();
    while !over.load(Ordering::Relaxed) {
        Metrics::read(admin)?.check_accounting()?;
        looks.push(usage(pid)?);
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(looks)
}

/// Other resets of the host go on: what waits then is young.
fn wait_until_drained(admin: SocketAddr) -> Result<()> {
    let waited_for = Metrics::read(admin)?.sum("reset_collector_captured_resets_total", &[]);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let metrics = Metrics::read(admin)?;
        let settled = |queue: &[(&str, &str); 2]| {
            let term = |name: &str, labels: &[(&str, &str)]| metrics.sum(&format!("reset_collector_{name}"), labels);
            let outcomes = term("exported_resets_total", queue)
                + term("dropped_resets_total", queue)
                + term("filtered_resets_total", &[])
                + term("sampled_out_resets_total", &[]);
            outcomes >= waited_for
        };
        if metrics.queues().iter().all(settled) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{waited_for} captured, and they do not go out: {metrics:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Nothing was dropped: the backend came back each time, and the queue was long enough.
fn check_end(metrics: &Metrics, host: &Host) -> Result<()> {
    metrics.check_accounting()?;
    let sent = host.tcp_counter("OutRsts")?;
    let captured = metrics.sum("tcp_resets_total", &[("network_io_direction", "transmit")]);
    ensure!(sent > 0 && captured >= sent, "{sent} resets sent, {captured} captured");
    for name in ["filtered", "sampled_out"] {
        let count = metrics.sum(&format!("reset_collector_{name}_resets_total"), &[]);
        ensure!(count > 0, "none {name}: the load was not mixed");
    }
    let dropped = metrics.sum("reset_collector_dropped_resets_total", &[]);
    ensure!(dropped == 0, "{dropped} dropped: {metrics:?}");
    println!("{sent} resets sent here, {captured} on the whole host; none lost");
    Ok(())
}

/// Compares the last third of the samples with the second: the first warms up.
fn check_flat(looks: &[Usage]) -> Result<()> {
    let third = looks.len() / 3;
    ensure!(third >= 10, "only {} looks", looks.len());
    let most = |looks: &[Usage], of: fn(&Usage) -> u64| looks.iter().map(of).max().unwrap_or(0);
    let (before, after) = (&looks[third..2 * third], &looks[2 * third..]);
    for (name, of, slack) in [
        ("resident bytes", (|usage| usage.resident_bytes) as fn(&Usage) -> u64, SLACK_BYTES),
        ("threads", |usage| usage.threads, 0),
        ("file descriptors", |usage| usage.descriptors, SLACK_DESCRIPTORS),
    ] {
        let (before, after) = (most(before, of), most(after, of));
        println!("{name}: {before} at most in the second third of {} looks, {after} in the last", looks.len());
        ensure!(after <= before + slack, "{name} grew from {before} to {after}");
    }
    Ok(())
}
