//! Any text as an OTLP/JSON trace request: no panic; with an event added all that was there is still there.

use opentelemetry_proto::tonic::trace::v1::span::Event;
use prost::Message;
use reset_collector::otlp::{splice, splice_json};

pub(crate) fn run(text: &[u8]) {
    let event = Event { name: "tcp.reset".into(), ..Event::default() }.encode_to_vec();
    let nowhere: splice::Place = [splice::Extent { length_at: 0, start: 0, end: 0 }; 3];
    let Some(spliced) = splice_json::splice(text, &[(0, nowhere, event)]) else { return };
    let same_start = text.iter().zip(&spliced).take_while(|(one, other)| one == other).count();
    let same_end = text.iter().rev().zip(spliced.iter().rev()).take_while(|(one, other)| one == other).count();
    assert!(same_start + same_end >= text.len(), "something else has changed");
}
