//! What others take for the same: the OpenTelemetry Collector, and opentelemetry_sdk's batch processor.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use opentelemetry::logs::{LogRecord, Logger, LoggerProvider};
use opentelemetry_otlp::{Compression as SdkCompression, LogExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::logs::{BatchConfigBuilder, BatchLogProcessor, SdkLoggerProvider};
use reset_collector::config::settings::{Compression, Destination, Protocol, Queue};

use crate::{
    client::to,
    throughput::{BATCHES, Cost, RECORDS, attribute_name, attribute_value, cpu_seconds, send},
};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A Collector that runs until it goes out of scope.
struct Collector {
    child: Child,
    grpc: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The Collector's program, where `tests/setup` has built it.
fn program() -> Option<PathBuf> {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/setup");
    let said = Command::new(setup).arg("--path").output().ok()?;
    let program = Path::new(String::from_utf8(said.stdout).ok()?.trim()).join("otelcol");
    program.exists().then_some(program)
}

impl Collector {
    /// Takes OTLP by gRPC and exports by this exporter, by its name and settings; without a queue, so that its answer is
    /// the sink's.
    fn start(exporter: &str, settings: &str) -> Option<Self> {
        let program = program().or_else(|| {
            eprintln!("the OpenTelemetry Collector is not measured: run tests/setup");
            None
        })?;
        let grpc = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("otelcol.yaml");
        let text = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{grpc}\", max_recv_msg_size_mib: 64 }} }} }} }}\n\
             exporters: {{ {exporter}: {settings} }}\n\
             service:\n  telemetry: {{ metrics: {{ level: none }} }}\n\
             \x20 pipelines: {{ logs: {{ receivers: [otlp], exporters: [{exporter}] }} }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let collector = Self { child: command.spawn().unwrap(), grpc, _directory: directory };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(grpc).is_err() {
            assert!(Instant::now() < deadline, "the Collector does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(collector)
    }

    /// Sends it everything, and counts its own processor time alone.
    async fn measure(&self, message: &Bytes) -> Cost {
        let queue = Queue { size: 10 * RECORDS as usize, ..Queue::default() };
        let endpoint = format!("http://{}", self.grpc);
        let destination = Destination { compression: Compression::None, queue, ..to(&endpoint, Protocol::Grpc) };
        let process = self.child.id().to_string();
        let (started, cpu) = (Instant::now(), cpu_seconds(&process));
        send(&destination, message).await;
        Cost::of(started.elapsed().as_secs_f64(), cpu_seconds(&process) - cpu)
    }
}

/// The Collector between us and the sink.
pub(crate) async fn collector(
    message: &Bytes,
    sink: &str,
    protocol: Protocol,
    compression: Compression,
) -> Option<Cost> {
    let compression = match compression {
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
        Compression::None => "none",
    };
    let (exporter, tls) = match protocol {
        Protocol::Grpc => ("otlp", ", tls: { insecure: true }"),
        Protocol::HttpProtobuf => ("otlphttp", ""),
    };
    let settings = format!(
        "{{ endpoint: \"{sink}\", compression: {compression}{tls}, sending_queue: {{ enabled: false }}, \
         retry_on_failure: {{ enabled: false }} }}"
    );
    Some(Collector::start(exporter, &settings)?.measure(message).await)
}

/// The same without a way out: what receiving takes.
pub(crate) async fn collector_that_only_receives(message: &Bytes) -> Option<Cost> {
    let settings = "{ verbosity: basic, sampling_initial: 1, sampling_thereafter: 1000000 }";
    Some(Collector::start("debug", settings)?.measure(message).await)
}

/// The SDK's batch processor and exporter by gRPC: records of the same attributes, made and sent.
pub(crate) async fn sdk(sink: &str, gzip: bool) -> Cost {
    let mut exporter = LogExporter::builder().with_tonic().with_endpoint(sink);
    if gzip {
        exporter = exporter.with_compression(SdkCompression::Gzip);
    }
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(8 * RECORDS as usize)
        .with_max_export_batch_size(RECORDS as usize)
        .build();
    let processor = BatchLogProcessor::builder(exporter.build().unwrap()).with_batch_config(config).build();
    let provider = SdkLoggerProvider::builder().with_log_processor(processor).build();
    let logger = provider.logger("throughput");
    let names: Vec<String> = (0..20).map(attribute_name).collect();
    let (started, cpu) = (Instant::now(), cpu_seconds("self"));
    let (provider, names) = (provider, names);
    tokio::task::spawn_blocking(move || {
        for batch in 0..BATCHES {
            for number in 0..RECORDS {
                let mut record = logger.create_log_record();
                record.set_event_name("tcp.reset");
                record.set_timestamp(std::time::UNIX_EPOCH + Duration::from_nanos(u64::from(number) * 1_234_567));
                let attributes = names.iter().zip(0..);
                record.add_attributes(attributes.map(|(name, at)| (name.clone(), attribute_value(number, at))));
                logger.emit(record);
            }
            // The processor drops what its queue cannot take: it is emptied before it is full.
            if batch % 4 == 3 {
                provider.force_flush().unwrap();
            }
        }
        provider.shutdown().unwrap();
    })
    .await
    .unwrap();
    Cost::of(started.elapsed().as_secs_f64(), cpu_seconds("self") - cpu)
}
