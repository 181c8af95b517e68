//! The program as its operator and its service manager meet it: signals, exit codes, a closed terminal, a user who may not,
//! what it sends to `NOTIFY_SOCKET`, a configuration that Kubernetes swaps.

#![forbid(unsafe_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::symlink,
            net::{SocketAddr as UnixAddress, UnixDatagram},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::{Backend, Log},
    collector::{Collector, program},
    flood,
    network::{Layout, Network},
    poll::eventually,
    require_root,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);
/// `signals::EXIT_AT_ONCE` as README tells it.
const EXIT_AT_ONCE: i32 = 3;
const CLOSED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const RESETS: u64 = 200;

/// `reset-collector run`, ready; its standard error up to there, and the rest of it.
fn start(variables: &[(&str, &str)], stdout: Stdio) -> Result<(Child, BufReader<impl Read + use<>>)> {
    start_with(&[], variables, stdout)
}

fn start_with(
    arguments: &[&str],
    variables: &[(&str, &str)],
    stdout: Stdio,
) -> Result<(Child, BufReader<impl Read + use<>>)> {
    let mut command = Command::new(program()?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.arg("run").args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        ensure!(stderr.read_line(&mut line)? > 0, "the collector ended: {}", child.wait()?);
    }
    Ok((child, stderr))
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

/// How it ended and what it still said.
fn end(mut child: Child, mut stderr: impl Read) -> Result<(ExitStatus, String)> {
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                anyhow::bail!("it does not end");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut said = String::new();
    stderr.read_to_string(&mut said)?;
    Ok((status, said))
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn sigterm_sends_what_waits_and_ends_with_0() -> Result<()> {
    require_root()?;
    let backend = Backend::start()?;
    let endpoint = format!("http://{}", backend.grpc);
    let network = Network::new(Layout::Loopback)?;
    let (child, stderr) = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)], Stdio::null())?;
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    signal(&child, Signal::TERM)?;
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0), "{status}: {said}");
    ensure!(said.contains("event=\"counts\""), "no counts at the end: {said}");
    let here = |log: &&reset_collector_tests::backend::Log| log.is_of(network.client.inode);
    // The backend writes its file every 50 ms.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut arrived = 0;
    while arrived < 2 * RESETS && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        arrived = backend.logs()?.iter().filter(here).count() as u64;
    }
    ensure!(arrived == 2 * RESETS, "{RESETS} resets sent and received, {arrived} records arrived: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    require_root()?;
    // It takes connections and never answers: what waits cannot go out before the deadline.
    let deaf = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let endpoint = format!("http://{}", deaf.local_addr()?);
    let network = Network::new(Layout::Loopback)?;
    let (child, stderr) = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)], Stdio::null())?;
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    signal(&child, Signal::TERM)?;
    std::thread::sleep(Duration::from_secs(1));
    let second = Instant::now();
    signal(&child, Signal::TERM)?;
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(EXIT_AT_ONCE), "{status}: {said}");
    ensure!(second.elapsed() < Duration::from_secs(2), "at once took {:?}", second.elapsed());
    ensure!(said.contains("second signal"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_reader_that_goes_ends_a_run_that_only_prints() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let (mut child, stderr) = start(&[], Stdio::piped())?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?);
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line.contains("tcp.reset"), "{line}");
    drop(lines);
    let (status, said) = end(child, stderr)?;
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(status.code() == Some(0) && said.contains("standard output is closed"), "{status}: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_reader_that_goes_leaves_a_run_that_exports() -> Result<()> {
    require_root()?;
    let backend = Backend::start()?;
    let endpoint = format!("http://{}", backend.grpc);
    let network = Network::new(Layout::Loopback)?;
    let (mut child, stderr) = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)], Stdio::piped())?;
    drop(child.stdout.take());
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    let here = |log: &&reset_collector_tests::backend::Log| log.is_of(network.client.inode);
    let look = || Ok(backend.logs()?.iter().filter(here).count() as u64);
    let arrived = eventually(TIMEOUT, "all records at the backend", look, |arrived| *arrived >= 2 * RESETS)?;
    ensure!(arrived == 2 * RESETS && child.try_wait()?.is_none(), "{arrived} records arrived");
    signal(&child, Signal::TERM)?;
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0) && !said.contains("panicked"), "{status}: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn opentelemetrys_variables_describe_what_is_exported() -> Result<()> {
    require_root()?;
    let backend = Backend::start()?;
    let endpoint = format!("http://{}", backend.grpc);
    let attributes = "deployment.environment.name=prod,service.namespace=ops,k8s.cluster.name=eu";
    let network = Network::new(Layout::Loopback)?;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_SERVICE_NAME", "collector-a"),
        ("OTEL_RESOURCE_ATTRIBUTES", attributes),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        // Read by opentelemetry-otlp too: what goes out is the destination's.
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let (child, stderr) = start(&variables, Stdio::null())?;
    network.client.enter(|| flood::refused(CLOSED, 1, 1))?;
    let look = || Ok((backend.metric_resources()?, backend.logs()?));
    let namespace = network.client.inode;
    let is_here = |log: &Log| log.is_of(namespace);
    let holds = |(metrics, logs): &(Vec<_>, Vec<Log>)| metrics.len() > 1 && logs.iter().any(is_here);
    // The interval by default is a minute.
    let (metrics, logs) = eventually(TIMEOUT / 2, "metrics and a log record at the backend", look, holds)?;
    signal(&child, Signal::TERM)?;
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0), "{status}: {said}");
    let own = metrics.first().context("no metrics")?;
    for (name, value) in [
        ("service.name", "collector-a"),
        ("service.namespace", "ops"),
        ("deployment.environment.name", "prod"),
        ("k8s.cluster.name", "eu"),
    ] {
        ensure!(own.get(name).is_some_and(|found| found == value), "{name}: {own:?}");
    }
    ensure!(own.contains_key("host.name") && own.contains_key("service.instance.id"), "{own:?}");
    let log = logs.into_iter().find(is_here).context("no log record")?;
    ensure!(log.resource.get("deployment.environment.name").is_some_and(|found| found == "prod"), "{:?}", log.resource);
    ensure!(!log.resource.contains_key("service.namespace"), "the collector's own: {:?}", log.resource);
    ensure!(!said.contains("OTEL_EXPORTER"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn no_core_file_unless_asked() -> Result<()> {
    require_root()?;
    let directory = TempDir::new()?;
    // A dump to a program disregards the limit, and the program may not be there.
    let is_file = !fs::read_to_string("/proc/sys/kernel/core_pattern")?.starts_with('|');
    for (arguments, dumps) in [(&[][..], false), (&["--core-dumps"][..], true)] {
        let mut command = Command::new("sh");
        command.arg("-c").arg("ulimit -c unlimited; exec \"$0\" \"$@\"").arg(program()?).arg("run").args(arguments);
        command.current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            ensure!(stderr.read_line(&mut line)? > 0, "the collector ended: {}", child.wait()?);
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id()))?;
        let limit = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
        ensure!(limit.contains("unlimited") == dumps, "{limit}");
        signal(&child, Signal::QUIT)?;
        let (status, said) = end(child, stderr)?;
        ensure!(status.core_dumped() == dumps || (dumps && !is_file), "{arguments:?}: {status}: {said}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_file_that_cannot_be_read_leaves_the_signals_alone() -> Result<()> {
    require_root()?;
    let directory = TempDir::new()?;
    let file = directory.path().join("f.yaml");
    fs::write(&file, "{}")?;
    let (child, mut stderr) = start_with(&["--config", &file.to_string_lossy()], &[], Stdio::null())?;
    // As on a file server that has gone: open(2) does not return.
    fs::remove_file(&file)?;
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)?;
    signal(&child, Signal::HUP)?;
    signal(&child, Signal::USR1)?;
    let mut line = String::new();
    while !line.contains("event=\"counts\"") {
        line.clear();
        ensure!(stderr.read_line(&mut line)? > 0, "the collector ended");
    }
    signal(&child, Signal::TERM)?;
    let signalled = Instant::now();
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0) && signalled.elapsed() < Duration::from_secs(6), "{status}: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_user_who_may_not_is_told_what_is_missing() -> Result<()> {
    require_root()?;
    // Where nobody may run it.
    let copy = std::env::temp_dir().join(format!("reset-collector-program-{}", std::process::id()));
    std::fs::copy(program()?, &copy)?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&copy)
        .arg("run")
        .stdin(Stdio::null())
        .output();
    std::fs::remove_file(&copy)?;
    let output = output.context("setpriv (util-linux) is missing")?;
    let said = String::from_utf8(output.stderr)?;
    println!("{}: {said}", output.status);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.contains("CAP_BPF") && said.contains("CAP_PERFMON"), "it does not say what is missing: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(output.stdout.is_empty(), "{:?}", output.stdout);
    Ok(())
}

