//! Spans in the bytes of an `ExportTraceServiceRequest`: found without allocating, and given events without touching any
//! other byte.
//!
//! Knows protobuf's wire format and where OTLP puts things; not what a span means ([`crate::correlate::matching`]). Fields that it
//! does not know are stepped over and stay as they are, in their place.

/// Why bytes are no request: they go to the backend as they came, whose answer the application gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length or number runs past the end.
    #[error("a field runs past the end of its message")]
    Truncated,
    /// A number has more than ten bytes, or a field's number is zero.
    #[error("a field's key or number is not valid")]
    Number,
    /// Groups, or a wire type that does not exist.
    #[error("wire type {0} is not used by OTLP")]
    WireType(u8),
}

/// A length-delimited field in the request's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where its length stands.
    pub length_at: usize,
    /// Where its content starts.
    pub start: usize,
    /// Where its content ends.
    pub end: usize,
}

/// Where a span stands: its `ResourceSpans`, its `ScopeSpans`, itself.
pub type Place = [Extent; 3];

/// One span as it stands in the bytes; what is absent is zero or empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span<'a> {
    /// The content of the `Span` message.
    pub content: &'a [u8],
    /// 16 bytes where valid.
    pub trace_id: &'a [u8],
    /// 8 bytes where valid.
    pub span_id: &'a [u8],
    /// 8 bytes, or empty for a root.
    pub parent_span_id: &'a [u8],
    /// `SpanKind` by number.
    pub kind: u64,
    /// Start, ns since 1970.
    pub start_unix_ns: u64,
    /// End, ns since 1970.
    pub end_unix_ns: u64,
    /// The content of the `Status` message.
    pub status: &'a [u8],
}

/// One attribute, of those values that matter here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text, perhaps not UTF-8.
    Text(&'a [u8]),
    /// A whole number.
    Integer(i64),
}

/// Numbers of the fields in opentelemetry-proto 1.11 (`trace.proto`, `trace_service.proto`, `common.proto`).
mod number {
    pub(super) const RESOURCE_SPANS: u32 = 1;
    pub(super) const SCOPE_SPANS: u32 = 2;
    pub(super) const SPANS: u32 = 2;
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const KIND: u32 = 6;
    pub(super) const START: u32 = 7;
    pub(super) const END: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const EVENTS: u32 = 11;
    pub(super) const STATUS: u32 = 15;
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING_VALUE: u32 = 1;
    pub(super) const INT_VALUE: u32 = 3;
    pub(super) const EVENT_NAME: u32 = 2;
    pub(super) const EVENT_ATTRIBUTES: u32 = 3;
    pub(super) const STATUS_MESSAGE: u32 = 2;
    pub(super) const STATUS_CODE: u32 = 3;
}

/// Visits every span of an `ExportTraceServiceRequest`, in order, until the end or the first malformed field. What a
/// visitor has seen before an error must not count: the caller forgets it.
pub fn visit<'a>(request: &'a [u8], mut visitor: impl FnMut(Place, &Span<'a>)) -> Result<(), Malformed> {
    messages(request, 0, request.len(), number::RESOURCE_SPANS, &mut |resource| {
        messages(request, resource.start, resource.end, number::SCOPE_SPANS, &mut |scope| {
            messages(request, scope.start, scope.end, number::SPANS, &mut |extent| {
                visitor([resource, scope, extent], &span(&request[extent.start..extent.end])?);
                Ok(())
            })
        })
    })
}

/// Calls with each length-delimited field of this number within `start..end`.
fn messages(
    bytes: &[u8],
    start: usize,
    end: usize,
    wanted: u32,
    found: &mut impl FnMut(Extent) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut fields = Fields { bytes: &bytes[..end], at: start };
    while let Some(field) = fields.next()? {
        if let (true, Content::Bytes(extent)) = (field.number == wanted, field.content) {
            found(extent)?;
        }
    }
    Ok(())
}

