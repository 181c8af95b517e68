//! Any bytes as a trace request: read without a panic; with events added as valid as before, and to prost the same but
//! for the events.

use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::span::Event};
use prost::Message;
use reset_collector::{correlate::span_info, otlp::splice};

pub(crate) fn run(bytes: &[u8]) {
    let event = Event { name: "tcp.reset".into(), ..Event::default() };
    let mut places = Vec::new();
    let visited = splice::visit(bytes, |place, span| {
        if let Ok(Some(seen)) = span_info::read(span) {
            assert!(seen.start_unix_ns <= seen.end_unix_ns, "times that run backwards");
        }
        places.push((place, event.encode_to_vec()));
    });
    if visited.is_err() {
        return;
    }
    assert_eq!(splice::splice(bytes, &[]), bytes, "no events change nothing");
    let spliced = splice::splice(bytes, &places);
    let Ok(mut expected) = ExportTraceServiceRequest::decode(bytes) else { return };
    let scopes = expected.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    scopes.flat_map(|scope| &mut scope.spans).for_each(|span| span.events.push(event.clone()));
    // Compared as bytes: NaN is not equal to itself.
    let got = ExportTraceServiceRequest::decode(&spliced[..]).expect("prost took it before");
    assert_eq!(got.encode_to_vec(), expected.encode_to_vec());
}
