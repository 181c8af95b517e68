//! Standard output and standard error that nobody reads, that are closed, or that cannot be written: capture and export go
//! on, the losses are counted, and SIGTERM ends the program.

#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::program,
    flood,
    network::{Layout, Network},
    poll::eventually,
    require_root,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);
/// From SIGTERM to the exit, whatever holds the outputs.
const END_TIMEOUT: Duration = Duration::from_secs(6);
const CLOSED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const RESETS: u64 = 200;

/// A collector that exports to a real backend, with an admin endpoint.
struct Run {
    child: Child,
    admin: SocketAddr,
    backend: Backend,
    network: Network,
    _directory: TempDir,
}

impl Run {
    fn start(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Result<Self> {
        let (network, backend, directory) = (Network::new(Layout::Loopback)?, Backend::start()?, TempDir::new()?);
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let file = directory.path().join("f.yaml");
        let endpoint = format!("http://{}", backend.grpc);
        let export = format!("export: {{ console: json, otlp: {{ endpoint: \"{endpoint}\" }} }}");
        fs::write(&file, format!("admin: {{ endpoint: \"{admin}\" }}\n{export}\n"))?;
        let mut command = Command::new(program()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.arg("run").arg("--config").arg(&file).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()?;
        let run = Self { child, admin, backend, network, _directory: directory };
        // Standard error may be unreadable: the admin endpoint tells when it is ready.
        let ready =
            eventually(TIMEOUT, "ready", || Ok(run.get("/readyz").is_ok_and(|page| page.contains(" 200 "))), |ok| *ok)?;
        ensure!(ready, "the collector is not ready");
        Ok(run)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// Provokes resets and waits until the backend has a record of both ends of each.
    fn export_goes_on(&self, before: u64) -> Result<u64> {
        self.network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
        let due = before + 2 * RESETS;
        let namespace = self.network.client.inode;
        let look = || {
            let logs = self.backend.logs()?;
            let here = logs.iter().filter(|log| log.is_of(namespace));
            Ok(here.count() as u64)
        };
        let arrived = eventually(TIMEOUT, "records at the backend", look, |arrived| *arrived >= due)?;
        ensure!(arrived == due, "{arrived} of {due} records arrived");
        ensure!(self.get("/healthz")?.contains(" 200 "), "not healthy");
        Ok(arrived)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn end(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let started = Instant::now();
        let status = eventually(TIMEOUT, "the end of the process", || Ok(self.child.try_wait()?), Option::is_some)?
            .context("it does not end")?;
        let took = started.elapsed();
        ensure!(took < END_TIMEOUT, "SIGTERM took {took:?}");
        Ok(status)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn dev_full() -> Result<Stdio> {
    Ok(File::options().write(true).open("/dev/full")?.into())
}

/// A pipe that is full and that nobody reads.
fn full_pipe() -> Result<(std::io::PipeReader, Stdio)> {
    let (reader, mut writer) = std::io::pipe()?;
    let capacity = rustix::pipe::fcntl_setpipe_size(&writer, 4096)?;
    writer.write_all(&vec![b'\n'; capacity])?;
    Ok((reader, writer.into()))
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn nobody_reads_standard_output() -> Result<()> {
    require_root()?;
    let (mut reader, stdout) = full_pipe()?;
    let mut run = Run::start(&[], stdout, Stdio::piped())?;
    let mut stderr = run.child.stderr.take().context("stderr")?;
    let arrived = run.export_goes_on(0)?;
    run.export_goes_on(arrived)?;
    let status = run.end()?;
    let mut log = String::new();
    stderr.read_to_string(&mut log)?;
    ensure!(status.code() == Some(0), "{status}: {log}");
    ensure!(log.contains("console_lines_dropped"), "the losses are not logged: {log}");
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    ensure!(text.trim().is_empty(), "the pipe was not full");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_reader_that_stops_and_goes_on_gets_its_lines() -> Result<()> {
    require_root()?;
    let (reader, stdout) = std::io::pipe()?;
    let directory = TempDir::new()?;
    let file = directory.path().join("lines");
    let mut cat = Command::new("cat").stdin(reader).stdout(File::create(&file)?).spawn()?;
    let run = Run::start(&[], stdout.into(), Stdio::null())?;
    kill_process(Pid::from_child(&cat), Signal::STOP)?;
    let arrived = run.export_goes_on(0)?;
    kill_process(Pid::from_child(&cat), Signal::CONT)?;
    let namespace = format!("\"network.namespace.inode\":{}", run.network.client.inode);
    let look = || Ok(fs::read_to_string(&file)?.lines().filter(|line| line.contains(&namespace)).count() as u64);
    let printed = eventually(TIMEOUT, "all records printed", look, |printed| *printed >= arrived)?;
    let status = run.end()?;
    cat.wait()?;
    ensure!(printed == arrived && status.code() == Some(0), "{status}: {printed} of {arrived} lines");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn nobody_reads_standard_error() -> Result<()> {
    require_root()?;
    let (_reader, stderr) = full_pipe()?;
    let run = Run::start(&["--log-level", "trace"], Stdio::null(), stderr)?;
    run.export_goes_on(0)?;
    run.signal(Signal::USR1)?;
    let status = run.end()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn outputs_that_cannot_be_written_end_nothing() -> Result<()> {
    require_root()?;
    let (reader, closed) = std::io::pipe()?;
    drop(reader);
    for (stdout, stderr) in [(dev_full()?, dev_full()?), (Stdio::null(), closed.into())] {
        let run = Run::start(&["--log-level", "debug"], stdout, stderr)?;
        let mut arrived = 0;
        for signal in [Signal::USR1, Signal::HUP] {
            // Each logs lines that cannot be written.
            run.signal(signal)?;
            arrived = run.export_goes_on(arrived)?;
        }
        let status = run.end()?;
        ensure!(status.code() == Some(0), "{status}");
    }
    Ok(())
}
