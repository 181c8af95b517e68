//! Adds events to the spans of an OTLP/JSON request, in the text: no other byte changes.

use std::fmt;

use opentelemetry_proto::tonic::trace::v1::span::Event;
use prost::Message;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::otlp::splice::Place;

#[derive(Deserialize)]
struct Span<'a> {
    #[serde(borrow)]
    events: Option<&'a RawValue>,
}

/// The request with these events (a span's number in the request, an encoded `Span.Event`), in the request's order;
/// `None` where the text is not as expected. Remembers those spans alone.
pub fn splice(request: &[u8], events: &[(usize, Place, Vec<u8>)]) -> Option<Vec<u8>> {
    let groups = || events.chunk_by(|(one, ..), (other, ..)| one == other);
    let mut finder = Finder { wanted: groups().map(|group| group[0].0).collect(), number: 0, found: Vec::new() };
    let mut text = serde_json::Deserializer::from_slice(request);
    Objects { keys: &["resourceSpans", "scopeSpans", "spans"], finder: &mut finder }.deserialize(&mut text).ok()?;
    text.end().ok()?;
    let mut out = Vec::with_capacity(request.len() + 1024 * events.len());
    let mut copied = 0;
    for (index, group) in groups().enumerate() {
        let (at, text) = insertion(request, finder.found.get(index)?, group)?;
        out.extend_from_slice(request.get(copied..at)?);
        out.extend_from_slice(text.as_bytes());
        copied = at;
    }
    out.extend_from_slice(&request[copied..]);
    Some(out)
}

/// Collects the texts of some spans, by their numbers, which grow.
struct Finder<'de> {
    wanted: Vec<usize>,
    number: usize,
    found: Vec<&'de RawValue>,
}

impl Finder<'_> {
    /// Whether the next span is one of them.
    fn wants_next(&mut self) -> bool {
        let number = self.number;
        self.number += 1;
        self.wanted.get(self.found.len()) == Some(&number)
    }
}

/// An object, whose list under the first key holds objects likewise, until no key is left.
struct Objects<'a, 'de> {
    keys: &'static [&'static str],
    finder: &'a mut Finder<'de>,
}

impl<'de> DeserializeSeed<'de> for Objects<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Objects<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("objects with lists of spans")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((own, keys)) = self.keys.split_first() else { return Ok(()) };
        while let Some(is_own) = map.next_key_seed(IsKey(own))? {
            match is_own {
                true => map.next_value_seed(Objects { keys, finder: &mut *self.finder })?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if !self.keys.is_empty() {
            while list.next_element_seed(Objects { keys: self.keys, finder: &mut *self.finder })?.is_some() {}
            return Ok(());
        }
        loop {
            if self.finder.wants_next() {
                let Some(span) = list.next_element::<&'de RawValue>()? else { break };
                self.finder.found.push(span);
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        // The end of the list was counted.
        self.finder.number -= 1;
        Ok(())
    }
}

/// Whether a key is this one.
struct IsKey(&'static str);

impl<'de> DeserializeSeed<'de> for IsKey {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
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
