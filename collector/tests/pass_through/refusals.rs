//! What is no OTLP, too large or too slow: the right error, early.

use super::*;

#[tokio::test]
async fn what_is_no_otlp_gets_the_right_error() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    let send = |path: &'static str, content_type| http(&setup, path, content_type, "");
    assert_eq!(send("/v1/traces", "text/plain").await.status, 415);
    assert_eq!(send("/v1/spans", PROTOBUF).await.status, 404);
    assert_eq!(send("/v1/traces", "application/json; charset=utf-8").await.status, 400, "no JSON, for gRPC");
    assert_eq!(grpc(&setup, "/no.such.Service/Export", &[], frame(0, b"")).await.grpc_status(), 12);
    for (headers, body) in [
        (&[][..], Bytes::new()),
        (&[], Bytes::from_static(&[0, 0, 0])),
        (&[], Bytes::from_static(&[0, 0, 0, 0, 9, 1])),
        (&[], Bytes::from([frame(0, b""), frame(0, b"")].concat())),
    ] {
        assert_eq!(grpc(&setup, traces(), headers, body).await.grpc_status(), 3);
    }
    assert_eq!(grpc(&setup, traces(), &[], frame(1, b"")).await.grpc_status(), 13, "compressed, not said how");
    assert_eq!(backend.got().len(), 0, "none of it went on");
}

#[tokio::test]
async fn too_much_is_refused_early() {
    let backend = FakeBackend::start(ok_http).await;
    let options =
        Options { protocol: Protocol::HttpProtobuf, limit: Some(1 << 20), owner: Some(owner()), ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    // A reset waits, so that spans are looked at: bombs are opened.
    setup.correlator.submit(reset(5000), Instant::now());
    let bomb = vec![0; 200 << 20];
    let (zipped, zstd) = (gzip(&bomb), zstd::encode_all(&bomb[..], 3).expect("memory"));
    for path in ["/v1/traces", "/v1/logs"] {
        for (coding, body) in [("gzip", &zipped), ("zstd", &zstd)] {
            let headers = [("content-type", PROTOBUF), ("content-encoding", coding)];
            let reply = post(setup.http, path, &headers, body.clone().into(), false).await;
            assert_eq!(reply.status, 413, "{coding} on {path}");
            let status = pb::Status::decode(reply.body).expect("google.rpc.Status");
            assert_eq!(status.code, 8);
        }
    }
    let reply = grpc(&setup, traces(), &[("grpc-encoding", "gzip")], frame(1, &zipped)).await;
    assert_eq!(reply.grpc_status(), 8);
    let reply = grpc(&setup, traces(), &[], frame(0, &bomb[..2 << 20])).await;
    assert_eq!(reply.grpc_status(), 8);
    let reply = post(
        setup.http,
        "/v1/traces",
        &[("content-type", PROTOBUF), ("content-encoding", "gzip")],
        Bytes::from_static(b"no gzip"),
        false,
    )
    .await;
    assert_eq!(reply.status, 400);

    let mut stream = TcpStream::connect(setup.http).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1073741824\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer)
    });
    let answer = answer.await.expect("no panic").expect("an answer, and the end of the connection");
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(backend.got().len(), 0, "none of it went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_do_not_keep_others_out() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    // More than there is room for: the newest may displace the oldest of them.
    let mut slow: Vec<TcpStream> = (0..700).map(|_| TcpStream::connect(setup.http).expect("a connection")).collect();
    for stream in &mut slow {
        // The oldest may be gone already.
        stream.write_all(b"POST /v1/traces HTTP/1.1\r\nhost").unwrap_or_default();
    }
    let asked = Instant::now();
    assert_eq!(http(&setup, "/v1/traces", PROTOBUF, "").await.status, 200);
    assert!(asked.elapsed() < Duration::from_secs(2), "the others had to wait");
    // A body that drips in holds room for no longer than five seconds.
    let mut dripping = TcpStream::connect(setup.http).expect("a connection");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 16000000\r\n\r\n";
    dripping.write_all(head.as_bytes()).expect("sent");
    let mut answer = dripping.try_clone().expect("a descriptor");
    let answered = tokio::task::spawn_blocking(move || {
        answer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut head = [0; 12];
        answer.read_exact(&mut head).map(|()| head)
    });
    let drip = tokio::task::spawn_blocking(move || {
        (0..30).all(|_| {
            std::thread::sleep(Duration::from_millis(400));
            dripping.write_all(b"x").is_ok()
        })
    });
    assert_eq!(&answered.await.expect("no panic").expect("an answer in time"), b"HTTP/1.1 504");
    assert!(!drip.await.expect("no panic"), "its connection stayed");
    // Sent away after ten seconds, for all that they keep writing.
    let mut one = slow.pop().expect("one of them");
    let gone = tokio::task::spawn_blocking(move || {
        (0..40).any(|_| {
            std::thread::sleep(Duration::from_millis(400));
            one.write_all(b"x").is_err()
        })
    });
    assert!(gone.await.expect("no panic"), "a client wrote headers for 16 s");
}
