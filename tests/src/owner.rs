//! Cases of owners: who owns each end of a connection that is reset, as the owner itself reports.
//!
//! The cases are Python functions in `actors/owners.py`; here they are started, and their records judged.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{network::Host, record::Record};

/// What a case prints when it waits for the collector.
const READY: &str = "ready";
/// How long a case may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A case by its name.
#[derive(Clone, Debug, Deserialize)]
pub struct OwnerCase {
    /// The function in the actors.
    pub name: String,
    /// What happens.
    pub what: String,
}

/// A record that is due, and whom it must name.
#[derive(Clone, Debug, Deserialize)]
pub struct DueOwner {
    /// What this end does: `sends`, `receives` and the like.
    pub what: String,
    direction: String,
    /// 0 for any.
    local_port: u16,
    peer_port: u16,
    /// Any of these is true; none, and no process may be named.
    pids: Vec<i64>,
    /// Of the executable, or of the main thread where it has ended.
    names: Vec<String>,
    /// It is a known limit that nobody is named here.
    may_be_unnamed: bool,
}

/// How the record of one end fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// It names one that is true: the first, or another by its place.
    Right(usize),
    /// It names nobody, and rightly so.
    RightlyNobody,
    /// It names nobody where there is one: a known limit.
    NobodyAsKnown,
    /// It names nobody where there is one.
    Nobody,
    /// It names another.
    Wrong,
    /// There is no record.
    NoRecord,
}

impl Naming {
    /// Whether it is what is due.
    pub fn is_right(self) -> bool {
        matches!(self, Self::Right(_) | Self::RightlyNobody | Self::NobodyAsKnown)
    }
}

impl DueOwner {
    /// Whether the record is the one of this end.
    pub fn is_of(&self, record: &Record) -> bool {
        let is_port = |due: u16, name| due == 0 || record.number(name) == Some(i64::from(due));
        record.text("network.io.direction") == self.direction
            && is_port(self.local_port, "network.local.port")
            && is_port(self.peer_port, "network.peer.port")
    }

    /// Whom the record names against whom it must name.
    pub fn judge(&self, record: &Record) -> Naming {
        match (record.number("process.pid"), self.pids.is_empty()) {
            (None, true) => Naming::RightlyNobody,
            (None, false) if self.may_be_unnamed => Naming::NobodyAsKnown,
            (None, false) => Naming::Nobody,
            (Some(pid), _) => {
                let name = record.text("process.executable.name");
                match self.pids.iter().position(|&due| due == pid) {
                    Some(place) if self.names.iter().any(|due| due == name) => Naming::Right(place),
                    _ => Naming::Wrong,
                }
            }
        }
    }
}

/// A case that runs.
#[derive(Debug)]
pub struct RunningCase {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: JoinHandle<String>,
    due: Vec<DueOwner>,
}

impl OwnerCase {
    /// Every case.
    ///
    /// # Errors
    /// The actors cannot be run.
    pub fn list() -> Result<Vec<Self>> {
        let output = actors().arg("--list").output().context("python3 is missing")?;
        ensure!(output.status.success(), "the actors: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Starts it on a host.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, host: &Host, peer: &Path) -> Result<RunningCase> {
        let mut child = actors()
            .args([&self.name, &host.namespace, &host.v4.to_string(), &host.v6.to_string()])
            .arg(peer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (stdout, mut stderr) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        let (to, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
        });
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            drop(stderr.read_to_string(&mut text));
            text
        });
        let stdin = child.stdin.take();
        Ok(RunningCase { child, stdin, lines, errors, due: Vec::new() })
    }
}

impl RunningCase {
    /// Until the case waits for the collector, or has ended.
    ///
    /// # Errors
    /// It does neither in time, or prints what is no due record.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == READY => return Ok(()),
                Ok(line) => self.due.push(serde_json::from_str(&line).with_context(|| line.clone())?),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Err(timeout) => bail!("the case takes too long: {timeout}"),
            }
        }
    }

    /// Lets it go on, waits for its end and returns what is due.
    ///
    /// # Errors
    /// It does not end, or ends badly; what it said.
    pub fn finish(mut self) -> Result<Vec<DueOwner>> {
        if let Some(mut stdin) = self.stdin.take() {
            // It may have ended already.
            drop(stdin.write_all(b"go\n"));
        }
        self.wait_ready()?;
        let status: ExitStatus = self.child.wait()?;
        let said = self.errors.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
        ensure!(status.success(), "the case failed: {said}");
        Ok(self.due)
    }
}

/// Builds the Go end of connections, beside the tools that `tests/setup` built.
///
/// # Errors
/// Go is missing, or the program does not build.
pub fn build_peer() -> Result<PathBuf> {
    let peer = crate::backend::tool("reset-peer")?;
    std::fs::create_dir_all(peer.parent().context("no directory of tools")?)?;
    let source = crate::crate_directory().join("actors/peer/peer.go");
    let output = Command::new("go")
        .env("CGO_ENABLED", "0")
        .args(["build", "-o"])
        .args([&peer, &source])
        .output()
        .context("go is missing: see https://go.dev/doc/install")?;
    ensure!(output.status.success(), "peer.go: {}", String::from_utf8_lossy(&output.stderr));
    Ok(peer)
}

fn actors() -> Command {
    // The distribution's own: a version manager's shim costs 0.2 s a start.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-B", "-I"]).arg(crate::crate_directory().join("actors/owners.py"));
    command
}
