//! The event goes into the bytes, and costs the application nothing.

use super::*;

#[tokio::test]
async fn an_event_goes_onto_the_span_that_was_reset() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options { owner: Some(owner()), ..Options::default() }).await;
    for (coding, compress) in [("identity", false), ("gzip", true)] {
        setup.correlator.submit(reset(5000), Instant::now());
        let sent = request(vec![server_span(4999), server_span(5000), server_span(5001)]);
        let plain = sent.encode_to_vec();
        let body = if compress { frame(1, &gzip(&plain)) } else { frame(0, &plain) };
        assert_eq!(grpc(&setup, traces(), &[("grpc-encoding", coding)], body).await.grpc_status(), 0);
        let got = ExportTraceServiceRequest::decode(&backend.last().body[5..]).expect("a plain message");
        let mut expected = sent;
        let marked = &got.resource_spans[0].scope_spans[0].spans[1];
        assert_eq!(marked.events.len(), 1);
        assert_eq!(
            (marked.events[0].name.as_str(), marked.events[0].time_unix_nano),
            ("tcp.reset", START + SECOND / 2)
        );
        expected.resource_spans[0].scope_spans[0].spans[1].events.clone_from(&marked.events);
        assert_eq!(got, expected, "only that span, only that event");
        let ready = setup.correlator.take_ready(Instant::now());
        let trace = ready[0].trace.as_ref().expect("a trace");
        assert!(trace.on_application_span);
        assert_eq!((trace.trace_id, trace.span_id, trace.method), ([7; 16], Some(span_id(5000)), TraceMethod::Span));
        // The second round is another reset: the first one's time is over.
        setup.correlator.take_ready(Instant::now() + Duration::from_secs(30));
    }
}

#[tokio::test]
async fn a_json_span_gets_its_event_in_place() {
    let backend = FakeBackend::start(ok_http).await;
    let options = Options { protocol: Protocol::HttpProtobuf, owner: Some(owner()), ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    setup.correlator.submit(reset(5000), Instant::now());
    let id = |byte: &str, times| byte.repeat(times);
    let text = format!(
        r#"{{"resourceSpans": [ {{"scopeSpans":[{{"spans":[{{"own":1.50, "traceId":"{}","spanId":"{}","kind":2,
        "startTimeUnixNano":"{START}","endTimeUnixNano":"{}","attributes":[
        {{"key":"network.peer.address","value":{{"stringValue":"127.0.0.1"}}}},
        {{"key":"network.peer.port","value":{{"intValue":"5000"}}}}]}}]}}]}} ] }}"#,
        id("07", 16),
        id("09", 8),
        START + SECOND,
    );
    assert_eq!(http(&setup, "/v1/traces", JSON, text.clone()).await.status, 200);
    let got = backend.last().body;
    let got = std::str::from_utf8(&got).expect("text");
    let at = text.find(r#""own""#).expect("a mark");
    assert!(got.starts_with(&text[..at]) && got.ends_with(&text[at..]), "the rest is as it was: {got}");
    let value: serde_json::Value = serde_json::from_str(got).expect("JSON");
    let event = &value["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["events"][0];
    assert_eq!(event["name"], "tcp.reset");
    assert_eq!(event["timeUnixNano"], (START + SECOND / 2).to_string());
}

#[tokio::test]
async fn a_refused_event_does_not_cost_the_span() {
    // The first request is refused for its size, which the event made too large.
    let script = |number: usize, _: &backend::Got| {
        let refusal = Answer::grpc_error(&[("grpc-status", "8"), ("grpc-message", "too large")]);
        Some(if number == 0 { refusal } else { Answer::grpc(b"", &[("grpc-status", "0")]) })
    };
    let backend = FakeBackend::start(script).await;
    let setup = Setup::start(backend.address, Options { owner: Some(owner()), ..Options::default() }).await;
    setup.correlator.submit(reset(5000), Instant::now());
    let body = frame(0, &request(vec![server_span(5000)]).encode_to_vec());
    assert_eq!(grpc(&setup, traces(), &[], body.clone()).await.grpc_status(), 0);
    assert_eq!(backend.got().len(), 2);
    assert_eq!(backend.last().body, body, "as the application sent it");
    let ready = setup.correlator.take_ready(Instant::now() + Duration::from_secs(30));
    let trace = ready[0].trace.as_ref().expect("a trace");
    assert!(!trace.on_application_span, "so it goes onto a span of ours");
    assert_eq!(trace.span_id, Some(span_id(5000)));
}

#[tokio::test]
async fn malformed_spans_go_on_as_they_came() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options { owner: Some(owner()), ..Options::default() }).await;
    setup.correlator.submit(reset(5000), Instant::now());
    let whole = request(vec![server_span(5000)]).encode_to_vec();
    for end in 1..whole.len() {
        let body = frame(0, &whole[..end]);
        assert_eq!(grpc(&setup, traces(), &[], body.clone()).await.grpc_status(), 0);
        assert_eq!(backend.last().body, body);
    }
    assert_eq!(setup.traffic.malformed(), whole.len() as u64 - 1);
    let ready = setup.correlator.take_ready(Instant::now() + Duration::from_secs(30));
    assert!(ready.len() == 1 && ready[0].trace.is_none(), "nothing was stamped");
}
