//! Instrumented programs, what their other ends say is true, and the verdict on what became of each reset.
//!
//! The witness is `traceparent`, as the peer read it from the wire or wrote it there: nothing here relies on spans that
//! the collector may have touched.

use std::{
    collections::HashMap,
    fmt::Write,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    backend::{Log, tool},
    crate_directory,
    jaeger::Span,
    network::Host,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection that a peer saw reset, or tried to have reset.
#[derive(Clone, Debug, Deserialize)]
pub struct Truth {
    /// The instrumented program; the peer does not know it.
    #[serde(default)]
    pub program: String,
    /// What was done.
    pub case: String,
    /// Which end the instrumented program is.
    pub side: Side,
    /// Its port; `None` where nobody could see it.
    pub local_port: Option<u16>,
    /// The peer's.
    pub peer_port: u16,
    /// The trace of the request that was open on the connection; `None` where none was.
    pub trace_id: Option<String>,
    /// Of a client its span, of a server that span's parent.
    pub span_id: Option<String>,
    /// Whether the connection was reset in the end.
    pub made: bool,
    /// Whether other calls were open on it: then all of them were broken, and the record may name any.
    #[serde(default)]
    pub shared: bool,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

/// What became of a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On the span where it belongs, or on none where it belongs to none; by this method.
    Right(String),
    /// It says that it cannot tell; the span is among those that it names, or has gone to another backend.
    Ambiguous,
    /// It belongs to a span and names none.
    Missing,
    /// It names a span that is not its own, or one where it belongs to none.
    Wrong(String),
    /// The log record has the trace, and Jaeger has no event.
    NoEvent(String),
    /// The collector has no record of it.
    NoRecord,
    /// The peer was not reset.
    NotMade,
}

/// A program of `sdk/`, running.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Program {
    /// Starts it on a host, with OTLP going to an endpoint.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(host: &Host, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let (program, arguments) = arguments.split_first().context("no program")?;
        let mut child = command(host, program)?
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("RESET_TESTS_VERBOSE").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .with_context(|| format!("{program} {arguments:?}: run tests/setup"))?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Ok(Self { child, lines })
    }

    /// Waits until it says that it listens.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_ready(&self) -> Result<()> {
        loop {
            let line = self.lines.recv_timeout(START_TIMEOUT).context("a program of tests/sdk does not get ready")?;
            if line.contains("\"ready\"") {
                return Ok(());
            }
        }
    }

    /// Waits until it ends, and says whether all went well.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(&mut self) -> Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// The truths that it has told so far; all of them once it has ended.
    ///
    /// # Errors
    /// A line that is none.
    pub fn truths(&self, program: &str) -> Result<Vec<Truth>> {
        let read = |line: String| -> Result<Truth> {
            let truth: Truth = serde_json::from_str(&line).with_context(|| line.clone())?;
            Ok(Truth { program: program.to_owned(), ..truth })
        };
        let mut truths = Vec::new();
        // The line may be on its way between the two threads.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
            truths.push(read(line)?);
        }
        Ok(truths)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// `python`, `peer`, `peer_grpc`, `node` and `go` stand for programs that `tests/setup sdk` brings.
fn command(host: &Host, program: &str) -> Result<Command> {
    let (installed, source): (PathBuf, PathBuf) = (tool("sdk")?, crate_directory().join("sdk"));
    let python = installed.join("python/bin/python");
    let mut command = match program {
        "peer" | "peer_grpc" => {
            let mut command = host.command_of(&python);
            command.arg(source.join(program).with_extension("py"));
            command
        }
        "python" => {
            let mut command = host.command_of(&installed.join("python/bin/opentelemetry-instrument"));
            command.arg(python).current_dir(source.join("python"));
            command
        }
        "node" => {
            let mut command = host.command_of("node".as_ref());
            command.args(["--require", "@opentelemetry/auto-instrumentations-node/register"]);
            command.current_dir(source.join("node")).env("NODE_PATH", installed.join("node/node_modules"));
            command
        }
        "go" => host.command_of(&installed.join("program")),
        _ => anyhow::bail!("no program {program}"),
    };
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    Ok(command)
}

