//! The admin endpoint and the collector's own metrics, with clients and backends that mean no good.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};
use probes::{COUNTERS, Cause, Direction, Origin, counter_index};
use prost::Message;
use reset_collector::{
    account::{Account, HookCoverage},
    config::settings::Protocol,
    export::Exporter,
    otlp::batch::Batch,
    telemetry::{Telemetry, admin::Admin},
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
    let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), account.clone()).await.unwrap();
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
    account.beat();
    let hook = |active| HookCoverage {
        hook: "tcp_send_reset",
        active,
        essential: true,
        why: if active { String::new() } else { "no BTF: install the kernel's BTF".into() },
        passed_over: 0,
    };
    account.set_hooks(vec![hook(true)]);
    assert_eq!(get(address, "/readyz").await.0, 200, "quiet is well");
    account.set_hooks(vec![hook(false)]);
    let (status, body) = get(address, "/readyz").await;
    assert!(status == 503 && body.contains("no BTF: install the kernel's BTF"), "{status} {body}");
    assert_eq!(get(address, "/healthz").await.0, 200, "alive all the same");
    let (status, body) = get(address, "/metrics").await;
    assert!(status == 200 && body.contains("reset_collector_hook_active{hook=\"tcp_send_reset\"} 0\n"), "{body}");
    account.kernel_passed_over(&[("tcp_send_reset", 2), ("tcp_send_reset", 1), ("kfree_skb", 9)]);
    let (_, body) = get(address, "/metrics").await;
    assert!(body.contains("reset_collector_hook_passed_over_runs_total{hook=\"tcp_send_reset\"} 3\n"), "{body}");
    assert!(body.contains("process_resident_memory_bytes "));
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

    // More clients than there are places, each slow: they are cut off and an honest one gets through.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nx").await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(20), get(address, "/healthz")).await;
    assert_eq!(answer.unwrap().0, 200);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_arrive_exact_over_both_protocols() {
    for (protocol, reply) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let backend = Backend::answering(vec![reply]).await;
        let account = Arc::new(Account::new());
        let mut resets = [0; COUNTERS as usize];
        resets[counter_index(Cause::PortClosed, Origin::Passive, Direction::Transmit) as usize] = 41;
        account.kernel_counted(&resets, 0, &[]);
        let destination = destination(&backend, protocol);
        let interval = Duration::from_secs(3600);
        let telemetry = Telemetry::start(&destination, account.clone(), interval, &Handle::current()).unwrap();
        let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
        account.read(10);
        exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: None });
        exporter.shutdown(Instant::now() + Duration::from_secs(10)).await;
        telemetry.shutdown(Instant::now() + Duration::from_secs(5)).await;
        let requests = backend.requests();
        let [_, request] = requests.as_slice() else { panic!("{} requests", requests.len()) };
        let metrics = ExportMetricsServiceRequest::decode(request.message.clone()).unwrap();
        let metrics: Vec<_> =
            metrics.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics).collect();
        let resets = metrics.iter().find(|metric| metric.name == "tcp.resets").unwrap();
        let Some(Data::Sum(sum)) = &resets.data else { panic!("{resets:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(41)));
        let mut names: Vec<_> = sum.data_points[0].attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["network.io.direction", "tcp.reset.cause", "tcp.reset.origin"]);
        let of = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().data.clone();
        let Some(Data::Gauge(waiting)) = of("reset_collector.queue_size") else { panic!("no gauge") };
        assert_eq!(waiting.data_points[0].value, Some(Value::AsInt(0)));
        let Some(Data::Gauge(capacity)) = of("reset_collector.queue_capacity") else { panic!("no gauge") };
        assert_eq!(capacity.data_points[0].value, Some(Value::AsInt(65_536)));
        let Some(Data::Histogram(durations)) = of("reset_collector.export_duration") else { panic!("no histogram") };
        assert_eq!(durations.data_points[0].count, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_without_metrics_is_asked_once() {
    let backend = Backend::answering(vec![Reply::grpc(12)]).await;
    let account = Arc::new(Account::new());
    let destination = destination(&backend, Protocol::Grpc);
    let telemetry = Telemetry::start(&destination, account, Duration::from_millis(50), &Handle::current()).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    telemetry.shutdown(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(backend.requests().len(), 1);
}
