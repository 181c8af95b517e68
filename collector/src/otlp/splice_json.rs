//! Events put into the spans of an OTLP/JSON request: at their place in the text, every other byte as it was.

use opentelemetry_proto::tonic::trace::v1::span::Event;
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::otlp::splice::Place;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow, default)]
    resource_spans: Vec<ResourceSpans<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    #[serde(borrow, default)]
    scope_spans: Vec<ScopeSpans<'a>>,
}

#[derive(Deserialize)]
struct ScopeSpans<'a> {
    #[serde(borrow, default)]
    spans: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Span<'a> {
    #[serde(borrow)]
    events: Option<&'a RawValue>,
}

/// The request with these events (a span's number in the request, an encoded `Span.Event`), in the request's order;
/// `None` where the text is not as expected.
pub fn splice(request: &[u8], events: &[(usize, Place, Vec<u8>)]) -> Option<Vec<u8>> {
    let parsed: Request<'_> = serde_json::from_slice(request).ok()?;
    let scopes = parsed.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let spans: Vec<&RawValue> = scopes.flat_map(|scope| scope.spans.iter().copied()).collect();
    let mut out = Vec::with_capacity(request.len() + 1024 * events.len());
    let mut copied = 0;
    for group in events.chunk_by(|(one, ..), (other, ..)| one == other) {
        let span = *spans.get(group[0].0)?;
        let (at, text) = insertion(request, span, group)?;
        out.extend_from_slice(request.get(copied..at)?);
        out.extend_from_slice(text.as_bytes());
        copied = at;
    }
    out.extend_from_slice(&request[copied..]);
    Some(out)
}

/// Where in the request the events of one span go, and as what text.
fn insertion(request: &[u8], span: &RawValue, events: &[(usize, Place, Vec<u8>)]) -> Option<(usize, String)> {
    let decode = |event: &[u8]| serde_json::to_string(&Event::decode(event).ok()?).ok();
    let events: Option<Vec<String>> = events.iter().map(|(_, _, event)| decode(event)).collect();
    let events = events?.join(",");
    let known = serde_json::from_str::<Span<'_>>(span.get()).ok()?.events;
    // Texts borrowed from the request: their place is their distance from its start.
    let offset = |text: &str| (text.as_ptr() as usize).checked_sub(request.as_ptr() as usize);
    match known {
        Some(known) => {
            let list = known.get();
            let empty = list.strip_prefix('[')?.strip_suffix(']')?.trim().is_empty();
            let at = offset(list)? + list.len() - 1;
            Some((at, if empty { events } else { format!(",{events}") }))
        }
        None => Some((offset(span.get())? + 1, format!(r#""events":[{events}],"#))),
    }
}
