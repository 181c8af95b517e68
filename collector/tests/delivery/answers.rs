//! What becomes of a batch, for every gRPC code and HTTP status.

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use prost::Message;
use reset_collector::{
    account::DropReason,
    config::settings::{Compression, Destination, Protocol, Secret, SignalEndpoints},
    model::signal::Signal,
    otlp::client::Client,
};

use crate::{
    backend::{Backend, Reply, logs, numbers},
    client::{destination, dropped, outcome_of_one, to},
};

#[tokio::test]
async fn every_grpc_code_has_its_fate() {
    for code in 0..=17 {
        let backend = Backend::answering(vec![Reply::grpc(code)]).await;
        let queue = outcome_of_one(&destination(&backend, Protocol::Grpc)).await;
        let tries = backend.requests().len();
        match code {
            0 => assert_eq!((queue.exported, dropped(&queue), tries), (10, None, 1)),
            1 | 4 | 10 | 11 | 14 | 15 => {
                assert_eq!(dropped(&queue), Some(DropReason::RetriesExhausted), "code {code}");
                assert!(tries > 1, "code {code} was tried {tries} times");
            }
            8 => assert_eq!((dropped(&queue), tries), (Some(DropReason::TooLarge), 1)),
            // Kept for another attempt, until the end.
            12 => assert_eq!(dropped(&queue), Some(DropReason::Shutdown)),
            _ => assert_eq!((dropped(&queue), tries), (Some(DropReason::NonRetryableError), 1), "code {code}"),
        }
    }
}

#[tokio::test]
async fn every_http_status_has_its_fate() {
    for status in 200..=599 {
        let backend = Backend::answering(vec![Reply::http(status)]).await;
        let queue = outcome_of_one(&destination(&backend, Protocol::HttpProtobuf)).await;
        let tries = backend.requests().len();
        match status {
            200..300 => assert_eq!((queue.exported, dropped(&queue), tries), (10, None, 1), "status {status}"),
            429 | 502 | 503 | 504 => {
                assert_eq!(dropped(&queue), Some(DropReason::RetriesExhausted), "status {status}");
                assert!(tries > 1, "status {status} was tried {tries} times");
            }
            404 | 405 | 501 => assert_eq!(dropped(&queue), Some(DropReason::Shutdown), "status {status}"),
            413 => assert_eq!((dropped(&queue), tries), (Some(DropReason::TooLarge), 1)),
            _ => assert_eq!((dropped(&queue), tries), (Some(DropReason::NonRetryableError), 1), "status {status}"),
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
            let queue = outcome_of_one(&Destination { compression, ..destination(&backend, protocol) }).await;
            assert_eq!(queue.exported, 10);
            let request = &backend.requests()[0];
            assert_eq!(request.path, path);
            assert_eq!(numbers(&request.message), Vec::from_iter(0..10));
            let agent = request.headers["user-agent"].to_str().unwrap();
            assert!(agent.starts_with("reset-collector/"), "{agent}");
        }
    }
}

#[tokio::test]
async fn what_the_backend_rejects_is_counted_and_not_sent_again() {
    let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: "no room".into() };
    let body: Bytes = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec().into();
    let replies = [
        (Protocol::Grpc, Reply::Grpc { code: 0, headers: Vec::new(), body: body.clone() }),
        (Protocol::HttpProtobuf, Reply::Http { status: 200, headers: Vec::new(), body }),
    ];
    for (protocol, reply) in replies {
        let backend = Backend::answering(vec![reply]).await;
        let queue = outcome_of_one(&destination(&backend, protocol)).await;
        assert_eq!((queue.exported, queue.dropped[DropReason::PartialSuccessRejected as usize]), (7, 3));
        assert_eq!(backend.requests().len(), 1);
    }
}

