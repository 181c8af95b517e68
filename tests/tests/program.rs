//! The program as its operator meets it: signals, exit codes, a closed terminal, a user who may not.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a skip says why")]

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::program,
    flood,
    network::{Layout, Network},
    skip_reason,
};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);
/// `signals::EXIT_AT_ONCE` as README tells it.
const EXIT_AT_ONCE: i32 = 3;
const CLOSED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const RESETS: u64 = 200;

fn skipped() -> bool {
    let reason = skip_reason();
    reason.iter().for_each(|reason| println!("{reason}"));
    reason.is_some()
}

/// `reset-collector run`, ready; its standard error up to there, and the rest of it.
fn start(variables: &[(&str, &str)], stdout: Stdio) -> Result<(Child, BufReader<impl Read + use<>>)> {
    let mut command = Command::new(program()?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.arg("run").envs(variables.iter().copied()).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
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
    let deadline = Instant::now() + PATIENCE;
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
fn sigterm_sends_what_waits_and_ends_with_0() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let backend = Backend::start()?;
    let endpoint = format!("http://{}", backend.grpc);
    let network = Network::new(Layout::Loopback)?;
    let (child, stderr) = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)], Stdio::null())?;
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    signal(&child, Signal::TERM)?;
    let (status, said) = end(child, stderr)?;
    ensure!(status.code() == Some(0), "{status}: {said}");
    ensure!(said.contains("resets captured"), "no counts at the end: {said}");
    let here = |log: &&reset_collector_tests::backend::Log| {
        log.attributes["tcp.network_namespace"].as_u64() == Some(network.client.inode.into())
    };
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
fn a_second_signal_ends_it_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
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
    ensure!(said.contains("a second signal"), "{said}");
    Ok(())
}

#[test]
fn a_closed_standard_output_is_no_crash() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let network = Network::new(Layout::Loopback)?;
    let (mut child, stderr) = start(&[], Stdio::piped())?;
    drop(child.stdout.take());
    network.client.enter(|| flood::refused(CLOSED, RESETS, 1))?;
    std::thread::sleep(Duration::from_secs(1));
    // Whether it ends by itself, as `yes | head` does, or goes on without a terminal until it is told.
    let went_on = child.try_wait()?.is_none();
    if went_on {
        signal(&child, Signal::TERM)?;
    }
    let (status, said) = end(child, stderr)?;
    println!("went on: {went_on}; {status}: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(status.code() == Some(0), "{status}: {said}");
    Ok(())
}

#[test]
fn a_user_who_may_not_is_told_what_is_missing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
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
