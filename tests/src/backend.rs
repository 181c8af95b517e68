//! A real OpenTelemetry Collector that writes what it gets into a file.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::network::Host;

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Collector with an OTLP receiver and a file exporter.
#[derive(Debug)]
pub struct Backend {
    child: Child,
    directory: TempDir,
    /// Where it takes OTLP over gRPC.
    pub grpc: SocketAddr,
    /// Where it takes OTLP over HTTP.
    pub http: SocketAddr,
}

/// A log record as the Collector wrote it.
#[derive(Clone, Debug)]
pub struct Log {
    /// `timeUnixNano`.
    pub time_ns: u64,
    /// `eventName`.
    pub event_name: String,
    /// `body`, text.
    pub body: String,
    /// The attributes, with plain values.
    pub attributes: Map<String, Value>,
    /// The attributes of its resource, with plain values.
    pub resource: Map<String, Value>,
    /// The record itself.
    pub record: Value,
}

impl Log {
    /// Whether the reset is of the network namespace with this inode.
    pub fn is_of(&self, namespace: u32) -> bool {
        self.attributes.get("network.namespace.inode").and_then(Value::as_u64) == Some(namespace.into())
    }
}

impl Backend {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It is not built (`tests/setup otelcol`), or does not start; its own text.
    pub fn start() -> Result<Self> {
        Self::start_at([free_address()?, free_address()?], None, "")
    }

    /// Starts it with TLS on both ports: `tls` is the receiver's setting of that name.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_secured(tls: &str) -> Result<Self> {
        Self::start_at([free_address()?, free_address()?], None, &format!(", tls: {tls}"))
    }

    /// Starts it on a host, at its address and OTLP's own ports.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(host: &Host) -> Result<Self> {
        Self::start_at([4317, 4318].map(|port| SocketAddr::new(IpAddr::V4(host.v4), port)), Some(host), "")
    }

    fn start_at([grpc, http]: [SocketAddr; 2], host: Option<&Host>, more: &str) -> Result<Self> {
        let directory = TempDir::with_prefix("reset-collector-")?;
        let logs = directory.path().join("logs.json");
        let configuration = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{grpc}\"{more} }}, http: {{ endpoint: \"{http}\"{more} }} }} }} }}\n\
             exporters: {{ file: {{ path: \"{}\", flush_interval: 50ms }} }}\n\
             service:\n  telemetry: {{ metrics: {{ level: none }} }}\n\
             \x20 pipelines: {{ logs: {{ receivers: [otlp], exporters: [file] }}, traces: {{ receivers: [otlp], exporters: [file] }}, \
             metrics: {{ receivers: [otlp], exporters: [file] }} }}\n",
            logs.display()
        );
        let file = directory.path().join("otelcol.yaml");
        std::fs::write(&file, configuration)?;
        let mut backend = Self { child: spawn(directory.path(), host)?, directory, grpc, http };
        backend.wait_ready(host)?;
        Ok(backend)
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again at the same addresses, after [`Self::kill`]; here, not on a host.
    ///
    /// # Errors
    /// It does not start; its own text.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.directory.path(), None)?;
        self.wait_ready(None)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self, host: Option<&Host>) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !listens(&[self.grpc, self.http], host)? {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "the backend does not listen: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("said.log")).unwrap_or_default()
    }

    /// The log records that have arrived.
    ///
    /// # Errors
    /// A line of the file is not OTLP's JSON.
    pub fn logs(&self) -> Result<Vec<Log>> {
        let mut logs = Vec::new();
        self.each_log(|log| {
            logs.push(log);
            Ok(())
        })?;
        Ok(logs)
    }

    /// The resources of the metrics that have arrived.
    ///
    /// # Errors
    /// A line of the file is not OTLP's JSON.
    pub fn metric_resources(&self) -> Result<Vec<Map<String, Value>>> {
        let text = std::fs::read_to_string(self.directory.path().join("logs.json")).unwrap_or_default();
        let mut resources = Vec::new();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let request: Value = serde_json::from_str(line).context("the backend's file")?;
            resources.extend(list(&request["resourceMetrics"]).map(|it| plain(&it["resource"]["attributes"])));
        }
        Ok(resources)
    }

    /// Takes the log records that have arrived one by one: a host of many resets has more than memory holds.
    ///
    /// # Errors
    /// A line of the file is not OTLP's JSON, or `take` fails.
    pub fn each_log(&self, mut take: impl FnMut(Log) -> Result<()>) -> Result<()> {
        let Ok(file) = std::fs::File::open(self.directory.path().join("logs.json")) else { return Ok(()) };
        let mut lines = BufReader::new(file);
        let mut line = String::new();
        // The last line may be half written.
        while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
            let request: Value = serde_json::from_str(&line).context("the backend's file")?;
            for of_resource in list(&request["resourceLogs"]) {
                let resource = plain(&of_resource["resource"]["attributes"]);
                let records = list(&of_resource["scopeLogs"]).flat_map(|scope| list(&scope["logRecords"]));
                for record in records {
                    take(Log::read(record, resource.clone())?)?;
                }
            }
            line.clear();
        }
        Ok(())
    }
}

fn spawn(directory: &std::path::Path, host: Option<&Host>) -> Result<Child> {
    let program = tool("otelcol")?;
    let said = std::fs::File::create(directory.join("said.log"))?;
    let mut command = host.map_or_else(|| Command::new(&program), |host| host.command_of(&program));
    command
        .arg("--config")
        .arg(directory.join("otelcol.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .spawn()
        .with_context(|| format!("{} is missing: run tests/setup", program.display()))
}

impl Log {
    fn read(record: &Value, resource: Map<String, Value>) -> Result<Self> {
        let text = |name: &str| record[name].as_str().unwrap_or_default();
        Ok(Self {
            time_ns: text("timeUnixNano").parse().context("timeUnixNano")?,
            event_name: text("eventName").to_owned(),
            body: record["body"]["stringValue"].as_str().unwrap_or_default().to_owned(),
            attributes: plain(&record["attributes"]),
            resource,
            record: record.clone(),
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether all these addresses, as a host sees them, take connections.
pub(crate) fn listens(addresses: &[SocketAddr], host: Option<&Host>) -> Result<bool> {
    let all = || addresses.iter().all(|address| TcpStream::connect(address).is_ok());
    host.map_or_else(|| Ok(all()), |host| host.enter(all))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// OTLP's list of keys and typed values as a map of plain ones.
fn plain(attributes: &Value) -> Map<String, Value> {
    let pairs =
        list(attributes).filter_map(|pair| Some((pair["key"].as_str()?.to_owned(), plain_value(&pair["value"])?)));
    pairs.collect()
}

fn plain_value(value: &Value) -> Option<Value> {
    let (kind, inner) = value.as_object()?.iter().next()?;
    Some(match kind.as_str() {
        // 64-bit numbers are texts in OTLP's JSON.
        "intValue" => Value::from(inner.as_str().map_or_else(|| inner.as_i64(), |text| text.parse().ok())?),
        "arrayValue" => Value::Array(list(&inner["values"]).filter_map(plain_value).collect()),
        _ => inner.clone(),
    })
}

/// A program that `tests/setup` built.
///
/// # Errors
/// The set-up cannot be asked.
pub fn tool(name: &str) -> Result<PathBuf> {
    let output = Command::new(crate::crate_directory().join("setup")).arg("--path").output()?;
    ensure!(output.status.success(), "tests/setup: {}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()).join(name))
}

/// An address of loopback with a port that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