fn span(content: &[u8]) -> Result<Span<'_>, Malformed> {
    let mut span = Span { content, ..Span::default() };
    let mut fields = Fields { bytes: content, at: 0 };
    while let Some(field) = fields.next()? {
        match (field.number, field.content) {
            (number::TRACE_ID, Content::Bytes(extent)) => span.trace_id = extent.of(content),
            (number::SPAN_ID, Content::Bytes(extent)) => span.span_id = extent.of(content),
            (number::PARENT_SPAN_ID, Content::Bytes(extent)) => span.parent_span_id = extent.of(content),
            (number::KIND, Content::Number(kind)) => span.kind = kind,
            (number::START, Content::Number(time)) => span.start_unix_ns = time,
            (number::END, Content::Number(time)) => span.end_unix_ns = time,
            (number::STATUS, Content::Bytes(extent)) => span.status = extent.of(content),
            _ => {}
        }
    }
    Ok(span)
}

impl<'a> Span<'a> {
    /// Visits the attributes that are text or whole numbers.
    pub fn attributes(&self, visitor: impl FnMut(&'a [u8], Value<'a>)) -> Result<(), Malformed> {
        attributes(self.content, number::ATTRIBUTES, visitor)
    }

    /// The content of the last event with this name. A span may hold any number of events; none is copied.
    pub fn last_event(&self, name: &[u8]) -> Result<Option<&'a [u8]>, Malformed> {
        let mut last = None;
        messages(self.content, 0, self.content.len(), number::EVENTS, &mut |extent| {
            let event = extent.of(self.content);
            if self::bytes(event, number::EVENT_NAME)? == Some(name) {
                last = Some(event);
            }
            Ok(())
        })?;
        Ok(last)
    }

    /// Code and message of the status: 0 unset, 1 ok, 2 error.
    pub fn status(&self) -> Result<(u64, &'a [u8]), Malformed> {
        let mut code = 0;
        let mut fields = Fields { bytes: self.status, at: 0 };
        while let Some(field) = fields.next()? {
            if let (number::STATUS_CODE, Content::Number(value)) = (field.number, field.content) {
                code = value;
            }
        }
        Ok((code, bytes(self.status, number::STATUS_MESSAGE)?.unwrap_or_default()))
    }
}

/// Visits the attributes of an event's content that are text or whole numbers.
pub fn event_attributes<'a>(event: &'a [u8], visitor: impl FnMut(&'a [u8], Value<'a>)) -> Result<(), Malformed> {
    attributes(event, number::EVENT_ATTRIBUTES, visitor)
}

fn attributes<'a>(
    message: &'a [u8],
    wanted: u32,
    mut visitor: impl FnMut(&'a [u8], Value<'a>),
) -> Result<(), Malformed> {
    messages(message, 0, message.len(), wanted, &mut |extent| {
        let attribute = extent.of(message);
        let (mut key, mut value): (&[u8], &[u8]) = (b"", b"");
        let mut fields = Fields { bytes: attribute, at: 0 };
        while let Some(field) = fields.next()? {
            match (field.number, field.content) {
                (number::KEY, Content::Bytes(extent)) => key = extent.of(attribute),
                (number::VALUE, Content::Bytes(extent)) => value = extent.of(attribute),
                _ => {}
            }
        }
        let mut fields = Fields { bytes: value, at: 0 };
        while let Some(field) = fields.next()? {
            match (field.number, field.content) {
                (number::STRING_VALUE, Content::Bytes(extent)) => visitor(key, Value::Text(extent.of(fields.bytes))),
                (number::INT_VALUE, Content::Number(value)) => visitor(key, Value::Integer(value.cast_signed())),
                _ => {}
            }
        }
        Ok(())
    })
}

/// The last length-delimited field of this number, as protobuf has it for a field that stands twice.
fn bytes(message: &[u8], wanted: u32) -> Result<Option<&[u8]>, Malformed> {
    let mut last = None;
    messages(message, 0, message.len(), wanted, &mut |extent| {
        last = Some(extent.of(message));
        Ok(())
    })?;
    Ok(last)
}

