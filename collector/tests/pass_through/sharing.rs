//! What one client may hold is shared with the others: connections, budget, places at the backend, control frames.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body, Frame},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream as AsyncStream,
};

use super::*;

/// Far longer than an answer takes, far shorter than what a client could keep others waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A body that never ends.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.take().map_or(Poll::Pending, |chunk| Poll::Ready(Some(Ok(Frame::data(chunk)))))
    }
}

async fn one_more(setup: &Setup) -> u16 {
    let answer = http(setup, "/v1/traces", PROTOBUF, "");
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.expect("an answer in time").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_give_way_to_new_ones() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    let mut held = Vec::new();
    for _ in 0..600 {
        let mut stream = AsyncStream::connect(setup.http).await.expect("a connection");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 404");
        held.push(stream);
    }
    assert_eq!(one_more(&setup).await, 200);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(ANSWER_TIMEOUT, held[0].read_to_end(&mut rest)).await;
    closed.expect("closed in time").expect("the end of the connection");
    // The latest of them is still served.
    let last = held.last_mut().expect("a connection");
    last.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    last.read_u8().await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_bytes_are_not_reserved() {
    let backend = FakeBackend::start(ok_http).await;
    let options = Options { protocol: Protocol::HttpProtobuf, limit: Some(64 << 20), ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    let mut announced = Vec::new();
    for _ in 0..4 {
        let mut stream = AsyncStream::connect(setup.http).await.expect("a connection");
        let head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 67108864\r\n\r\nxxxx";
        stream.write_all(head.as_bytes()).await.expect("sent");
        announced.push(stream);
    }
    assert_eq!(one_more(&setup).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_bodies_give_way_when_the_budget_is_used_up() {
    let backend = FakeBackend::start(ok_http).await;
    let options = Options { protocol: Protocol::HttpProtobuf, ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    let chunk = Bytes::from(vec![0; 15 << 20]);
    let unfinished: Vec<_> = (0..6)
        .map(|_| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
            let request = Request::post(format!("http://{}/v1/logs", setup.http)).header("content-type", PROTOBUF);
            let request = request.body(Endless(Some(chunk.clone()))).expect("a request");
            tokio::spawn(async move { client.request(request).await.map(|response| response.status()) })
        })
        .collect();
    // One of them is refused for another one's sake, and told when to come back.
    let mut refused = Vec::new();
    for request in unfinished {
        let answer = tokio::time::timeout(Duration::from_secs(30), request).await.expect("an end in time");
        refused.push(answer.expect("no panic").map_or(0, |status| status.as_u16()));
    }
    assert!(refused.contains(&503), "{refused:?}");
    assert!(refused.iter().all(|status| matches!(status, 503 | 504)), "{refused:?}");
    assert_eq!(one_more(&setup).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_answer_gets_few_requests() {
    let stalled = FakeBackend::start(|_, _| None).await;
    let options = Options { protocol: Protocol::HttpProtobuf, timeout: Duration::from_secs(60), ..Options::default() };
    let setup = Setup::start(stalled.address, options).await;
    let mut requests = tokio::task::JoinSet::new();
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for _ in 0..120 {
        let request = Request::post(format!("http://{}/v1/logs", setup.http)).header("content-type", PROTOBUF);
        let request = request.body(http_body_util::Empty::<Bytes>::new()).expect("a request");
        let answer = client.request(request);
        requests.spawn(async move {
            let (head, body) = answer.await.expect("an answer").into_parts();
            (head.status.as_u16(), head.headers.get("retry-after").cloned(), body.collect().await.is_ok())
        });
    }
    // All but those that wait for the backend.
    for _ in 0..120 - 48 {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, requests.join_next()).await.expect("an answer in time");
        let (status, retry_after, _) = answer.expect("a request").expect("no panic");
        assert_eq!((status, retry_after.as_ref().map(|value| value.as_bytes())), (503, Some(&b"1"[..])));
    }
    assert_eq!(stalled.got().len(), 48, "requests at the backend");
    assert_eq!(setup.traffic.refused(RejectReason::Busy), 120 - 48);
}

#[tokio::test]
async fn a_flood_of_pings_ends_its_connection() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    let (mut read, mut write) = AsyncStream::connect(setup.grpc).await.expect("a connection").into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let pings = b"\0\0\x08\x06\0\0\0\0\0pingping".repeat(1000);
    let flooding = async { while write.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(ANSWER_TIMEOUT, flooding).await.expect("the connection stays");
    drop(answers.await);
    assert_eq!(one_more(&setup).await, 200);
}

#[tokio::test]
async fn only_listed_headers_are_forwarded() {
    let backend = FakeBackend::start(ok).await;
    let headers = [
        ("user-agent", "app/1"),
        ("traceparent", "00-07-07-01"),
        ("tracestate", "a=b"),
        ("grpc-timeout", "9S"),
        ("x-scope-orgid", "other-tenant"),
        ("cookie", "a=b"),
        ("authorization", "Bearer app"),
        ("x-forwarded-for", "10.0.0.1"),
    ];
    let cases: [(&[&str], &[&str]); 2] = [
        (&[], &["user-agent", "traceparent", "tracestate", "grpc-timeout"]),
        (&["x-scope-orgid"], &["user-agent", "traceparent", "tracestate", "grpc-timeout", "x-scope-orgid"]),
    ];
    for (configured, expected) in cases {
        let pass_headers = configured.iter().map(|name| (*name).to_owned()).collect();
        let setup = Setup::start(backend.address, Options { pass_headers, ..Options::default() }).await;
        assert_eq!(grpc(&setup, traces(), &headers, frame(0, b"")).await.grpc_status(), 0);
        let got = backend.last().headers;
        let passed: Vec<&str> = headers.iter().map(|(name, _)| *name).filter(|name| got.contains_key(*name)).collect();
        assert_eq!(passed, expected);
    }
    // By HTTP; what any Connection header names stays, and what belongs to the connection.
    let backend = FakeBackend::start(ok_http).await;
    let options = Options { protocol: Protocol::HttpProtobuf, ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    let mut stream = TcpStream::connect(setup.http).expect("a connection");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\
                connection: traceparent\r\nconnection: close, tracestate\r\nproxy-connection: user-agent\r\n\
                traceparent: 1\r\ntracestate: 2\r\nuser-agent: 3\r\naccept: 4\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new())).await.expect("no panic").expect("the end");
    let got = backend.last().headers;
    for name in ["traceparent", "tracestate", "user-agent", "connection", "proxy-connection"] {
        assert!(!got.contains_key(name), "{name}");
    }
    assert_eq!(got["accept"], "4");
}