/// What Jaeger and the Collector have, and the verdict on each truth.
#[derive(Debug)]
pub struct Judge<'a> {
    /// The records of the programs' host.
    pub logs: Vec<&'a Log>,
    /// Every span of Jaeger's, by trace.
    pub traces: HashMap<&'a str, Vec<&'a Span>>,
}

impl<'a> Judge<'a> {
    /// What both have of the resets on a host.
    pub fn new(host: &Host, logs: &'a [Log], spans: &'a [Span]) -> Self {
        let here = |log: &&Log| log.attributes.get("network.namespace.inode").and_then(Value::as_u64);
        let mut traces: HashMap<&str, Vec<&Span>> = HashMap::new();
        for span in spans {
            traces.entry(&span.trace_id).or_default().push(span);
        }
        Self { logs: logs.iter().filter(|log| here(log) == Some(u64::from(host.inode))).collect(), traces }
    }

    /// What became of a reset: the worst, where the connection had several.
    pub fn verdict(&self, truth: &Truth) -> Verdict {
        let verdicts: Vec<Verdict> = self.records(truth).map(|log| self.verdict_on(truth, log)).collect();
        let worst = |bad: fn(&Verdict) -> bool| verdicts.iter().find(|verdict| bad(verdict)).cloned();
        worst(|verdict| matches!(verdict, Verdict::Wrong(_)))
            .or_else(|| worst(|verdict| !matches!(verdict, Verdict::Right(_))))
            .or_else(|| verdicts.first().cloned())
            .unwrap_or(if truth.made { Verdict::NoRecord } else { Verdict::NotMade })
    }

