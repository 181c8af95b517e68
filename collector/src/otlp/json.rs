//! OTLP/JSON to protobuf, in one pass over the text and without structs in between.
//!
//! A request becomes no larger than the limit that it is given, whatever its text is: `{},` costs prost's structs some
//! 270 bytes, here it is two. Follows OTLP 1.11, "JSON Protobuf Encoding": keys in lowerCamelCase, ids in hex, other
//! bytes in base64, 64-bit integers as numbers or text; unknown keys are ignored, null is absence.

mod schema;

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    model::signal::Signal,
    otlp::json::schema::{Field, Kind, Message},
};

/// Why a text is not converted.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// More bytes of protobuf than the limit.
    #[error("the protobuf is larger than the limit")]
    TooLarge,
    /// Not JSON, or not OTLP.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
}

/// The request of this signal as protobuf of at most `limit` bytes.
pub fn to_protobuf(signal: Signal, text: &[u8], limit: usize) -> Result<Vec<u8>, JsonError> {
    let mut out = Output { bytes: Vec::new(), limit, full: false };
    let message = match signal {
        Signal::Logs => &schema::LOGS_REQUEST,
        Signal::Traces => &schema::TRACES_REQUEST,
        Signal::Metrics => &schema::METRICS_REQUEST,
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = MessageSeed { out: &mut out, message }.deserialize(&mut reader).and_then(|()| reader.end());
    match read {
        Ok(()) => Ok(out.bytes),
        Err(_) if out.full => Err(JsonError::TooLarge),
        Err(error) => Err(JsonError::Syntax(error)),
    }
}

/// A text in an error, which does not repeat it: it may be as long as the request.
const TEXT: de::Unexpected<'_> = de::Unexpected::Other("this text");

/// Protobuf's wire types.
const VARINT: u32 = 0;
const FIXED_64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;
const FIXED_32: u32 = 5;

struct Output {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Output {
    fn put<E: de::Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.reserve(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes room, growing by half, and never beyond the limit.
    fn reserve<E: de::Error>(&mut self, count: usize) -> Result<(), E> {
        let length = self.bytes.len();
        if count > self.limit.saturating_sub(length) {
            self.full = true;
            return Err(E::custom("the request is too large"));
        }
        if count > self.bytes.capacity() - length {
            self.bytes.reserve_exact(count.max(length / 2).min(self.limit - length));
        }
        Ok(())
    }

    fn varint<E: de::Error>(&mut self, value: u64) -> Result<(), E> {
        let (bytes, length) = varint(value);
        self.put(&bytes[..length])
    }

    fn key<E: de::Error>(&mut self, number: u32, wire_type: u32) -> Result<(), E> {
        self.varint(u64::from(number << 3 | wire_type))
    }

    /// Starts a length-delimited field; [`Self::end`] puts its length before what was written since.
    fn begin<E: de::Error>(&mut self, number: u32) -> Result<usize, E> {
        self.key(number, LENGTH_DELIMITED)?;
        self.put(&[0])?;
        Ok(self.bytes.len())
    }

    fn end<E: de::Error>(&mut self, start: usize) -> Result<(), E> {
        let end = self.bytes.len();
        let (bytes, length) = varint((end - start) as u64);
        if length > 1 {
            // One byte was left for the length; the content moves by the rest.
            self.put(&[0; 10][..length - 1])?;
            self.bytes.copy_within(start..end, start + length - 1);
        }
        self.bytes[start - 1..start - 1 + length].copy_from_slice(&bytes[..length]);
        Ok(())
    }
}

fn varint(mut value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            return (bytes, at + 1);
        }
        *byte |= 0x80;
    }
    (bytes, 10)
}

/// Writes the fields of an object.
struct MessageSeed<'a> {
    out: &'a mut Output,
    message: &'static Message,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(KeySeed(self.message))? {
            match field {
                Some(field) => map.next_value_seed(FieldSeed { out: &mut *self.out, field })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Finds the field of a key; `None` for an unknown one.
struct KeySeed(&'static Message);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.iter().find(|field| field.name == key))
    }
}

/// Writes the value of a field, with its key; nothing for null.
struct FieldSeed<'a> {
    out: &'a mut Output,
    field: &'static Field,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of `{}`", self.field.kind.expected(), self.field.name)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        ElementSeed::single(self)?.visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if !self.field.repeated {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        if !self.field.kind.is_packed() {
            while list
                .next_element_seed(ElementSeed { out: &mut *self.out, field: self.field, packed: false })?
                .is_some()
            {}
            return Ok(());
        }
        let start = self.out.begin(self.field.number)?;
        while list.next_element_seed(ElementSeed { out: &mut *self.out, field: self.field, packed: true })?.is_some() {}
        self.out.end(start)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        ElementSeed::single(self)?.visit_str(text)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        ElementSeed::single(self)?.visit_bool(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        ElementSeed::single(self)?.visit_u64(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        ElementSeed::single(self)?.visit_i64(value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        ElementSeed::single(self)?.visit_f64(value)
    }
}

/// Writes one value: of a field that is not repeated, or of a list.
struct ElementSeed<'a> {
    out: &'a mut Output,
    field: &'static Field,
    /// The key stands before the whole list.
    packed: bool,
}

