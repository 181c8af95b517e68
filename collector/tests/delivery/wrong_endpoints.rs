//! Endpoints that are no OTLP backend, or not the one that was meant: one clear line each, and nothing hangs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reset_collector::{
    config::settings::{Compression, Destination, Protocol, Secret},
    model::signal::Signal,
    otlp::{
        client::{Client, SendError},
        response::BODY_LIMIT,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    backend::{Backend, Reply, logs},
    client::{destination, to, words_of_one_try},
};

/// Says these bytes to every connection once something came, then closes or goes on as told.
async fn stranger(says: &'static [u8], repeats: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let mut heard = stream.read(&mut buffer).await.unwrap_or(0);
                while heard > 0 && stream.write_all(says).await.is_ok() && repeats {
                    heard = 1;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn endpoints_that_are_no_address() {
    let cases = [
        ("localhost:4317", "endpoint `localhost:4317` has no scheme: write http:// before it, or https:// for TLS"),
        ("", "endpoint `` has no scheme"),
        ("ftp://x", "endpoint `ftp://x` has no scheme"),
        ("http://", "endpoint `http://` is not an address"),
        ("http://a b", "endpoint `http://a b` is not an address"),
        ("http://h:99999", "endpoint `http://h:99999` is not an address"),
        ("http://h:4318/?x=1", "endpoint `http://h:4318/?x=1` has a query"),
        ("http://user:hunter2@h:4318", "endpoint `http://…@h:4318` has a user or password"),
        ("http://user:hun ter2@h:4318", "endpoint `http://…@h:4318` has a user or password"),
    ];
    for (endpoint, expected) in cases {
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
            let words = words_of_one_try(&to(endpoint, protocol)).await;
            assert!(words.starts_with(expected), "{endpoint}: {words}");
            assert!(!words.contains("ter2"), "{words}");
        }
    }
}

#[tokio::test]
async fn headers_that_cannot_be_sent_keep_their_secret() {
    for (name, value) in [("bad name", "hunter2"), ("authorization", "hunter2\nx")] {
        let headers = vec![(name.to_owned(), Secret(value.into()))];
        let destination = Destination { headers, ..to("http://localhost:1", Protocol::Grpc) };
        let words = words_of_one_try(&destination).await;
        assert!(words.contains(&format!("header `{name}`")) && !words.contains("hunter2"), "{words}");
    }
}

#[tokio::test]
async fn nobody_listens() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let words = words_of_one_try(&to("http://127.0.0.1:1", protocol)).await;
        assert!(words.starts_with("no connection: ") && words.contains("Connection refused"), "{words}");
    }
    let words = words_of_one_try(&to("unix:///nowhere.sock", Protocol::Grpc)).await;
    assert!(words.contains("No such file"), "{words}");
}

#[tokio::test]
async fn the_wrong_protocol_at_the_port() {
    let http1 = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request";
    let words = words_of_one_try(&to(&format!("http://{}", stranger(http1, false).await), Protocol::Grpc)).await;
    assert!(words.contains("protocol: http/protobuf"), "{words}");

    // An HTTP/2 server's first words: an empty SETTINGS frame, and GOAWAY since it heard no preface.
    let http2 = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    let endpoint = format!("http://{}", stranger(http2, false).await);
    let words = words_of_one_try(&to(&endpoint, Protocol::HttpProtobuf)).await;
    assert!(words.contains("protocol: grpc"), "{words}");
}

#[tokio::test]
async fn garbage_and_silence() {
    for says in [&b"\x15\x03\x01\0\x02\x02\x16"[..], b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\0\0\0", b""] {
        for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
            let words = words_of_one_try(&to(&format!("http://{}", stranger(says, false).await), protocol)).await;
            let known = ["the connection broke: ", "no answer within ", "no connection: "];
            assert!(known.iter().any(|start| words.starts_with(start)), "{words}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_explained_and_not_followed() {
    let target = Backend::answering(vec![Reply::http(200)]).await;
    let headers = vec![("location", format!("{}/v1/logs", target.endpoint()))];
    let backend = Backend::answering(vec![Reply::Http { status: 307, headers, body: Bytes::new() }]).await;
    let words = words_of_one_try(&destination(&backend, Protocol::HttpProtobuf)).await;
    assert!(words.contains(&target.endpoint()) && words.contains("set the endpoint"), "{words}");
    assert_eq!(target.requests().len(), 0);
}

#[tokio::test]
async fn a_huge_error_body_is_read_to_a_limit() {
    let body = Bytes::from(vec![b'x'; 10 << 20]);
    let backend = Backend::answering(vec![Reply::Http { status: 400, headers: Vec::new(), body }]).await;
    let destination = Destination { timeout: Duration::from_secs(10), ..destination(&backend, Protocol::HttpProtobuf) };
    let answer = Client::new(&destination).unwrap().send(Signal::Logs, logs(0, 1)).await.unwrap();
    assert_eq!((answer.body.len(), answer.truncated), (BODY_LIMIT, true));
    assert!(answer.explanation().len() < 300);

    let endless = b"HTTP/1.1 500 Oh\r\n\r\nand so on and so on and so on and so on and so on and so on and so on";
    let endpoint = format!("http://{}", stranger(endless, true).await);
    let destination = Destination { timeout: Duration::from_secs(30), ..to(&endpoint, Protocol::HttpProtobuf) };
    let words = words_of_one_try(&destination).await;
    assert!(words.starts_with("HTTP 500"), "{words}");
}

#[tokio::test]
async fn a_server_that_drips_is_cut_off_and_the_next_request_takes_a_new_connection() {
    for (protocol, taken) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let late = Reply::Late(Duration::from_secs(60), Box::new(taken.clone()));
        let backend = Backend::answering(vec![late, taken]).await;
        let timeout = Duration::from_millis(100);
        let client = Client::new(&Destination { timeout, ..destination(&backend, protocol) }).unwrap();
        assert_eq!(client.send(Signal::Logs, logs(0, 1)).await, Err(SendError::Timeout(timeout)));
        assert!(client.send(Signal::Logs, logs(0, 1)).await.unwrap().is_acceptance());
        let mut connections: Vec<_> = backend.requests().iter().map(|request| request.connection).collect();
        connections.dedup();
        assert_eq!(connections.len(), 2, "{protocol:?}");
    }
}

#[tokio::test]
async fn connections_are_kept() {
    for (protocol, taken) in [(Protocol::Grpc, Reply::grpc(0)), (Protocol::HttpProtobuf, Reply::http(200))] {
        let backend = Backend::answering(vec![taken]).await;
        let client = Client::new(&destination(&backend, protocol)).unwrap();
        for _ in 0..5 {
            assert!(client.send(Signal::Logs, logs(0, 1)).await.unwrap().is_acceptance());
        }
        assert!(backend.requests().iter().all(|request| request.connection == 0));
    }
}

#[tokio::test]
async fn a_server_that_never_reads_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            streams.push(listener.accept().await.unwrap());
        }
    });
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let timeout = Duration::from_millis(300);
        let destination = Destination { timeout, compression: Compression::None, ..to(&endpoint, protocol) };
        let client = Client::new(&destination).unwrap();
        let started = Instant::now();
        let sent = client.send(Signal::Logs, Bytes::from(vec![0; 32 << 20])).await;
        assert_eq!(sent, Err(SendError::Timeout(timeout)));
        assert!(started.elapsed() < 10 * timeout, "{:?}", started.elapsed());
    }
    held.abort();
}
