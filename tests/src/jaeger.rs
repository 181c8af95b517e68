//! A real Jaeger on a host of the tests, and what its query API says of the spans that it has got.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::{
    backend::{listens, tool},
    network::Host,
};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// More than the tests make.
const MAX_TRACES: u32 = 5000;
/// OTLP over gRPC, and the query API: Jaeger's own.
const OWN_PORTS: [u16; 2] = [4317, 16686];
/// The same, where the first is the Collector's.
const PORTS: [u16; 2] = [14317, 16686];

/// A running Jaeger that keeps spans in memory.
#[derive(Debug)]
pub struct Jaeger {
    child: Child,
    directory: TempDir,
    host: Host,
    /// Where it takes OTLP over gRPC.
    pub grpc: SocketAddr,
    query: SocketAddr,
}

/// A span as the query API tells it.
#[derive(Clone, Debug)]
pub struct Span {
    /// In lower case hexadecimal.
    pub trace_id: String,
    /// The same.
    pub span_id: String,
    /// The span that it is a child of.
    pub parent_id: Option<String>,
    /// Spans that it is linked to.
    pub links: Vec<String>,
    /// What Jaeger finds wrong with it.
    pub warnings: Vec<String>,
    /// Its name.
    pub operation: String,
    /// The service's name.
    pub service: String,
    /// Its attributes.
    pub tags: Map<String, Value>,
    /// Its events' attributes; the name is `event`.
    pub events: Vec<Map<String, Value>>,
}

impl Jaeger {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It is not built (`tests/setup jaeger`), or does not start; its own text.
    pub fn start_on(host: &Host) -> Result<Self> {
        Self::start(host, PORTS)
    }

    /// The same at the ports that its image has.
    ///
    /// # Errors
    /// As there.
    pub fn start_at_its_own_ports(host: &Host) -> Result<Self> {
        Self::start(host, OWN_PORTS)
    }

    fn start(host: &Host, ports: [u16; 2]) -> Result<Self> {
        let [grpc, query] = ports.map(|port| SocketAddr::new(IpAddr::V4(host.v4), port));
        let directory = TempDir::with_prefix("reset-collector-")?;
        let configuration = format!(
            "service:\n  extensions: [jaeger_storage, jaeger_query]\n  telemetry: {{ metrics: {{ level: none }} }}\n\
             \x20 pipelines: {{ traces: {{ receivers: [otlp], exporters: [jaeger_storage_exporter] }} }}\n\
             extensions:\n\
             \x20 jaeger_storage: {{ backends: {{ memory: {{ memory: {{ max_traces: {MAX_TRACES} }} }} }} }}\n\
             \x20 jaeger_query: {{ storage: {{ traces: memory }}, http: {{ endpoint: \"{query}\" }}, \
             grpc: {{ endpoint: \"{}:16685\" }} }}\n\
             receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{grpc}\" }} }} }} }}\n\
             exporters: {{ jaeger_storage_exporter: {{ trace_storage: memory }} }}\n",
            query.ip()
        );
        let file = directory.path().join("jaeger.yaml");
        std::fs::write(&file, configuration)?;
        let program = tool("jaeger")?;
        let child = host
            .command_of(&program)
            .arg("--config")
            .arg(&file)
            .env("OTEL_TRACES_SAMPLER", "always_off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("said.log"))?)
            .spawn()
            .with_context(|| format!("{} is missing: run tests/setup", program.display()))?;
        let mut jaeger = Self { child, directory, host: host.clone(), grpc, query };
        let deadline = Instant::now() + START_TIMEOUT;
        while !listens(&[grpc, query], Some(host))? {
            let ended = jaeger.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "Jaeger does not listen: {}", jaeger.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(jaeger)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("said.log")).unwrap_or_default()
    }

    /// The spans of a trace; none where it knows no such trace.
    ///
    /// # Errors
    /// It does not answer as its API should.
    pub fn trace(&self, trace_id: &str) -> Result<Vec<Span>> {
        spans(&self.get(&format!("/api/traces/{trace_id}"))?)
    }

    /// Every span that it has.
    ///
    /// # Errors
    /// It does not answer as its API should, or may have more than it says.
    pub fn all_spans(&self) -> Result<Vec<Span>> {
        let services = self.get("/api/services")?;
        let mut all: Vec<Span> = Vec::new();
        for service in services["data"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let name = service.replace(' ', "%20");
            let traces = self.get(&format!("/api/traces?service={name}&limit={MAX_TRACES}&lookback=1h"))?;
            let count = traces["data"].as_array().map_or(0, Vec::len);
            ensure!(count < MAX_TRACES as usize, "{service} has more traces than Jaeger gives");
            all.extend(spans(&traces)?);
        }
        all.sort_by(|one, other| (&one.trace_id, &one.span_id).cmp(&(&other.trace_id, &other.span_id)));
        all.dedup_by(|one, other| one.trace_id == other.trace_id && one.span_id == other.span_id);
        Ok(all)
    }

    /// The JSON that the query API answers.
    ///
    /// # Errors
    /// There is no answer, or none that is JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = self.host.enter(|| -> Result<String> {
            let mut connection = TcpStream::connect(self.query)?;
            write!(connection, "GET {path} HTTP/1.0\r\nHost: jaeger\r\n\r\n")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let (_, body) = answer.split_once("\r\n\r\n").context("Jaeger's answer has no body")?;
        serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spans(answer: &Value) -> Result<Vec<Span>> {
    let traces = answer["data"].as_array().into_iter().flatten();
    let spans = traces.flat_map(|trace| {
        trace["spans"].as_array().into_iter().flatten().map(|span| Span::read(span, &trace["processes"]))
    });
    spans.collect()
}

impl Span {
    fn read(span: &Value, processes: &Value) -> Result<Self> {
        let text = |name: &str| Some(span[name].as_str()?.to_owned());
        let process = span["processID"].as_str().context("a span without process")?;
        let references = |kind: &'static str| {
            let all = span["references"].as_array().into_iter().flatten();
            let ours = all.filter(move |reference| reference["refType"] == kind);
            ours.filter_map(|reference| Some(reference["spanID"].as_str()?.to_owned()))
        };
        let warnings = span["warnings"].as_array().into_iter().flatten();
        Ok(Self {
            trace_id: text("traceID").context("a span without trace id")?,
            span_id: text("spanID").context("a span without span id")?,
            parent_id: references("CHILD_OF").next(),
            links: references("FOLLOWS_FROM").collect(),
            warnings: warnings.map(ToString::to_string).collect(),
            operation: text("operationName").unwrap_or_default(),
            service: processes[process]["serviceName"].as_str().unwrap_or_default().to_owned(),
            tags: pairs(&span["tags"]),
            events: span["logs"].as_array().into_iter().flatten().map(|log| pairs(&log["fields"])).collect(),
        })
    }

    /// Its events of resets.
    pub fn resets(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.events.iter().filter(|event| event.get("event").is_some_and(|name| name == "tcp.reset"))
    }
}

fn pairs(list: &Value) -> Map<String, Value> {
    let pairs = list.as_array().into_iter().flatten();
    pairs.filter_map(|pair| Some((pair["key"].as_str()?.to_owned(), pair["value"].clone()))).collect()
}