/// What a service manager hears: its end of `NOTIFY_SOCKET`.
struct Ear(UnixDatagram);

impl Ear {
    fn at(address: &UnixAddress) -> Result<Self> {
        let socket = UnixDatagram::bind_addr(address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self(socket))
    }

    /// The next message that is not a heartbeat.
    fn next(&self) -> Result<String> {
        loop {
            let message = self.any()?;
            if message != ALIVE {
                return Ok(message);
            }
        }
    }

    fn any(&self) -> Result<String> {
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).context("the service manager hears nothing")?;
        Ok(String::from_utf8(message[..length].to_vec())?)
    }

    /// What lies there already, counted: messages that are heartbeats.
    fn signs_waiting(&self) -> Result<usize> {
        self.0.set_nonblocking(true)?;
        let mut signs = 0;
        while let Ok(message) = self.any() {
            ensure!(message == ALIVE, "{message}");
            signs += 1;
        }
        self.0.set_nonblocking(false)?;
        Ok(signs)
    }
}

const ALIVE: &str = "WATCHDOG=1";

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_service_manager_is_told_what_is_true() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let directory = TempDir::new()?;
    let (path, file) = (directory.path().join("socket"), directory.path().join("f.yaml"));
    fs::write(&file, "{}")?;
    let ear = Ear::at(&UnixAddress::from_pathname(&path)?)?;
    let variables = [("NOTIFY_SOCKET", &*path.to_string_lossy()), ("WATCHDOG_USEC", "600000")];
    let (child, stderr) = start_with(&["--config", &file.to_string_lossy()], &variables, Stdio::null())?;
    let first = ear.next()?;
    ensure!(first == "READY=1\nSTATUS=captures every TCP reset of this host", "{first}");
    // Ready means that nothing is missed from now on.
    network.client.enter(|| flood::refused(CLOSED, 1, 1))?;

    for (text, status) in
        [("filters: [{ drop: {} }]", "new configuration applied"), ("filters: [{ drop: 1 }]", "rejected")]
    {
        fs::write(&file, text)?;
        signal(&child, Signal::HUP)?;
        let (reloading, done) = (ear.next()?, ear.next()?);
        ensure!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        ensure!(done.starts_with("READY=1\nSTATUS=") && done.contains(status), "{done}");
    }

    // Three in each time of the watchdog, and none while it stands still.
    ear.signs_waiting()?;
    (0..4).try_for_each(|_| ear.any().map(|message| assert_eq!(message, ALIVE)))?;
    signal(&child, Signal::STOP)?;
    std::thread::sleep(Duration::from_millis(300));
    ear.signs_waiting()?;
    std::thread::sleep(Duration::from_millis(700));
    let signs = ear.signs_waiting()?;
    signal(&child, Signal::CONT)?;
    ensure!(signs == 0, "{signs} heartbeats of a program that is stopped");

    signal(&child, Signal::TERM)?;
    let last = ear.next()?;
    ensure!(last.starts_with("STOPPING=1\n"), "{last}");
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0), "{status}: {said}");
    ensure!(Collector::counted(&said, "transmit", "passive", "port_closed") >= 1, "ready, and missed a reset: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_start_that_fails_is_never_called_ready() -> Result<()> {
    require_root()?;
    let name = format!("reset-collector-test-{}", std::process::id());
    let ear = Ear::at(&UnixAddress::from_abstract_name(&name)?)?;
    // The configuration is good, and the address in it is another's.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let directory = TempDir::new()?;
    let file = directory.path().join("f.yaml");
    fs::write(&file, format!("admin: {{ endpoint: \"{}\" }}", taken.local_addr()?))?;
    let output = Command::new(program()?)
        .args(["run", "--config"])
        .arg(&file)
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(ear.signs_waiting()? == 0, "told something of a program that never ran");
    Ok(())
}

