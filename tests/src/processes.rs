//! Programs that an example starts, on a host of the tests: started as its page says, awaited, asked.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::network::Host;

/// They start within this time, on a busy machine too.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Programs on a host, ended when dropped, their output in a directory that goes as well.
#[derive(Debug)]
pub struct Programs<'a> {
    host: &'a Host,
    /// Theirs alone.
    pub directory: TempDir,
    children: Vec<Child>,
}

impl<'a> Programs<'a> {
    /// None yet.
    ///
    /// # Errors
    /// Their directory cannot be made.
    pub fn new(host: &'a Host) -> Result<Self> {
        let directory = TempDir::with_prefix("reset-collector-")?;
        Ok(Self { host, directory, children: Vec::new() })
    }

    /// Starts one, in their directory, under a name that its output goes by.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, name: &str, path: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        let said = fs::File::create(self.directory.path().join(name))?;
        let mut command = self.host.command_of(path);
        for (inherited, _) in std::env::vars().filter(|(inherited, _)| inherited.starts_with("OTEL_")) {
            command.env_remove(inherited);
        }
        command.args(arguments).envs(variables.iter().copied()).current_dir(self.directory.path());
        self.children.push(command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn()?);
        Ok(())
    }

    /// What a program has said.
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    /// Until a program has said a word.
    ///
    /// # Errors
    /// It does not in time; what it said.
    pub fn wait_for_word(&self, name: &str, word: &str) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.said(name).contains(word) {
            ensure!(Instant::now() < deadline, "{name} is not ready: {}", self.said(name));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Until somebody listens on a port of loopback there.
    ///
    /// # Errors
    /// Nobody does in time; what the program said.
    pub fn wait_for_port(&self, name: &str, port: u16) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while self.host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err())? {
            ensure!(Instant::now() < deadline, "{name} does not listen: {}", self.said(name));
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Runs a program there to its end, and returns what it printed.
    ///
    /// # Errors
    /// It cannot be started, or takes a signal to end.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.host.command(program).args(arguments).stdin(Stdio::null()).output()?;
        ensure!(output.status.code().is_some(), "{program}: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    /// The body of the answer to a request without one, over HTTP at loopback there.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ask(&self, method: &str, port: u16, path: &str) -> Result<String> {
        let exchange = || -> Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(START_TIMEOUT))?;
            write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            Ok(body.to_owned())
        };
        self.host.enter(exchange)?
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
