//! Real resets through real rules: for every key that a rule can match, what is kept and what is dropped.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table says what each rule did")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector::model::attribute::Attribute;
use reset_collector_tests::{
    collector::Collector,
    configuration_file,
    network::{Host, Layout, Network},
    record::Record,
    require_root,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::NamedTempFile;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any stage of the pipeline delays a reset without traces.
const SETTLE_DELAY: Duration = Duration::from_millis(180);
/// Of the actor's last reset.
const LAST_PORT: u16 = 41099;
/// Attributes that none of these resets can have: a trace needs a tracer (`traces.rs`), an exit or another actor needs a
/// process of its own (`tests/actors/killed.py`), and a rule may not test the adjusted count.
const NOT_HERE: [Attribute; 6] = [
    Attribute::TraceMethod,
    Attribute::AdjustedCount,
    Attribute::ExitCode,
    Attribute::ExitSignal,
    Attribute::ActorPid,
    Attribute::ActorName,
];
const RESOURCE: &str =
    "team=red,cloud.region=eu-1,deployment.environment.name=prod,service.namespace=shop,service.version=1.2";
/// Keys of the resource that the actor's process has.
const RESOURCE_KEYS: [&str; 13] = [
    "service.name",
    "process.pid",
    "process.creation.time",
    "process.executable.name",
    "process.executable.path",
    "cloud.region",
    "deployment.environment.name",
    "service.namespace",
    "service.version",
    "team",
    "host.name",
    "host.id",
    "os.type",
];

/// Which reset: direction and ports, which are fixed.
type Identity = (String, u16, u16);

struct Actor {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Actor {
    fn start(host: &Host) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/rules.py");
        let mut child = host
            .command("/usr/bin/python3")
            .arg(script)
            .env("OTEL_SERVICE_NAME", "rules")
            .env("OTEL_RESOURCE_ATTRIBUTES", RESOURCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().context("stdin")?;
        let from = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, to, from })
    }

    fn act(&mut self) -> Result<()> {
        writeln!(self.to)?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(line == "made\n", "the actor ended: {:?}", self.child.try_wait()?);
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The collector under a configuration that changes while it runs.
struct Bench {
    collector: Collector,
    file: NamedTempFile,
    namespace: u32,
    actor: Actor,
}

impl Bench {
    /// Runs the filters in place of those before.
    fn reload(&self, filters: &str) -> Result<()> {
        let taken = || self.collector.said().matches("new configuration applied").count();
        let before = taken();
        fs::write(self.file.path(), filters)?;
        kill_process(Pid::from_raw(self.collector.pid().cast_signed()).context("no pid")?, Signal::HUP)?;
        let deadline = Instant::now() + TIMEOUT;
        while taken() == before {
            ensure!(Instant::now() < deadline, "{filters} is not taken: {}", self.collector.said());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Makes the resets, and returns their records.
    fn records(&mut self, expected: usize) -> Result<Vec<Record>> {
        let before = self.collector.records(&[self.namespace])?.len();
        self.actor.act()?;
        let new = || -> Result<Vec<Record>> { Ok(self.collector.records(&[self.namespace])?.split_off(before)) };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let records = new()?;
            let last = records.iter().filter(|record| is_last(record)).count();
            if last == 2 && records.len() >= expected + 2 || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(SETTLE_DELAY);
        let (last, records): (Vec<_>, Vec<_>) = new()?.into_iter().partition(is_last);
        ensure!(last.len() == 2, "the reset that every rule keeps has {} records, not two", last.len());
        Ok(records)
    }

    /// Whether exactly the resets that match a condition are kept, and then exactly the others.
    fn try_rule(&mut self, all: &[Record], condition: &str, meets: impl Fn(&Record) -> bool) -> Result<()> {
        for keeps in [true, false] {
            let expected: BTreeSet<_> = all.iter().filter(|record| meets(record) == keeps).map(identity).collect();
            let (first, then) = if keeps { ("keep", "drop") } else { ("drop", "keep") };
            // A rule after one that matches every reset is refused.
            let rest = if condition == ALWAYS_MET {
                String::new()
            } else {
                format!("  - {then}: {{ not: {{ network.peer.port: 1 }} }}\n")
            };
            self.reload(&format!("filters:\n{KEEP_LAST}  - {first}: {{ {condition} }}\n{rest}"))?;
            let records = self.records(expected.len())?;
            let found: BTreeSet<_> = records.iter().map(identity).collect();
            ensure!(
                found == expected && records.len() == expected.len(),
                "{first} {condition}: expected {expected:?}, records {found:?}"
            );
        }
        Ok(())
    }
}

const ALWAYS_MET: &str = "network.transport: 'tcp'";
const KEEP_LAST: &str =
    "  - keep: { any: [{ network.local.port: 41099 }, { network.peer.port: 41099 }], tcp.reset.cause: '*' }\n";

fn is_last(record: &Record) -> bool {
    record.source.port() == LAST_PORT || record.destination.port() == LAST_PORT
}

fn identity(record: &Record) -> Identity {
    (record.text("network.io.direction").to_owned(), record.source.port(), record.destination.port())
}

/// What is required of an attribute that changes from one turn to the next: whether it is there, or is more than nothing.
fn range_of(attribute: Attribute) -> Option<f64> {
    match attribute {
        Attribute::Duration | Attribute::SmoothedRtt => Some(0.0),
        Attribute::UnsentBytes | Attribute::UnackedBytes | Attribute::BytesSent | Attribute::BytesReceived => Some(1.0),
        _ => None,
    }
}

/// A condition on a key for a value of it, as a file has it.
fn exactly(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => format!("{name}: '{text}'"),
        other => format!("{name}: {other}"),
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn every_key_keeps_and_drops_what_it_says() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let file = configuration_file("filters: []\n")?;
    let collector = Collector::start(&["--config", file.path().to_str().context("a path in UTF-8")?], &[])?;
    let actor = Actor::start(&network.client)?;
    let mut bench = Bench { collector, file, namespace: network.client.inode, actor };
    let outcome = try_all(&mut bench);
    outcome.with_context(|| bench.collector.said())
}

fn try_all(bench: &mut Bench) -> Result<()> {
    // Sent and received, of five connections.
    let all = bench.records(10)?;
    ensure!(all.len() == 10, "{} records of five resets: {all:?}", all.len());
    let mut tried = 0;
    for attribute in Attribute::ALL.iter().copied().filter(|attribute| !NOT_HERE.contains(attribute)) {
        let name = attribute.name();
        if let Some(least) = range_of(attribute) {
            let meets = |record: &Record| record.attribute(name).and_then(Value::as_f64).is_some_and(|it| it >= least);
            bench.try_rule(&all, &format!("{name}: {{ gte: {least} }}"), meets)?;
        } else {
            let value = all.iter().find_map(|record| record.attribute(name)).cloned();
            let value = value.with_context(|| format!("none of the resets has {name}: {all:?}"))?;
            bench.try_rule(&all, &exactly(name, &value), |record| record.attribute(name) == Some(&value))?;
        }
        tried += 1;
    }
    for name in RESOURCE_KEYS {
        let value = all.iter().find_map(|record| record.attribute(name)).cloned();
        let value = value.with_context(|| format!("no workload has {name}: {all:?}"))?;
        bench.try_rule(&all, &exactly(name, &value), |record| record.attribute(name) == Some(&value))?;
        tried += 1;
    }
    println!("{tried} keys, each kept and dropped what it says, of {} records", all.len());
    Ok(())
}
