//! What becomes of a batch, for every gRPC code and HTTP status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reset_collector::{
    account::{Account, DropReason, LaneSnapshot},
    batch::Batch,
    export::Exporter,
    settings::{Compression, Destination, Protocol, Retry, Signals},
};
use tokio::runtime::Handle;

use crate::backend::{Backend, Reply, logs, numbers};

const LOGS: Signals = Signals { logs: true, traces: false, metrics: false };

fn destination(backend: &Backend, protocol: Protocol) -> Destination {
    let retry = Retry {
        initial_interval: Duration::from_millis(10),
        max_interval: Duration::from_millis(20),
        max_elapsed_time: Duration::from_millis(60),
        ..Retry::default()
    };
    let timeout = Duration::from_secs(2);
    Destination { endpoint: backend.endpoint(), protocol, retry, timeout, ..Destination::default() }
}

/// Sends one batch of ten records and waits for its fate.
async fn fate_of_one(destination: &Destination) -> LaneSnapshot {
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(destination, LOGS, account.clone(), &Handle::current()).unwrap();
    account.read(10);
    exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: None });
    exporter.shutdown(Instant::now() + Duration::from_secs(10)).await;
    let snapshot = account.snapshot();
    let lane = snapshot.lanes[0].clone();
    assert_eq!(snapshot.imbalance(&lane), 0);
    assert_eq!(lane.queued, 0);
    lane
}

fn dropped(lane: &LaneSnapshot) -> Option<DropReason> {
    DropReason::ALL.iter().copied().find(|reason| lane.dropped[*reason as usize] > 0)
}

#[tokio::test]
async fn every_grpc_code_has_its_fate() {
    for code in 0..=17 {
        let backend = Backend::answering(vec![Reply::grpc(code)]).await;
        let lane = fate_of_one(&destination(&backend, Protocol::Grpc)).await;
        let tries = backend.requests().len();
        match code {
            0 => assert_eq!((lane.exported, dropped(&lane), tries), (10, None, 1)),
            1 | 4 | 10 | 11 | 14 | 15 => {
                assert_eq!(dropped(&lane), Some(DropReason::RetriesExhausted), "code {code}");
                assert!(tries > 1, "code {code} was tried {tries} times");
            }
            8 => assert_eq!((dropped(&lane), tries), (Some(DropReason::TooLarge), 1)),
            12 => assert_eq!((dropped(&lane), tries), (Some(DropReason::UnsupportedSignal), 1)),
            _ => assert_eq!((dropped(&lane), tries), (Some(DropReason::PermanentError), 1), "code {code}"),
        }
    }
}

#[tokio::test]
async fn every_http_status_has_its_fate() {
    for status in 200..=599 {
        let backend = Backend::answering(vec![Reply::http(status)]).await;
        let lane = fate_of_one(&destination(&backend, Protocol::HttpProtobuf)).await;
        let tries = backend.requests().len();
        match status {
            200..300 => assert_eq!((lane.exported, dropped(&lane), tries), (10, None, 1), "status {status}"),
            429 | 502 | 503 | 504 => {
                assert_eq!(dropped(&lane), Some(DropReason::RetriesExhausted), "status {status}");
                assert!(tries > 1, "status {status} was tried {tries} times");
            }
            404 | 405 | 501 => assert_eq!((dropped(&lane), tries), (Some(DropReason::UnsupportedSignal), 1)),
            413 => assert_eq!((dropped(&lane), tries), (Some(DropReason::TooLarge), 1)),
            _ => assert_eq!((dropped(&lane), tries), (Some(DropReason::PermanentError), 1), "status {status}"),
        }
    }
}

#[tokio::test]
async fn requests_arrive_whole_in_every_shape() {
    let protocols = [
        (Protocol::Grpc, Reply::grpc(0), "/opentelemetry.proto.collector.logs.v1.LogsService/Export"),
        (Protocol::HttpProtobuf, Reply::http(200), "/v1/logs"),
    ];
    for (protocol, reply, path) in protocols {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let backend = Backend::answering(vec![reply.clone()]).await;
            let lane = fate_of_one(&Destination { compression, ..destination(&backend, protocol) }).await;
            assert_eq!(lane.exported, 10);
            let request = &backend.requests()[0];
            assert_eq!(request.path, path);
            assert_eq!(numbers(&request.message), Vec::from_iter(0..10));
            let agent = request.headers["user-agent"].to_str().unwrap();
            assert!(agent.starts_with("reset-collector/"), "{agent}");
        }
    }
}
