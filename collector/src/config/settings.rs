//! The valid configuration, as the rest of the program reads it.
//!
//! [`crate::config`] reads it from a file. The defaults are defined here; a test compares `config/reset-collector.yaml`
//! with them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    filter::{Filters, Ports},
    model::signal::Signal,
    sampler::Sampling,
};

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Which resets are captured.
    pub capture: Capture,
    /// Which captured resets are kept.
    pub filters: Filters,
    /// What share of those is exported.
    pub sampling: Sampling,
    /// How the owner of a connection is described.
    pub enrichment: Enrichment,
    /// How a reset is matched to a request.
    pub correlation: Correlation,
    /// Where records are exported to.
    pub export: Export,
    /// The admin endpoint; `None` disables it.
    pub admin: Option<SocketAddr>,
    /// What the process gives up once the programs are attached.
    pub hardening: Hardening,
}

/// What the process gives up once the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hardening {
    /// Capabilities, new privileges and system calls that are not needed any more; what the kernel does not offer is said.
    #[default]
    Auto,
    /// The same, and it does not start where something cannot be given up.
    Required,
    /// Nothing.
    Off,
}

/// Which resets are captured, and the maximum rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// Resets that this host's TCP sends.
    pub sent: bool,
    /// Resets that a socket here receives.
    pub received: bool,
    /// Resets that netfilter sends.
    pub firewall: bool,
    /// Received, owned by no socket.
    pub unmatched: bool,
    /// Maximum records per second from the kernel, shared fairly between keys; `None` is unlimited.
    pub max_records_per_second: Option<u32>,
    /// Size of the ring buffer, bytes, a power of two.
    pub ring_buffer_bytes: u32,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            sent: true,
            received: true,
            firewall: true,
            unmatched: true,
            max_records_per_second: Some(10_000),
            ring_buffer_bytes: 16 << 20,
        }
    }
}

/// How the owner of a connection is described.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Enrichment {
    /// Export `process.command_args`: off by default, since command lines may contain secrets.
    pub command_line: bool,
    /// Pod metadata from the Kubernetes API; `None` disables it.
    pub kubernetes: Option<Kubernetes>,
    /// Static resource attributes of everything that is exported, unique by name.
    pub resource: Vec<(String, String)>,
}

/// Pod metadata from the Kubernetes API.
#[derive(Clone, Debug, PartialEq)]
pub struct Kubernetes {
    /// Only this node's pods are watched.
    pub node_name: String,
}

/// How a reset is matched to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Correlation {
    /// Listener for OTLP/gRPC from applications; `None` disables it.
    pub grpc: Option<SocketAddr>,
    /// Listener for OTLP/HTTP from applications; `None` disables it.
    pub http: Option<SocketAddr>,
    /// How long a reset waits for its span before it is exported without one.
    pub span_wait: Duration,
    /// Largest request accepted from an application, bytes after decompression; `None` is the Collector's default of
    /// each protocol.
    pub max_request_bytes: Option<usize>,
    /// Headers of applications that are forwarded in addition to the usual ones, in lower case.
    pub pass_headers: Vec<String>,
    /// Read traceparent from plain HTTP/1.1 on these ports, in the kernel; empty is off.
    pub http_header_ports: Ports,
}

impl Default for Correlation {
    fn default() -> Self {
        Self {
            grpc: None,
            http: None,
            span_wait: Duration::from_secs(6),
            max_request_bytes: None,
            pass_headers: Vec::new(),
            http_header_ports: Ports::default(),
        }
    }
}

impl Correlation {
    /// Largest request by gRPC, bytes after decompression.
    pub fn max_grpc_request_bytes(&self) -> usize {
        self.max_request_bytes.unwrap_or(4 << 20)
    }

    /// Largest request by HTTP, bytes after decompression.
    pub fn max_http_request_bytes(&self) -> usize {
        self.max_request_bytes.unwrap_or(20 << 20)
    }
}

/// Where records are exported to.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// Which signals.
    pub signals: Signals,
    /// Lines on standard output.
    pub console: Console,
    /// OTLP destinations; each has its own queue and counters.
    pub otlp: Vec<Destination>,
}

impl Default for Export {
    fn default() -> Self {
        Self { signals: Signals { logs: true, traces: true, metrics: true }, console: Console::Auto, otlp: Vec::new() }
    }
}

/// A set of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// One log record per reset.
    pub logs: bool,
    /// One span event per reset.
    pub traces: bool,
    /// `tcp.resets` and the collector's own health.
    pub metrics: bool,
}

impl Signals {
    /// Whether a signal is in the set.
    pub const fn has(self, signal: Signal) -> bool {
        match signal {
            Signal::Logs => self.logs,
            Signal::Traces => self.traces,
            Signal::Metrics => self.metrics,
        }
    }
}

impl Export {
    /// The signals of a destination: its own, restricted to those that are exported at all.
    pub fn signals_of(&self, destination: &Destination) -> Signals {
        let (all, own) = (self.signals, destination.signals.unwrap_or(self.signals));
        Signals { logs: all.logs && own.logs, traces: all.traces && own.traces, metrics: all.metrics && own.metrics }
    }
}

