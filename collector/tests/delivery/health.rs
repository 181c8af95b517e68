//! The admin endpoint and the collector's own metrics, with clients and backends that mean no good.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point::Value};
use probes::{COUNTERS, Cause, Direction, Origin, counter_index};
use prost::Message;
use reset_collector::{
    account::{Account, HookCoverage},
    config::settings::{Destination, Protocol},
    export::{Exporter, line_writer::LineWriter},
    model::resource::ResourceValue,
    otlp::batch::Batch,
    telemetry::{
        Telemetry,
        admin::Admin,
        metrics::{METRICS, Sources},
        own_resource,
        prometheus::{self, Format},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
};

use crate::{
    backend::{Backend, Reply, logs},
    client::{LOGS, destination},
};

async fn admin(account: &Arc<Account>) -> std::net::SocketAddr {
    let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), Arc::new(Sources::new(account.clone()))).await.unwrap();
    let address = admin.address().unwrap();
    tokio::spawn(admin.run(std::future::pending()));
    address
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn a_quiet_host_and_a_broken_collector_are_told_apart() {
    let account = Arc::new(Account::new());
    let address = admin(&account).await;
    assert_eq!(get(address, "/readyz").await.0, 503, "not attached yet");
    account.heartbeat.beat();
    let hook = |active| HookCoverage {
        hook: "tcp_send_reset",
        active,
        essential: true,
        why: if active { String::new() } else { "no BTF: install the kernel's BTF".into() },
        missed_runs: 0,
    };
    account.health.set_hooks(vec![hook(true)]);
    assert_eq!(get(address, "/readyz").await.0, 200, "quiet is well");
    account.health.set_hooks(vec![hook(false)]);
    let (status, body) = get(address, "/readyz").await;
    assert!(status == 503 && body.contains("no BTF: install the kernel's BTF"), "{status} {body}");
    assert_eq!(get(address, "/healthz").await.0, 200, "alive all the same");
    let (status, body) = get(address, "/metrics").await;
    assert!(status == 200 && body.contains("reset_collector_probe_attached{probe=\"tcp_send_reset\"} 0\n"), "{body}");
    account.health.set_missed_runs(&[("tcp_send_reset", 2), ("tcp_send_reset", 1), ("kfree_skb", 9)]);
    let (_, body) = get(address, "/metrics").await;
    assert!(body.contains("reset_collector_probe_missed_runs_total{probe=\"tcp_send_reset\"} 3\n"), "{body}");
    assert!(body.contains("process_memory_usage_bytes "));
    assert_eq!(get(address, "/nothing").await.0, 404);
}

