//! The collector under test: started, awaited, its records gathered.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{network::Host, poll::eventually, record::Record};

const START_TIMEOUT: Duration = Duration::from_secs(180);
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// What the collector's standard error says once it captures.
const READY: &str = "ready";

/// A running `reset-collector run`.
#[derive(Debug)]
pub struct Collector {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Collector {
    /// Starts it with more arguments and variables, and waits until it is ready.
    ///
    /// # Errors
    /// It ended or was not ready in time; what it said.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_by(Command::new(program()?), arguments, variables, |_| true)
    }

    /// Starts it on a host, as [`Self::start`] does here.
    ///
    /// # Errors
    /// As there.
    pub fn start_on(host: &Host, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_by(host.command_of(&program()?), arguments, variables, |_| true)
    }

    /// As [`Self::start`], but of the lines that it prints only those are kept that `keep` takes.
    ///
    /// # Errors
    /// As there.
    pub fn start_keeping(
        arguments: &[&str],
        variables: &[(&str, &str)],
        keep: impl FnMut(&str) -> bool + Send + 'static,
    ) -> Result<Self> {
        Self::start_by(Command::new(program()?), arguments, variables, keep)
    }

    fn start_by(
        mut command: Command,
        arguments: &[&str],
        variables: &[(&str, &str)],
        keep: impl FnMut(&str) -> bool + Send + 'static,
    ) -> Result<Self> {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.arg("run").args(arguments).envs(variables.iter().copied());
        Self::start_as(command, keep)
    }

    /// Starts it by a command that says all, as that of a container does.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_as(mut command: Command, mut keep: impl FnMut(&str) -> bool + Send + 'static) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
        let (lines, said) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let (to_lines, to_said) = (Arc::clone(&lines), Arc::clone(&said));
        let readers = vec![
            std::thread::spawn(move || {
                each_line(stdout, |line| {
                    if keep(line) {
                        lock(&to_lines).push(line.to_owned());
                    }
                });
            }),
            std::thread::spawn(move || each_line(stderr, |line| *lock(&to_said) += &format!("{line}\n"))),
        ];
        let mut collector = Self { child, lines, said, readers };
        collector.wait_ready()?;
        Ok(collector)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.said().contains(READY) {
            let ended = self.child.try_wait()?;
            if ended.is_some() {
                // Its last words are on their way.
                std::thread::sleep(Duration::from_millis(100));
            }
            ensure!(ended.is_none() && Instant::now() < deadline, "the collector is not ready: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Where its admin endpoint listens: configured with port 0, the log has the port.
    ///
    /// # Errors
    /// The log does not have it in time.
    pub fn admin(&self) -> Result<SocketAddr> {
        let address = || -> Result<Option<SocketAddr>> {
            let said = self.said();
            let Some(line) = said.lines().find(|line| line.contains("admin_listening")) else { return Ok(None) };
            let (_, rest) = line.split_once("address=").with_context(|| line.to_owned())?;
            Ok(Some(rest.split_whitespace().next().unwrap_or_default().parse()?))
        };
        eventually(START_TIMEOUT, "the admin endpoint", address, Option::is_some)?.context("no address")
    }

    /// What it has said on its standard error so far.
    pub fn said(&self) -> String {
        lock(&self.said).clone()
    }

    /// The records of these network namespaces so far.
    ///
    /// # Errors
    /// A line that is no record.
    pub fn records(&self, namespaces: &[u32]) -> Result<Vec<Record>> {
        let named: Vec<String> = namespaces.iter().map(u32::to_string).collect();
        let lines = lock(&self.lines);
        // Most lines belong to other scenarios: they are skipped unparsed.
        let candidates = lines.iter().filter(|line| named.iter().any(|name| line.contains(name)));
        let records = candidates.map(|line| Record::parse(line)).collect::<Result<Vec<_>>>()?;
        Ok(records.into_iter().filter(|record| namespaces.contains(&record.namespace)).collect())
    }

    /// The records of a network namespace in which an address is the local one, once so many are there.
    ///
    /// # Errors
    /// Fewer came in time, or a line is no record.
    pub fn awaited_records(&self, namespace: u32, local: &str, due: usize, timeout: Duration) -> Result<Vec<Record>> {
        let look = || {
            let mut records = self.records(&[namespace])?;
            records.retain(|record| record.text("network.local.address") == local);
            Ok(records)
        };
        let records = eventually(timeout, "all records printed", look, |records| records.len() >= due)?;
        ensure!(records.len() >= due, "{} records of {due} from {local}: {}", records.len(), self.said());
        Ok(records)
    }

    /// Every record so far.
    ///
    /// # Errors
    /// A line that is no record.
    pub fn all_records(&self) -> Result<Vec<Record>> {
        lock(&self.lines).iter().map(|line| Record::parse(line)).collect()
    }

    /// The lines that hold a text so far, counted.
    pub fn count_lines(&self, matches: impl Fn(&str) -> bool) -> usize {
        lock(&self.lines).iter().filter(|line| matches(line)).count()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The kernel's count of a kind of resets, from the log at the collector's end.
    pub fn counted(said: &str, direction: &str, origin: &str, cause: &str) -> u64 {
        let kind = format!("direction=\"{direction}\" origin=\"{origin}\" cause=\"{cause}\" count=");
        said.lines().filter_map(|line| line.split_once(&kind)?.1.trim_end().parse().ok()).next_back().unwrap_or(0)
    }

    /// Kills it at once, and returns the lines that it had printed and that were kept; the last may be cut off.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(mut self) -> Result<Vec<String>> {
        self.child.kill()?;
        self.child.wait()?;
        for reader in self.readers.drain(..) {
            reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
        }
        let lines = std::mem::take(&mut *lock(&self.lines));
        Ok(lines)
    }

    /// Ends it by SIGINT, as ^C does, and returns how it ended and what it had said.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(self) -> Result<(ExitStatus, String)> {
        let (status, said, _) = self.stop_with_lines()?;
        Ok((status, said))
    }

    /// The same, and every line that it printed and that was kept.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop_with_lines(mut self) -> Result<(ExitStatus, String, Vec<String>)> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let deadline = Instant::now() + END_TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "the collector does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
        }
        let lines = std::mem::take(&mut *lock(&self.lines));
        Ok((status, self.said(), lines))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn each_line(stream: impl Read, mut take: impl FnMut(&str)) {
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let mut line = String::new();
    // A line that cannot be read ends the reading: the records after it are then missed, and the test says so.
    while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
        take(line.trim_end_matches('\n'));
        line.clear();
    }
}

/// The program under test: `RESET_COLLECTOR`, or the one that cargo builds now.
///
/// # Errors
/// It does not build.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("RESET_COLLECTOR") {
        return Ok(program.into());
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "reset-collector", "--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the collector does not build");
    let messages = String::from_utf8(output.stdout)?;
    let mut executable = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "reset-collector").then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.next_back().context("cargo names no executable")
}