#[tokio::test]
async fn retries_go_through_and_wait_as_long_as_the_server_asks() {
    let busy = Reply::Http { status: 429, headers: vec![("retry-after", "1".into())], body: Bytes::new() };
    let backend = Backend::answering(vec![Reply::http(503), busy, Reply::http(200)]).await;
    let mut destination = destination(&backend, Protocol::HttpProtobuf);
    destination.retry.max_elapsed_time = Duration::from_secs(30);
    destination.retry.max_interval = Duration::from_secs(30);
    let started = Instant::now();
    // The end of the program cuts one wait short: the one before the second try.
    let queue = outcome_of_one(&destination).await;
    assert_eq!((queue.exported, queue.health.retries, backend.requests().len()), (10, 2, 3));
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    assert_eq!(queue.health.resent, 0, "each outcome was known");
}

#[tokio::test]
async fn an_answer_that_was_lost_counts_as_a_possible_duplicate() {
    for (protocol, taken) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let backend = Backend::answering(vec![Reply::Hang, taken]).await;
        let mut destination = Destination { timeout: Duration::from_millis(150), ..destination(&backend, protocol) };
        destination.retry.max_elapsed_time = Duration::from_secs(30);
        let queue = outcome_of_one(&destination).await;
        assert_eq!((queue.exported, queue.health.resent), (10, 10));
        assert_eq!(backend.requests().len(), 2);
    }
}

#[tokio::test]
async fn headers_and_single_endpoints_are_as_configured() {
    let backend = Backend::answering(vec![Reply::http(200)]).await;
    let own = SignalEndpoints { logs: Some(format!("{}/my/logs", backend.endpoint())), ..SignalEndpoints::default() };
    let destination = Destination {
        endpoint: format!("{}/base/", backend.endpoint()),
        signal_endpoints: own,
        headers: vec![("Authorization".into(), Secret("Bearer x".into()))],
        ..destination(&backend, Protocol::HttpProtobuf)
    };
    let client = Client::new(&destination).unwrap();
    for signal in Signal::ALL {
        assert!(client.send(*signal, logs(0, 1)).await.unwrap().is_acceptance());
    }
    let requests = backend.requests();
    let paths: Vec<_> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/my/logs", "/base/v1/traces", "/base/v1/metrics"]);
    assert!(requests.iter().all(|request| request.headers["authorization"] == "Bearer x"));
}

#[tokio::test]
async fn the_raw_answer_is_the_backends_own() {
    let details = "CAgSBXF1b3Rh";
    let headers = vec![("grpc-message", "quota%20gone".to_owned()), ("grpc-status-details-bin", details.to_owned())];
    let backend = Backend::answering(vec![Reply::Grpc { code: 8, headers, body: Bytes::new() }]).await;
    let client = Client::new(&destination(&backend, Protocol::Grpc)).unwrap();
    let status = client.send(Signal::Traces, logs(0, 1)).await.unwrap().grpc.unwrap();
    assert_eq!((status.code, status.message.as_str()), (8, "quota gone"));
    assert_eq!(status.details, b"\x08\x08\x12\x05quota"[..]);

    let headers = vec![("retry-after", "30".to_owned()), ("content-type", "text/plain".to_owned())];
    let reply = Reply::Http { status: 503, headers, body: Bytes::from_static(b"come back later") };
    let backend = Backend::answering(vec![reply]).await;
    let client = Client::new(&destination(&backend, Protocol::HttpProtobuf)).unwrap();
    let answer = client.send(Signal::Traces, logs(0, 1)).await.unwrap();
    assert_eq!((answer.http_status, answer.retry_after.as_deref()), (503, Some("30")));
    assert_eq!((answer.body, answer.truncated), (Bytes::from_static(b"come back later"), false));
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("otlp.sock");
    for (protocol, reply) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let backend = Backend::answering(vec![reply]).await;
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address = backend.address;
        let relay = tokio::spawn(async move {
            let (mut inner, _) = listener.accept().await.unwrap();
            let mut outer = tokio::net::TcpStream::connect(address).await.unwrap();
            // The relay ends with whichever side goes first.
            let _ended = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
        });
        let queue = outcome_of_one(&to(&format!("unix://{}", path.display()), protocol)).await;
        assert_eq!((queue.exported, backend.requests().len()), (10, 1));
        relay.abort();
        std::fs::remove_file(&path).unwrap();
    }
}