    /// The records of a truth's connection, as its program's end saw it.
    pub fn records(&self, truth: &Truth) -> impl Iterator<Item = &'a Log> {
        let (local, peer) = (truth.local_port, truth.peer_port);
        let is_its = move |log: &&Log| {
            port(&log.attributes, "network.peer.port") == Some(peer)
                && local.is_none_or(|local| port(&log.attributes, "network.local.port") == Some(local))
        };
        self.logs.clone().into_iter().filter(is_its)
    }

    fn verdict_on(&self, truth: &Truth, log: &Log) -> Verdict {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (trace, span) = (text(&log.record["traceId"]), text(&log.record["spanId"]));
        let method = log.attributes.get("tcp.reset.trace.method").map(text).unwrap_or_default();
        // Without a method the trace is one of the collector's own, begun for this reset: no program has a span in it.
        let alone = |spans: &Vec<&Span>| spans.iter().all(|span| span.operation.starts_with("tcp.reset "));
        let none = method.is_empty() && self.traces.get(trace.as_str()).is_none_or(alone);
        let Some((true_trace, true_span)) = self.true_span(truth) else {
            return if none {
                Verdict::Right("none".into())
            } else {
                Verdict::Wrong(format!("{method} {trace} {span}"))
            };
        };
        if method == "ambiguous" && span.is_empty() {
            return Verdict::Ambiguous;
        }
        if none {
            // A connection that is reset before the program has accepted it has no span of a server's.
            let served = truth.side == Side::Client || true_span.is_some();
            return if served { Verdict::Missing } else { Verdict::Right("none, never served".into()) };
        }
        if truth.shared {
            return self.verdict_on_shared(method, &true_trace, true_span.as_deref(), log);
        }
        let in_trace = self.traces.get(trace.as_str()).map(Vec::as_slice).unwrap_or_default();
        let named = in_trace.iter().find(|found| found.span_id == span);
        // A span that had left before its reset was read gets the event by a child, which the record then names.
        let child = named.is_some_and(|found| found.operation.starts_with("tcp.reset "));
        let application = if child { named.and_then(|found| found.parent_id.clone()) } else { Some(span.clone()) };
        let told = named.is_some_and(|found| found.resets().any(|event| is_of(event, log)));
        if trace != true_trace {
            return Verdict::Wrong(format!("{method} {trace} {span}, not {true_trace} {true_span:?}"));
        }
        if named.is_none() {
            return Verdict::NoEvent(format!("{method}: Jaeger has no span {span}"));
        }
        if true_span.is_some() && application != true_span {
            return Verdict::Wrong(format!("{method} {trace} {application:?}, not {true_span:?}"));
        }
        match (told, child) {
            (true, false) => Verdict::Right(method),
            (true, true) => Verdict::Right(format!("{method}, child")),
            (false, _) => Verdict::NoEvent(method),
        }
    }

    /// One of several calls on the connection: its own span has the event, or is linked to by the span that has it.
    fn verdict_on_shared(&self, method: String, trace: &str, span: Option<&str>, log: &Log) -> Verdict {
        let told = |found: &&Span| found.resets().any(|event| is_of(event, log));
        let own = self.traces.get(trace).into_iter().flatten().copied();
        if own.filter(|found| span.is_none_or(|span| found.span_id == span)).any(|found| told(&found)) {
            return Verdict::Right(method);
        }
        let is_about = |found: &&Span| {
            let about = found.parent_id.iter().chain(&found.links).any(|about| Some(about.as_str()) == span);
            found.operation.starts_with("tcp.reset ") && about && told(found)
        };
        if self.traces.values().flatten().copied().any(|found| is_about(&found)) {
            return Verdict::Right(format!("{method}, child"));
        }
        Verdict::NoEvent(method)
    }

    /// The trace and, where Jaeger knows it, the span that a reset belongs to.
    fn true_span(&self, truth: &Truth) -> Option<(String, Option<String>)> {
        if truth.case == "connection_refused" {
            // The peer cannot witness what never came: the span that called that port.
            let called = |span: &&&Span| {
                span.tags.get("span.kind").is_some_and(|kind| kind == "client") && {
                    // gRPC says it in its error's text only.
                    let ports = ['/', ':'].map(|after| format!(":{}{after}", truth.peer_port));
                    let names = ["url.full", "http.url", "otel.status_description"];
                    let texts = names.map(|name| span.tags.get(name).and_then(Value::as_str));
                    texts.into_iter().flatten().any(|text| ports.iter().any(|port| text.contains(port)))
                }
            };
            let span = self.traces.values().flatten().find(called)?;
            return Some((span.trace_id.clone(), Some(span.span_id.clone())));
        }
        let trace = truth.trace_id.clone()?;
        let span = match truth.side {
            Side::Client => truth.span_id.clone(),
            Side::Server => {
                let spans = self.traces.get(trace.as_str()).map(Vec::as_slice).unwrap_or_default();
                let is_server = |span: &&&Span| span.tags.get("span.kind").is_some_and(|kind| kind == "server");
                let served = spans.iter().filter(is_server).find(|span| span.parent_id == truth.span_id);
                served.map(|span| span.span_id.clone())
            }
        };
        Some((trace, span))
    }

    /// Events of resets on spans of the programs that no truth puts there.
    pub fn strangers(&self, truths: &[Truth]) -> Vec<String> {
        let mut strangers = Vec::new();
        for span in self.traces.values().flatten().filter(|span| !span.operation.starts_with("tcp.reset ")) {
            for event in span.resets() {
                let fits = |truth: &&Truth| {
                    port(event, "network.peer.port") == Some(truth.peer_port)
                        && truth.local_port.is_none_or(|local| port(event, "network.local.port") == Some(local))
                };
                let own = truths.iter().filter(fits).filter_map(|truth| self.true_span(truth));
                if !own.into_iter().any(|(trace, id)| trace == span.trace_id && id.as_ref() == Some(&span.span_id)) {
                    strangers.push(format!("{} {} {} {event:?}", span.service, span.operation, span.trace_id));
                }
            }
        }
        strangers
    }
}

fn port(attributes: &Map<String, Value>, name: &str) -> Option<u16> {
    attributes.get(name)?.as_u64()?.try_into().ok()
}

/// Whether an event tells the same as a record.
fn is_of(event: &Map<String, Value>, log: &Log) -> bool {
    ["network.local.port", "network.peer.port", "network.io.direction", "tcp.reset.cause"]
        .iter()
        .all(|name| event.get(*name) == log.attributes.get(*name))
}

/// A table of verdicts: a line per program and case.
///
/// # Errors
/// None in truth: text takes all.
pub fn table(verdicts: &[(Truth, Verdict)]) -> Result<String> {
    let mut text = String::from("| program | end | case | verdict |\n| --- | --- | --- | --- |\n");
    for (truth, verdict) in verdicts {
        writeln!(text, "| {} | {:?} | {} | {verdict:?} |", truth.program, truth.side, truth.case)?;
    }
    ensure!(!verdicts.is_empty(), "nothing was judged");
    Ok(text)
}
