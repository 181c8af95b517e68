//! How many records a second go out, and what they cost: to a sink in a process of its own.
//!
//! `cargo test --release -p reset-collector --test delivery -- --ignored --nocapture throughput`

use std::{
    convert::Infallible,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{HeaderMap, Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;
use reset_collector::{
    account::Account,
    config::settings::{Compression, Destination, Protocol, Queue, Storage},
    export::Exporter,
    otlp::batch::Batch,
};
use tokio::runtime::Handle;

use crate::{
    client::{LOGS, to},
    comparison,
};

pub(crate) const RECORDS: u32 = 4096;
pub(crate) const BATCHES: u32 = 250;

/// Runs in a process of its own, as the measurement below starts it: takes every request and forgets it.
#[tokio::test]
async fn sink() {
    if std::env::var_os("RESET_COLLECTOR_TEST_SINK").is_none() {
        return;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    eprintln!("listens {}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
            let _ended = builder.serve_connection(TokioIo::new(stream), service_fn(swallow)).await;
        });
    }
}

async fn swallow(mut request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    while let Some(Ok(_)) = request.body_mut().frame().await {}
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    let body = if grpc { Bytes::from_static(&[0; 5]) } else { Bytes::new() };
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    let kind = if grpc { "application/grpc" } else { "application/x-protobuf" };
    Ok(Response::builder().header("content-type", kind).body(body.boxed()).unwrap())
}

pub(crate) fn attribute_name(at: u32) -> String {
    format!("tcp.connection.attribute_{at:02}")
}

pub(crate) fn attribute_value(number: u32, at: u32) -> String {
    format!("{}", number.wrapping_mul(2_654_435_761) >> at)
}

/// A request of records with twenty attributes each, as resets have.
fn request() -> Bytes {
    let attribute = |number: u32, at: u32| KeyValue {
        key: attribute_name(at),
        value: Some(AnyValue { value: Some(Value::StringValue(attribute_value(number, at))) }),
        ..KeyValue::default()
    };
    let record = |number: u32| LogRecord {
        time_unix_nano: 1_700_000_000_000_000_000 + u64::from(number) * 1_234_567,
        event_name: "tcp.reset".into(),
        attributes: (0..20).map(|at| attribute(number, at)).collect(),
        ..LogRecord::default()
    };
    let scope_logs = vec![ScopeLogs { log_records: (0..RECORDS).map(record).collect(), ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec().into()
}

/// Processor time of a process, `self` or its number.
pub(crate) fn cpu_seconds(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn start_sink() -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["throughput::sink", "--exact", "--nocapture"])
        .env("RESET_COLLECTOR_TEST_SINK", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("listens ").map(str::to_owned)).unwrap();
    (child, format!("http://{address}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: takes a while and wants a release build"]
async fn throughput() {
    let (mut sink, endpoint) = start_sink();
    let message = request();
    eprintln!("{RECORDS} records of {} bytes a request, {BATCHES} requests", message.len() / RECORDS as usize);
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for on_disk in [false, true] {
                let directory = tempfile::tempdir().unwrap();
                let storage = on_disk.then(|| Storage::in_directory(directory.path().to_owned()));
                let queue = Queue { size: 10 * RECORDS as usize, storage, ..Queue::default() };
                let destination = Destination { compression, queue, ..to(&endpoint, protocol) };
                let cost = measure(&destination, &message).await;
                if on_disk {
                    continue;
                }
                let (from, to) = (&message, endpoint.as_str());
                if let Some(cost) = comparison::collector(from, to, protocol, compression).await {
                    say(&format!("OpenTelemetry Collector, receives and exports, {protocol:?} {compression:?}"), cost);
                }
                if protocol == Protocol::Grpc && compression != Compression::Zstd {
                    say(&format!("opentelemetry_sdk, makes records and exports, {protocol:?} {compression:?}"), {
                        comparison::sdk(to, compression == Compression::Gzip).await
                    });
                }
                assert!(cost.records_per_second > 0.0);
            }
        }
    }
    if let Some(cost) = comparison::collector_that_only_receives(&message).await {
        say("OpenTelemetry Collector, receives only, Grpc None", cost);
    }
    sink.kill().unwrap();
    sink.wait().unwrap();
}

/// What a way out does and takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) records_per_second: f64,
    pub(crate) cpu_seconds_per_million: f64,
}

impl Cost {
    pub(crate) fn of(wall: f64, cpu: f64) -> Self {
        let records = f64::from(RECORDS * BATCHES);
        Self { records_per_second: records / wall, cpu_seconds_per_million: cpu / records * 1e6 }
    }
}

fn say(what: &str, cost: Cost) {
    eprintln!(
        "{what}: {:.0} records/s, {:.2} CPU s per million, {:.0} records/s/core",
        cost.records_per_second,
        cost.cpu_seconds_per_million,
        1e6 / cost.cpu_seconds_per_million
    );
}

async fn measure(destination: &Destination, message: &Bytes) -> Cost {
    let (started, cpu) = (Instant::now(), cpu_seconds("self"));
    send(destination, message).await;
    let cost = Cost::of(started.elapsed().as_secs_f64(), cpu_seconds("self") - cpu);
    let place = if destination.queue.storage.is_some() { "on disk" } else { "in memory" };
    say(&format!("{:?} {:?} {place}", destination.protocol, destination.compression), cost);
    cost
}

/// Sends all requests and waits until they were accepted.
pub(crate) async fn send(destination: &Destination, message: &Bytes) {
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for _ in 0..BATCHES {
        while account.snapshot().queues[0].queued > 8 * u64::from(RECORDS) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        account.ledger.add_captured(u64::from(RECORDS));
        exporter.push(&Batch { resets: RECORDS, logs: Some(message.clone()), traces: None });
    }
    exporter.shutdown(Instant::now() + Duration::from_secs(60)).await;
    assert_eq!(account.snapshot().queues[0].exported, u64::from(RECORDS * BATCHES));
}
