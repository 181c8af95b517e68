//! `traceparent` from the wire: each reset names the trace of the request that was open on its connection at that end, or
//! none.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "why a test is skipped, and what was judged")]

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reset_collector_tests::{
    backend::tool,
    collector::Collector,
    configuration_file, crate_directory,
    network::{Layout, Network},
    record::Record,
    require_root,
};
use serde::Deserialize;

const PORT: &str = "8080";
const PROXY_PORT: &str = "8081";
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that was reset, as the script that made it knows it.
#[derive(Debug, Deserialize)]
struct Truth {
    case: String,
    client_port: i64,
    server_port: i64,
    /// By end, the `traceparent` of the request that was open there. An end that is left out may name that of another
    /// end, or none.
    ends: BTreeMap<String, Option<String>>,
}

impl Truth {
    /// Trace and span that an end's records must name, empty for none.
    fn due(&self, end: &str) -> Option<(String, String)> {
        let value = self.ends.get(end)?.as_deref().unwrap_or_default();
        let mut parts = value.split('-').skip(1).map(str::to_owned);
        Some((parts.next().unwrap_or_default(), parts.next().unwrap_or_default()))
    }

    fn records<'a>(&self, end: &str, records: &'a [Record]) -> Vec<&'a Record> {
        let (local, peer) =
            if end == "client" { (self.client_port, self.server_port) } else { (self.server_port, self.client_port) };
        let is_its = |record: &&Record| {
            record.number("network.local.port") == Some(local) && record.number("network.peer.port") == Some(peer)
        };
        records.iter().filter(is_its).collect()
    }

    /// What is wrong with the records of an end.
    fn faults(&self, end: &str, records: &[Record]) -> Vec<String> {
        let own = self.records(end, records);
        let due = self.due(end);
        let allowed: Vec<(String, String)> = match &due {
            Some(due) => vec![due.clone()],
            None => ["client", "server"].iter().filter_map(|end| self.due(end)).chain([Default::default()]).collect(),
        };
        let mut faults = Vec::new();
        if due.is_some() && own.is_empty() {
            faults.push(format!("{} {end}: no record", self.case));
        }
        for record in own {
            let named = (record.text("trace_id").to_owned(), record.text("span_id").to_owned());
            let method = if named.0.is_empty() { "" } else { "header" };
            if !allowed.contains(&named) || record.text("tcp.reset.trace.method") != method {
                let (cause, method) = (record.text("tcp.reset.cause"), record.text("tcp.reset.trace.method"));
                faults.push(format!("{} {end} {cause}: {named:?} by {method:?}, not {allowed:?}", self.case));
            }
        }
        faults
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn every_reset_names_the_request_that_was_open_or_none() -> Result<()> {
    judge("exchanges.py", &[PORT], 170)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn plain_programs_and_nginx_between_them() -> Result<()> {
    let directory = tempfile::tempdir()?;
    judge("programs.py", &[PORT, PROXY_PORT, &directory.path().to_string_lossy()], 24)
}

/// Runs a script and judges each end of each connection that it lists, at least `least` ends.
fn judge(script: &str, arguments: &[&str], least: usize) -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let host = &network.client;
    let others = format!("filters: [{{ drop: {{ not: {{ network.namespace.inode: {} }} }} }}]\n", host.inode);
    let ports = format!("correlation: {{ http_headers: {{ ports: [{PORT}, {PROXY_PORT}] }} }}\n");
    let config = configuration_file(&(others + &ports + "export: { console: json }\n"))?;
    let collector = Collector::start(&["--config", &config.path().to_string_lossy()], &[])?;
    ensure!(!collector.said().contains("cgroup_skb"), "the wire is not read: {}", collector.said());
    let python = tool("sdk")?.join("python/bin/python");
    let mut command = host.command_of(&python);
    command.arg(crate_directory().join("wire").join(script)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    let truths = truths(command)?;
    let ends: usize = truths.iter().map(|truth| truth.ends.len()).sum();
    ensure!(ends >= least, "{ends} ends of connections, not {least}");
    let deadline = Instant::now() + TIMEOUT;
    let is_told = |records: &[Record]| {
        let mut ends = truths.iter().flat_map(|truth| truth.ends.keys().map(move |end| (truth, end)));
        ends.all(|(truth, end)| !truth.records(end, records).is_empty())
    };
    while !is_told(&collector.records(&[host.inode])?) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let records = collector.records(&[host.inode])?;
    collector.stop()?;
    let faults: Vec<String> =
        truths.iter().flat_map(|truth| ["client", "server"].map(|end| truth.faults(end, &records))).flatten().collect();
    println!("{script}: {ends} ends of {} connections, {} of them wrong", truths.len(), faults.len());
    if !faults.is_empty() {
        bail!("{faults:#?}");
    }
    Ok(())
}

fn truths(mut command: Command) -> Result<Vec<Truth>> {
    let output = command.output().context("the script does not run")?;
    ensure!(output.status.success(), "the script failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