/// A volume as the kubelet makes it of a ConfigMap: the file is a link to `..data/FILE`, and `..data` a link to a directory
/// that is replaced as a whole.
struct ConfigMap {
    directory: TempDir,
    versions: u32,
}

impl ConfigMap {
    const FILE: &str = "reset-collector.yaml";

    fn mount(text: &str) -> Result<Self> {
        let mut volume = Self { directory: TempDir::new()?, versions: 0 };
        volume.update(text)?;
        symlink(Path::new("..data").join(Self::FILE), volume.file())?;
        Ok(volume)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(Self::FILE)
    }

    /// As AtomicWriter does (pkg/volume/util/atomic_writer.go of Kubernetes): a new directory, a new link beside the old one,
    /// one rename, and the old directory is removed.
    fn update(&mut self, text: &str) -> Result<()> {
        let root = self.directory.path();
        let old = fs::read_link(root.join("..data")).ok();
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        fs::create_dir(root.join(&version))?;
        fs::write(root.join(&version).join(Self::FILE), text)?;
        symlink(&version, root.join("..data_tmp"))?;
        fs::rename(root.join("..data_tmp"), root.join("..data"))?;
        old.map_or(Ok(()), |old| fs::remove_dir_all(root.join(old)))?;
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_swapped_config_map_is_taken_over_and_a_bad_one_is_not() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let mut volume = ConfigMap::mount("filters: []")?;
    let collector = Collector::start(&["--config", &volume.file().to_string_lossy()], &[])?;
    let wait = |what: &str, is_so: &dyn Fn() -> Result<bool>| -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so()? {
            ensure!(Instant::now() < deadline, "{what}: {}", collector.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    let records = || Ok::<_, anyhow::Error>(collector.records(&[network.client.inode])?.len());
    let refused = || network.client.enter(|| flood::refused(CLOSED, 1, 1));
    refused()?;
    wait("a record of both ends", &|| Ok(records()? == 2))?;

    volume.update("filters: [{ drop: { network.io.direction: transmit } }]")?;
    wait("the second version is not taken", &|| Ok(collector.said().contains("new configuration applied")))?;
    refused()?;
    wait("a record of one end", &|| Ok(records()? == 3))?;

    volume.update("filters: [{ drop: { network.io.direction: sideways } }]")?;
    wait("the third version is not refused", &|| Ok(collector.said().contains("keeping the current one")))?;
    refused()?;
    wait("one end is still told", &|| Ok(records()? == 4))?;
    let (status, said) = collector.stop()?;
    ensure!(status.success() && said.contains("sideways"), "{status}: {said}");
    Ok(())
}