impl<'a> ElementSeed<'a> {
    fn single<E: de::Error>(seed: FieldSeed<'a>) -> Result<Self, E> {
        match seed.field.repeated {
            true => Err(E::custom(format_args!("`{}` is a list", seed.field.name))),
            false => Ok(Self { out: seed.out, field: seed.field, packed: false }),
        }
    }

    fn key<E: de::Error>(&mut self, wire_type: u32) -> Result<(), E> {
        if self.packed { Ok(()) } else { self.out.key(self.field.number, wire_type) }
    }

    fn fixed<E: de::Error>(&mut self, bytes: [u8; 8]) -> Result<(), E> {
        self.key(FIXED_64)?;
        self.out.put(&bytes)
    }

    fn varint<E: de::Error>(&mut self, value: u64) -> Result<(), E> {
        self.key(VARINT)?;
        self.out.varint(value)
    }

    fn integer<E: de::Error>(mut self, value: i128) -> Result<(), E> {
        let range = || E::custom(format_args!("{value} is out of range for `{}`", self.field.name));
        match self.field.kind {
            Kind::Double => self.fixed((value as f64).to_le_bytes()),
            Kind::Int64 | Kind::Sfixed64 => {
                let value = i64::try_from(value).map_err(|_| range())?;
                if let Kind::Int64 = self.field.kind {
                    self.varint(value.cast_unsigned())
                } else {
                    self.fixed(value.to_le_bytes())
                }
            }
            Kind::Uint64 => self.varint(u64::try_from(value).map_err(|_| range())?),
            Kind::Fixed64 => self.fixed(u64::try_from(value).map_err(|_| range())?.to_le_bytes()),
            Kind::Uint32 => self.varint(u32::try_from(value).map_err(|_| range())?.into()),
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(|_| range())?;
                self.key(FIXED_32)?;
                self.out.put(&value.to_le_bytes())
            }
            Kind::Int32 => self.varint(i64::from(i32::try_from(value).map_err(|_| range())?).cast_unsigned()),
            Kind::Sint32 => {
                let value = i32::try_from(value).map_err(|_| range())?;
                self.varint(((value << 1) ^ (value >> 31)).cast_unsigned().into())
            }
            _ => Err(E::invalid_type(de::Unexpected::Other("a number"), &self)),
        }
    }

    fn bytes<E: de::Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.key(LENGTH_DELIMITED)?;
        self.out.varint(bytes.len() as u64)?;
        self.out.put(bytes)
    }

    fn hex<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        let invalid = || E::custom(format_args!("`{}` is not hexadecimal", self.field.name));
        let digits = text.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
        if !rest.is_empty() || !digits.iter().all(|byte| digit(*byte).is_some()) {
            return Err(invalid());
        }
        self.key(LENGTH_DELIMITED)?;
        self.out.varint(pairs.len() as u64)?;
        self.out.reserve(pairs.len())?;
        let decoded = pairs.iter().map(|[high, low]| digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
        self.out.bytes.extend(decoded);
        Ok(())
    }

    fn base64<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        let start = self.out.begin(self.field.number)?;
        let room = base64::decoded_len_estimate(text.len());
        self.out.reserve(room)?;
        self.out.bytes.resize(start + room, 0);
        let decoded = BASE64_STANDARD.decode_slice(text, &mut self.out.bytes[start..]);
        let length = decoded.map_err(|_| E::custom(format_args!("`{}` is not base64", self.field.name)))?;
        self.out.bytes.truncate(start + length);
        self.packed = false;
        self.out.end(start)
    }
}

impl<'de> DeserializeSeed<'de> for ElementSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ElementSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of `{}`", self.field.kind.expected(), self.field.name)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Err(E::invalid_type(de::Unexpected::Unit, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(message) = self.field.kind else {
            return Err(de::Error::invalid_type(de::Unexpected::Map, &self));
        };
        let start = self.out.begin(self.field.number)?;
        MessageSeed { out: &mut *self.out, message }.visit_map(map)?;
        self.out.end(start)
    }

    fn visit_str<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        match self.field.kind {
            Kind::Text => self.bytes(text.as_bytes()),
            Kind::Hex => self.hex(text),
            Kind::Base64 => self.base64(text),
            // NaN, Infinity and -Infinity too, as Rust reads them.
            Kind::Double => {
                let value: f64 = text.parse().map_err(|_| E::invalid_value(TEXT, &self))?;
                self.fixed(value.to_le_bytes())
            }
            Kind::Bool | Kind::Message(_) => Err(E::invalid_type(TEXT, &self)),
            _ => {
                let value = text.parse().map_err(|_| E::invalid_value(TEXT, &self))?;
                self.integer(value)
            }
        }
    }

    fn visit_bool<E: de::Error>(mut self, value: bool) -> Result<(), E> {
        match self.field.kind {
            Kind::Bool => self.varint(value.into()),
            _ => Err(E::invalid_type(de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<(), E> {
        match self.field.kind {
            Kind::Double => self.fixed(value.to_le_bytes()),
            // As protobuf's JSON mapping has it: 1.0 and 1e3 are integers.
            _ if value.fract() == 0.0 && value.abs() < 2_f64.powi(64) => self.integer(value as i128),
            _ => Err(E::invalid_type(de::Unexpected::Float(value), &self)),
        }
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