/// The request with an encoded `Span.Event` appended to each of these spans. The lengths around them grow; no other byte
/// changes. The places are those of [`visit`] on the same bytes, in its order; a place that is repeated gets both events.
/// Allocates the result alone.
pub fn splice(request: &[u8], events: &[(Place, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(spliced_len(request.len(), events, 0));
    rewrite(request, 0, request.len(), events, 0, &mut out);
    out
}

/// The length that a content of `length` bytes has with these events in it.
fn spliced_len(length: usize, events: &[(Place, Vec<u8>)], level: usize) -> usize {
    let (mut before, mut after) = (0, 0);
    for group in events.chunk_by(|(one, _), (other, _)| one[level] == other[level]) {
        let extent = group[0].0[level];
        let content = grown_len(extent, group, level);
        before += extent.end - extent.length_at;
        after += varint_len(content) + content;
    }
    length + after - before
}

/// The length that one message has with these events in it.
fn grown_len(extent: Extent, events: &[(Place, Vec<u8>)], level: usize) -> usize {
    let length = extent.end - extent.start;
    if level + 1 < events[0].0.len() {
        return spliced_len(length, events, level + 1);
    }
    length + events.iter().map(|(_, event)| 1 + varint_len(event.len()) + event.len()).sum::<usize>()
}

fn rewrite(bytes: &[u8], start: usize, end: usize, events: &[(Place, Vec<u8>)], level: usize, out: &mut Vec<u8>) {
    let mut copied = start;
    for group in events.chunk_by(|(one, _), (other, _)| one[level] == other[level]) {
        let extent = group[0].0[level];
        out.extend_from_slice(&bytes[copied..extent.length_at]);
        write_varint(grown_len(extent, group, level) as u64, out);
        if level + 1 < group[0].0.len() {
            rewrite(bytes, extent.start, extent.end, group, level + 1, out);
        } else {
            out.extend_from_slice(&bytes[extent.start..extent.end]);
            for (_, event) in group {
                write_varint(u64::from(number::EVENTS << 3 | WIRE_BYTES), out);
                write_varint(event.len() as u64, out);
                out.extend_from_slice(event);
            }
        }
        copied = extent.end;
    }
    out.extend_from_slice(&bytes[copied..end]);
}

fn varint_len(value: usize) -> usize {
    (value.max(1).ilog2() / 7 + 1) as usize
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Extent {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start..self.end]
    }
}

const WIRE_BYTES: u32 = 2;

/// One field of a message.
struct Field {
    number: u32,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    /// A varint, or the bits of a fixed-width number.
    Number(u64),
    Bytes(Extent),
}

/// The fields of a message, one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    #[inline]
    fn next(&mut self) -> Result<Option<Field>, Malformed> {
        const WIRE_VARINT: u32 = 0;
        const WIRE_64: u32 = 1;
        const WIRE_32: u32 = 5;
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed::Number)?;
        let number = key >> 3;
        if number == 0 {
            return Err(Malformed::Number);
        }
        let content = match key & 7 {
            WIRE_VARINT => Content::Number(self.varint()?),
            WIRE_64 => Content::Number(u64::from_le_bytes(self.fixed()?)),
            WIRE_32 => Content::Number(u64::from(u32::from_le_bytes(self.fixed()?))),
            WIRE_BYTES => {
                let length_at = self.at;
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::Truncated)?;
                let start = self.at;
                let end = start.checked_add(length).filter(|end| *end <= self.bytes.len());
                self.at = end.ok_or(Malformed::Truncated)?;
                Content::Bytes(Extent { length_at, start, end: self.at })
            }
            other => return Err(Malformed::WireType(other as u8)),
        };
        Ok(Some(Field { number, content }))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Malformed::Truncated)?;
            self.at += 1;
            // The tenth byte holds one bit.
            if shift == 63 && byte > 1 {
                return Err(Malformed::Number);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Number)
    }

    #[inline]
    fn fixed<const WIDTH: usize>(&mut self) -> Result<[u8; WIDTH], Malformed> {
        let fixed = self.bytes[self.at..].first_chunk().copied().ok_or(Malformed::Truncated)?;
        self.at += WIDTH;
        Ok(fixed)
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
