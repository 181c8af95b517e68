use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span::Event},
};
use proptest::prelude::*;
use prost::Message;

use super::*;

fn event() -> impl Strategy<Value = Event> {
    let event = |(time_unix_nano, name)| Event { time_unix_nano, name, ..Event::default() };
    (any::<u64>(), ".{0,200}").prop_map(event)
}

prop_compose! {
    fn otlp_span()(
        trace_id in prop::collection::vec(any::<u8>(), 0..20),
        span_id in prop::collection::vec(any::<u8>(), 0..10),
        parent_span_id in prop::collection::vec(any::<u8>(), 0..10),
        name in ".{0,300}",
        kind in 0..6_i32,
        start_time_unix_nano in any::<u64>(),
        end_time_unix_nano in any::<u64>(),
        events in prop::collection::vec(event(), 0..3),
        code in 0..3_i32,
    ) -> OtlpSpan {
        let status = (code != 0).then(|| Status { code, message: "why".into() });
        OtlpSpan {
            trace_id, span_id, parent_span_id, name, kind, start_time_unix_nano, end_time_unix_nano, events, status,
            ..OtlpSpan::default()
        }
    }
}

fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let spans = prop::collection::vec(otlp_span(), 0..4);
    let scope = (spans, ".{0,200}").prop_map(|(spans, schema_url)| ScopeSpans { scope: None, spans, schema_url });
    let scopes = prop::collection::vec(scope, 0..3);
    let resource = |scope_spans| ResourceSpans { scope_spans, ..ResourceSpans::default() };
    prop::collection::vec(scopes.prop_map(resource), 0..3)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

fn spans(request: &mut ExportTraceServiceRequest) -> impl Iterator<Item = &mut OtlpSpan> {
    let scopes = request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    scopes.flat_map(|scope| &mut scope.spans)
}

proptest! {
    #[test]
    fn sees_what_prost_sees(mut request in request()) {
        let bytes = request.encode_to_vec();
        let mut seen = Vec::new();
        visit(&bytes, |_, span| seen.push(*span)).expect("valid");
        let expected: Vec<&mut OtlpSpan> = spans(&mut request).collect();
        prop_assert_eq!(seen.len(), expected.len());
        for (seen, expected) in seen.iter().zip(expected) {
            let ids = [&expected.trace_id, &expected.span_id, &expected.parent_span_id];
            prop_assert_eq!([seen.trace_id, seen.span_id, seen.parent_span_id], ids.map(Vec::as_slice));
            let numbers = [expected.kind as u64, expected.start_time_unix_nano, expected.end_time_unix_nano];
            prop_assert_eq!([seen.kind, seen.start_unix_ns, seen.end_unix_ns], numbers);
            let status = expected.status.clone().unwrap_or_default();
            prop_assert_eq!(seen.status(), Ok((status.code as u64, status.message.as_bytes())));
        }
    }

    #[test]
    fn adds_events_and_nothing_else(mut request in request(), choice in any::<u64>(), added in event()) {
        let bytes = request.encode_to_vec();
        let mut events = Vec::new();
        let mut number = 0;
        let chosen = |number: u32| choice >> (number % 64) & 1 == 1;
        visit(&bytes, |place, _| {
            if chosen(number) {
                events.push((place, added.encode_to_vec()));
                events.push((place, added.encode_to_vec()));
            }
            number += 1;
        })
        .expect("valid");
        for (number, span) in spans(&mut request).enumerate() {
            if chosen(number as u32) {
                span.events.extend([added.clone(), added.clone()]);
            }
        }
        let spliced = splice(&bytes, &events);
        prop_assert_eq!(ExportTraceServiceRequest::decode(&spliced[..]), Ok(request));
    }

    #[test]
    fn leaves_unknown_fields_where_they_are(span in otlp_span(), unknown in prop::collection::vec(any::<u8>(), 0..300)) {
        // Field 4000 before and after, and a length with more bytes than it needs.
        let wrap = |key: u8, content: &[u8], padded: bool| {
            let mut out = vec![0x82, 0xfa, 0x01];
            write_varint(unknown.len() as u64, &mut out);
            out.extend_from_slice(&unknown);
            let head = out.clone();
            out.push(key);
            let mut length = Vec::new();
            write_varint(content.len() as u64, &mut length);
            if padded {
                *length.last_mut().expect("one byte at least") |= 0x80;
                length.push(0);
            }
            out.extend_from_slice(&length);
            out.extend_from_slice(content);
            out.extend_from_slice(&head);
            out
        };
        let built = |content: &[u8], padded| wrap(0x0a, &wrap(0x12, &wrap(0x12, content, padded), padded), padded);
        let content = span.encode_to_vec();
        let request = built(&content, true);
        let mut places = Vec::new();
        visit(&request, |place, _| places.push((place, vec![1, 2, 3]))).expect("valid");
        let mut marked = content;
        marked.extend_from_slice(&[0x5a, 3, 1, 2, 3]);
        prop_assert_eq!(splice(&request, &places), built(&marked, false));
        prop_assert_eq!(splice(&request, &[]), request);
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut places = Vec::new();
        let visited = visit(&bytes, |place, span| {
            let attributes = span.attributes(|_, _| {});
            // Any of these may be malformed within; the test is that none panics.
            std::hint::black_box((attributes.is_ok(), span.last_event(b"exception").is_ok(), span.status().is_ok()));
            places.push((place, vec![0; 3]));
        });
        if visited.is_ok() {
            let spliced = splice(&bytes, &places);
            let mut count = 0;
            visit(&spliced, |_, _| count += 1).expect("as valid as before");
            prop_assert_eq!(count, places.len());
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let span = OtlpSpan { name: "GET /".into(), span_id: vec![1; 8], ..OtlpSpan::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let whole = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    for end in 1..whole.len() {
        assert_eq!(visit(&whole[..end], |_, _| {}), Err(Malformed::Truncated), "{end} bytes");
    }
}

#[test]
fn malformed_fields_say_why() {
    let cases: [(&[u8], Malformed); 4] = [
        (&[0x0a, 5, 1], Malformed::Truncated),
        (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Malformed::Truncated),
        (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], Malformed::Number),
        (&[0x0b], Malformed::WireType(3)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(visit(bytes, |_, _| {}), Err(expected), "{bytes:02x?}");
    }
}