#[tokio::test]
async fn hostile_clients_do_not_keep_others_out() {
    let account = Arc::new(Account::new());
    let address = admin(&account).await;
    let mut huge = TcpStream::connect(address).await.unwrap();
    let header = format!("GET / HTTP/1.1\r\nx: {}\r\n", "y".repeat(1 << 20));
    // The server may close while we still write.
    let written = huge.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), huge.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && (written.is_err() || !answer.starts_with(b"HTTP/1.1 200")), "{answer:?}");

    // Many more clients than there are places, all in the middle of their headers: an honest one gets in at once. Those who
    // have sent a request and keep the connection are displaced as well.
    for request in ["GET /metrics HTTP/1.1\r\nx", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            slow.push(stream);
            if slow.len() % 20 == 0 {
                let answer = tokio::time::timeout(Duration::from_millis(900), get(address, "/healthz")).await;
                assert_eq!(answer.unwrap().0, 200, "less than the header timeout, which would free the places");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_arrive_exact_over_both_protocols() {
    for (protocol, reply) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let backend = Backend::answering(vec![reply]).await;
        let account = Arc::new(Account::new());
        let mut resets = [0; COUNTERS as usize];
        resets[counter_index(Cause::PortClosed, Origin::Passive, Direction::Transmit) as usize] = 41;
        account.ledger.set_kernel_counts(&resets, 0, &[]);
        let destination = destination(&backend, protocol);
        let sources = Arc::new(Sources::new(account.clone()));
        let telemetry = start(&destination, &sources, Duration::from_secs(3600));
        let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
        account.ledger.add_captured(10);
        exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: None });
        exporter.shutdown(Instant::now() + Duration::from_secs(10)).await;
        telemetry.shutdown(Instant::now() + Duration::from_secs(5)).await;
        let requests = backend.requests();
        let [_, request] = requests.as_slice() else { panic!("{} requests", requests.len()) };
        let request = ExportMetricsServiceRequest::decode(request.message.clone()).unwrap();
        let [resource] = &request.resource_metrics[..] else { panic!("{request:?}") };
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        for name in ["service.name", "service.instance.id", "service.version", "host.name", "telemetry.sdk.name"] {
            assert_eq!(
                attributes.iter().filter(|attribute| attribute.key == name).count(),
                1,
                "{name}: {attributes:?}"
            );
        }
        let [scope] = &resource.scope_metrics[..] else { panic!("{resource:?}") };
        assert_eq!(scope.scope.as_ref().unwrap().version, env!("CARGO_PKG_VERSION"));
        let resets = scope.metrics.iter().find(|metric| metric.name == "tcp.resets").unwrap();
        let Some(Data::Sum(sum)) = &resets.data else { panic!("{resets:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(41)));
        assert_eq!(names(&otlp_series(&scope.metrics)), names(&prometheus_series(&sources)));
        let of = |name: &str| scope.metrics.iter().find(|metric| metric.name == name).unwrap().data.clone();
        let Some(Data::Sum(waiting)) = of("reset_collector.queue_size") else { panic!("no sum") };
        assert!(!waiting.is_monotonic && waiting.data_points[0].value == Some(Value::AsInt(0)), "{waiting:?}");
        let Some(Data::Histogram(durations)) = of("reset_collector.export_duration") else { panic!("no histogram") };
        assert_eq!(durations.data_points[0].count, 1);
    }
}

fn start(destination: &Destination, sources: &Arc<Sources>, interval: Duration) -> Telemetry {
    let resource = own_resource([("host.name", ResourceValue::Text("node-1".into()))]);
    Telemetry::start(destination, sources, resource, Some(interval), &Handle::current()).unwrap()
}

/// A series' metric, its kind, and its labels: both as Prometheus has them.
type Series = (String, Vec<(String, String)>);

fn names(series: &[Series]) -> Vec<String> {
    let mut names: Vec<_> = series.iter().map(|(name, labels)| format!("{name} {labels:?}")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn otlp_series(metrics: &[Metric]) -> Vec<Series> {
    let mut series = Vec::new();
    for metric in metrics {
        let attributes: Vec<&[KeyValue]> = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => sum.data_points.iter().map(|point| &point.attributes[..]).collect(),
            Data::Gauge(gauge) => gauge.data_points.iter().map(|point| &point.attributes[..]).collect(),
            Data::Histogram(histogram) => histogram.data_points.iter().map(|point| &point.attributes[..]).collect(),
            other => panic!("{other:?}"),
        };
        for attributes in attributes {
            let label = |attribute: &KeyValue| {
                let Some(any_value::Value::StringValue(value)) = attribute.value.clone()?.value else { return None };
                Some((attribute.key.replace('.', "_"), value))
            };
            let mut labels: Vec<_> = attributes.iter().filter_map(label).collect();
            labels.sort_unstable();
            series.push((metric.name.replace('.', "_"), labels));
        }
    }
    series
}

fn prometheus_series(sources: &Sources) -> Vec<Series> {
    let mut series = Vec::new();
    for (metric, points) in METRICS.iter().zip(sources.collect()) {
        let name = metric.name.replace('.', "_");
        let page = prometheus::render(sources, Format::Text);
        assert_eq!(page.contains(&format!("# TYPE {} ", prometheus::name(metric))), !points.is_empty(), "{name}");
        for point in points {
            let mut labels: Vec<_> =
                point.labels.iter().map(|(name, value)| (name.replace('.', "_"), value.to_string())).collect();
            labels.sort_unstable();
            series.push((name.clone(), labels));
        }
    }
    series
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_takes_no_metrics_is_asked_again() {
    let backend = Backend::with(|number, _| Reply::grpc(if number < 3 { 12 } else { 0 })).await;
    let sources = Arc::new(Sources::new(Arc::new(Account::new())));
    let destination = destination(&backend, Protocol::Grpc);
    let telemetry = start(&destination, &sources, Duration::from_millis(20));
    let is_failing = |sources: &Sources| !sources.failing_exports.lock().unwrap().is_empty();
    while !is_failing(&sources) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while backend.requests().len() < 5 || is_failing(&sources) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    telemetry.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_degraded_is_said_and_counted() {
    let account = Arc::new(Account::new());
    // Nobody reads this pipe.
    let (_reader, stdout) = std::io::pipe().unwrap();
    let console = LineWriter::new(stdout, 1 << 20, |_| String::new()).unwrap();
    console.spawn("test").unwrap();
    let sources = Arc::new(Sources { console: Some(console.clone()), ..Sources::new(account.clone()) });
    let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), sources).await.unwrap();
    let address = admin.address().unwrap();
    tokio::spawn(admin.run(std::future::pending()));
    account.heartbeat.beat();
    account.health.set_hooks(vec![HookCoverage {
        hook: "kfree_skb",
        active: false,
        essential: false,
        why: "CAP_NET_ADMIN".into(),
        missed_runs: 0,
    }]);
    let page = get(address, "/readyz").await;
    assert!(page.0 == 200 && page.1.starts_with("degraded\n") && page.1.contains("kfree_skb"), "{page:?}");
    console.push(&vec![b'\n'; 1 << 20]);
    while console.stalled_for().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let page = get(address, "/readyz").await;
    assert!(page.0 == 200 && page.1.contains("degraded: standard output has not been read"), "{page:?}");
    let (_, page) = get(address, "/metrics").await;
    for series in ["{reason=\"probe_not_attached\",probe=\"kfree_skb\"} 1\n", "{reason=\"console_stalled\"} 1\n"] {
        assert!(page.contains(&format!("reset_collector_degraded{series}")), "{page}");
    }
    assert_eq!(get(address, "/healthz").await.0, 200, "a restart would not help");
}