/// Lines on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Pretty on a terminal, JSON lines elsewhere.
    Auto,
    /// A line for a person.
    Pretty,
    /// A JSON object a line.
    Json,
    /// None.
    Off,
}

/// One OTLP destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// Base endpoint: scheme, host, port, and for HTTP a path before `/v1/logs`.
    pub endpoint: String,
    /// Endpoints of single signals from the environment, used as they are.
    pub signal_endpoints: SignalEndpoints,
    /// gRPC or HTTP.
    pub protocol: Protocol,
    /// Headers on every request; values may be secrets.
    pub headers: Vec<(String, Secret)>,
    /// How requests are compressed.
    pub compression: Compression,
    /// Timeout of one request.
    pub timeout: Duration,
    /// TLS, used with `https://`.
    pub tls: Tls,
    /// How failed requests are retried.
    pub retry: Retry,
    /// The queue of resets to be sent.
    pub queue: Queue,
    /// The signals of this destination; `None` is those of [`Export::signals`].
    pub signals: Option<Signals>,
    /// How records are combined into requests.
    pub batch: Batch,
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            endpoint: "http://localhost:4317".into(),
            signal_endpoints: SignalEndpoints::default(),
            protocol: Protocol::Grpc,
            headers: Vec::new(),
            compression: Compression::Gzip,
            timeout: Duration::from_secs(10),
            tls: Tls::default(),
            retry: Retry::default(),
            queue: Queue::default(),
            signals: None,
            batch: Batch::default(),
        }
    }
}

/// Endpoints of single signals, used as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignalEndpoints {
    /// OTEL_EXPORTER_OTLP_LOGS_ENDPOINT
    pub logs: Option<String>,
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
    pub traces: Option<String>,
    /// OTEL_EXPORTER_OTLP_METRICS_ENDPOINT
    pub metrics: Option<String>,
}

/// The protocol of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC
    Grpc,
    /// OTLP/HTTP with protobuf bodies
    HttpProtobuf,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip
    Gzip,
    /// zstd
    Zstd,
    /// Not at all.
    None,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// TLS of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authorities, PEM; `None` is the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM).
    pub cert_file: Option<PathBuf>,
    /// Client key (PEM).
    pub key_file: Option<PathBuf>,
    /// The name to check the server's certificate against, where it is not the endpoint's.
    pub server_name_override: Option<String>,
    /// Accept any server certificate.
    pub insecure_skip_verify: bool,
    /// Interval at which the files are read again; `None` is never.
    pub reload_interval: Option<Duration>,
}

/// How failed requests are retried.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Whether at all.
    pub enabled: bool,
    /// Delay before the first retry.
    pub initial_interval: Duration,
    /// Maximum delay between retries.
    pub max_interval: Duration,
    /// Time after which a request is dropped; zero is never.
    pub max_elapsed_time: Duration,
    /// Multiplier between retry intervals.
    pub multiplier: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            enabled: true,
            initial_interval: Duration::from_secs(1),
            max_interval: Duration::from_secs(30),
            max_elapsed_time: Duration::from_secs(300),
            multiplier: 1.5,
        }
    }
}

/// The queue of resets to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Maximum number of queued resets.
    pub size: usize,
    /// Maximum concurrent requests.
    pub consumers: usize,
    /// Which batch is dropped when the queue is full.
    pub on_overflow: OnOverflow,
    /// The queue on disk; `None` keeps it in memory.
    pub storage: Option<Storage>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { size: 65_536, consumers: 4, on_overflow: OnOverflow::DropOldest, storage: None }
    }
}

/// A queue on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The directory, absolute.
    pub directory: PathBuf,
    /// Maximum size on disk.
    pub max_bytes: u64,
    /// When written data is synced to the disk.
    pub fsync: FsyncPolicy,
}

impl Default for Storage {
    fn default() -> Self {
        Self::in_directory(PathBuf::new())
    }
}

impl Storage {
    /// Storage in this directory, with the defaults.
    pub fn in_directory(directory: PathBuf) -> Self {
        Self { directory, max_bytes: 256 << 20, fsync: FsyncPolicy::Interval(Duration::from_secs(1)) }
    }
}

/// Which batch is dropped when a queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    /// The oldest batch in the queue.
    DropOldest,
    /// The batch that does not fit.
    DropNewest,
}

/// When written data is synced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// After each batch.
    Always,
    /// At this interval.
    Interval(Duration),
    /// Never: the kernel decides.
    Never,
}

/// How records are combined into requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Maximum number of resets in a request.
    pub max_resets: usize,
    /// Maximum size of a request, before compression.
    pub max_bytes: usize,
    /// How long the first reset of a batch waits for more.
    pub flush_timeout: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_resets: 8_192, max_bytes: 4 << 20, flush_timeout: Duration::from_millis(200) }
    }
}
