//! The types of fields in the file: each is read from a node, printed, and described in the JSON Schema in one place.

use std::{marker::PhantomData, net::SocketAddr, path::PathBuf, time::Duration};

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Value as Json, json};

use crate::config::{
    reader::{Reader, listed, nearest, shortened},
    yaml::NodeId,
};

/// How a type of field is read, printed and described.
pub(super) trait FieldType {
    /// What it is in the program.
    type Value;

    /// Reads a node into `value`, which contains the default. Reports errors, and then leaves `value` unchanged.
    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value);

    /// In the form of a file.
    fn show(&self, value: &Self::Value) -> DumpValue;

    /// The JSON Schema of the values that a file may have.
    fn schema(&self) -> Json;
}

/// A value as it is shown; keys keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum DumpValue {
    Null,
    Bool(bool),
    Integer(u64),
    Float(f64),
    Text(String),
    List(Vec<DumpValue>),
    Map(Vec<(String, DumpValue)>),
}

impl DumpValue {
    /// A number, as a whole one where it is.
    pub(super) fn number(number: f64) -> Self {
        // Up to here every whole number is exact.
        const WHOLE: f64 = (1_u64 << 53) as f64;
        if number.fract() == 0.0 && (0.0..=WHOLE).contains(&number) {
            Self::Integer(number as u64)
        } else {
            Self::Float(number)
        }
    }
}

impl Serialize for DumpValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

/// The schema of a value that may be a variable instead.
pub(super) fn or_variable(schema: Json) -> Json {
    json!({ "anyOf": [schema, { "$ref": "#/$defs/variable" }] })
}

/// Reads a scalar with a function that returns an error message.
pub(super) fn read_scalar<T>(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    value: &mut T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) {
    if let Some(scalar) = reader.scalar(node, allowed) {
        match parse(&scalar.text) {
            Ok(parsed) => *value = parsed,
            Err(_) if scalar.has_variable() => {
                reader.error(node, format!("the value of `{}` is not valid here", scalar.shown()), allowed);
            }
            Err(message) => reader.error(node, message, allowed),
        }
    }
}

/// `true` or `false`.
pub(super) struct BoolField;

impl FieldType for BoolField {
    type Value = bool;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut bool) {
        read_scalar(reader, node, "true or false", value, |text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            other => Err(format!("`{}` is not a boolean", shortened(other))),
        });
    }

    fn show(&self, value: &bool) -> DumpValue {
        DumpValue::Bool(*value)
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "boolean" }))
    }
}

/// A whole number from `min` to `max`.
pub(super) struct Count<T> {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) of: PhantomData<T>,
}

pub(super) const fn count<T>(min: u64, max: u64) -> Count<T> {
    Count { min, max, of: PhantomData }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> FieldType for Count<T> {
    type Value = T;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut T) {
        let allowed = format!("a whole number from {} to {}", self.min, self.max);
        read_scalar(reader, node, &allowed, value, |text| {
            let number = whole_number(text)?;
            let inside = (self.min..=self.max).contains(&number);
            let number = T::try_from(number).ok().filter(|_| inside);
            number.ok_or_else(|| format!("`{text}` is out of range"))
        });
    }

    fn show(&self, value: &T) -> DumpValue {
        DumpValue::Integer((*value).try_into().unwrap_or(u64::MAX))
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "integer", "minimum": self.min, "maximum": self.max }))
    }
}

fn whole_number(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(u64::MAX),
        Err(_) => Err(format!("`{}` is not a whole number", shortened(text))),
    }
}

/// A size in bytes: `65536`, `4MiB`.
pub(super) struct Size<T> {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) power_of_two: bool,
    pub(super) of: PhantomData<T>,
}

pub(super) const fn size<T>(min: u64, max: u64) -> Size<T> {
    Size { min, max, power_of_two: false, of: PhantomData }
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Bytes of `4MiB` and its like.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = SIZE_UNITS
        .iter()
        .find_map(|(name, bytes)| Some((text.strip_suffix(name)?.trim_end(), *bytes)))
        .unwrap_or((text, 1));
    number.parse::<u64>().ok().filter(|_| !number.starts_with('+'))?.checked_mul(unit)
}

/// In the greatest unit that divides it.
pub(super) fn show_size(bytes: u64) -> DumpValue {
    let binary = &SIZE_UNITS[..3];
    match binary.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => DumpValue::Text(format!("{}{name}", bytes / unit)),
        None => DumpValue::Integer(bytes),
    }
}

fn size_text(bytes: u64) -> String {
    match show_size(bytes) {
        DumpValue::Text(text) => text,
        _ => bytes.to_string(),
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> FieldType for Size<T> {
    type Value = T;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut T) {
        let power = if self.power_of_two { ", a power of two" } else { "" };
        let allowed =
            format!("bytes from {} to {}{power}, such as 4MiB or 65536", size_text(self.min), size_text(self.max));
        read_scalar(reader, node, &allowed, value, |text| {
            let bytes = parse_size(text).ok_or_else(|| format!("`{}` is not a size", shortened(text)))?;
            if self.power_of_two && !bytes.is_power_of_two() {
                return Err(format!("`{text}` is not a power of two"));
            }
            let inside = (self.min..=self.max).contains(&bytes);
            T::try_from(bytes).ok().filter(|_| inside).ok_or_else(|| format!("`{text}` is out of range"))
        });
    }

    fn show(&self, value: &T) -> DumpValue {
        show_size((*value).try_into().unwrap_or(u64::MAX))
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "anyOf": [
            { "type": "integer", "minimum": self.min, "maximum": self.max },
            { "type": "string", "pattern": "^[0-9]+ ?([KMG]i?B|kB|B)?$" },
        ] }))
    }
}

/// A length of time: `200ms`, `1m30s`.
pub(super) struct Period {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// From `min_ms` to `max_s`.
pub(super) const fn period(min_ms: u64, max_s: u64) -> Period {
    Period { min: Duration::from_millis(min_ms), max: Duration::from_secs(max_s) }
}

/// Seconds of each unit, the longer names first.
const TIME_UNITS: &[(&str, f64)] =
    &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];

/// `1m30s` and its like: numbers, each with a unit, one after the other; `0` needs none.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (name, unit) = TIME_UNITS.iter().find(|(name, _)| {
            rest.strip_prefix(name).is_some_and(|after| !after.starts_with(|c: char| c.is_alphabetic()))
        })?;
        rest = &rest[name.len()..];
        seconds += number * unit;
    }
    // Rounded to ns, so that 0.2 s is 200 ms and not a little more.
    let ns = (seconds * 1e9).round();
    (!text.is_empty() && ns <= u64::MAX as f64 / 2.0).then(|| Duration::from_nanos(ns as u64))
}

/// In the largest unit in which it is a whole number.
pub(super) fn show_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    match units.into_iter().find(|(_, unit)| ns.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ns / unit),
        None => format!("{ns}ns"),
    }
}

impl FieldType for Period {
    type Value = Duration;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Duration) {
        let range = format!("from {} to {}", show_duration(self.min), show_duration(self.max));
        let allowed = format!("a time {range}: a number with a unit, such as 200ms, 10s or 1m30s");
        read_scalar(reader, node, &allowed, value, |text| {
            let parsed = parse_duration(text).ok_or_else(|| match text.parse::<f64>() {
                Ok(_) => format!("`{text}` has no unit"),
                Err(_) => format!("`{}` is not a time", shortened(text)),
            })?;
            if (self.min..=self.max).contains(&parsed) { Ok(parsed) } else { Err(format!("`{text}` is out of range")) }
        });
    }

    fn show(&self, value: &Duration) -> DumpValue {
        DumpValue::Text(show_duration(*value))
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "anyOf": [
            { "type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$" },
            { "const": 0 },
        ] }))
    }
}

/// A number from `min` to `max`.
pub(super) struct Number {
    pub(super) min: f64,
    pub(super) max: f64,
}

impl FieldType for Number {
    type Value = f64;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut f64) {
        let allowed = format!("a number from {} to {}", self.min, self.max);
        read_scalar(reader, node, &allowed, value, |text| {
            let number: f64 = text.parse().map_err(|_| format!("`{}` is not a number", shortened(text)))?;
            if (self.min..=self.max).contains(&number) { Ok(number) } else { Err(format!("`{text}` is out of range")) }
        });
    }

    fn show(&self, value: &f64) -> DumpValue {
        DumpValue::Float(*value)
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "number", "minimum": self.min, "maximum": self.max }))
    }
}

/// Null, or something; the function makes what it is read into.
pub(super) struct OrNull<C: FieldType>(pub(super) C, pub(super) fn() -> C::Value);

impl<C: FieldType> FieldType for OrNull<C> {
    type Value = Option<C::Value>;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value) {
        if reader.is_null(node) {
            *value = None;
            return;
        }
        let mut inner = value.take().unwrap_or_else(self.1);
        self.0.read(reader, node, &mut inner);
        *value = Some(inner);
    }

    fn show(&self, value: &Self::Value) -> DumpValue {
        value.as_ref().map_or(DumpValue::Null, |value| self.0.show(value))
    }

    fn schema(&self) -> Json {
        json!({ "anyOf": [{ "type": "null" }, self.0.schema()] })
    }
}

/// One of a closed list of words.
pub(super) struct Keyword<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Keyword<T> {
    fn words(&self) -> Vec<&'static str> {
        self.0.iter().map(|(word, _)| *word).collect()
    }

    pub(super) fn parse(&self, text: &str) -> Result<T, String> {
        if let Some((_, value)) = self.0.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let hint = nearest(text, self.words().into_iter()).map(|near| format!(", did you mean `{near}`?"));
        Err(format!("unknown value `{}`{}", shortened(text), hint.unwrap_or_default()))
    }
}

impl<T: Copy + PartialEq> FieldType for Keyword<T> {
    type Value = T;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut T) {
        let allowed = format!("one of {}", listed(&self.words()));
        read_scalar(reader, node, &allowed, value, |text| self.parse(text));
    }

    fn show(&self, value: &T) -> DumpValue {
        let word = self.0.iter().find(|(_, known)| known == value).map(|(word, _)| (*word).to_owned());
        word.map_or(DumpValue::Null, DumpValue::Text)
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "enum": self.words() }))
    }
}

/// A text that is not empty.
pub(super) struct Text;

impl FieldType for Text {
    type Value = String;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut String) {
        read_scalar(reader, node, "text that is not empty", value, |text| match text.trim() {
            "" => Err("the text is empty".into()),
            _ => Ok(text.to_owned()),
        });
    }

    fn show(&self, value: &String) -> DumpValue {
        DumpValue::Text(value.clone())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

/// An absolute path.
pub(super) struct FilePath;

impl FieldType for FilePath {
    type Value = PathBuf;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut PathBuf) {
        read_scalar(reader, node, "an absolute path, such as /var/lib/reset-collector", value, |text| {
            let is_path = text.starts_with('/') && !text.contains('\0');
            if is_path { Ok(text.into()) } else { Err(format!("`{}` is not an absolute path", shortened(text))) }
        });
    }

    fn show(&self, value: &PathBuf) -> DumpValue {
        DumpValue::Text(value.display().to_string())
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "string", "pattern": "^/" }))
    }
}

/// An address and port to listen on.
pub(super) struct ListenAddress;

impl FieldType for ListenAddress {
    type Value = SocketAddr;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut SocketAddr) {
        let allowed = "an IP address and a port, such as 127.0.0.1:4317, 0.0.0.0:4317 or \"[::]:4317\"";
        read_scalar(reader, node, allowed, value, |text| {
            let numeric = match text.strip_prefix("localhost:") {
                Some(port) => format!("127.0.0.1:{port}"),
                None => text.to_owned(),
            };
            numeric.parse().map_err(|_| format!("invalid listen address `{}`", shortened(text)))
        });
    }

    fn show(&self, value: &SocketAddr) -> DumpValue {
        DumpValue::Text(value.to_string())
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "string", "pattern": "^(localhost|[0-9.]+|\\[[0-9a-fA-F:.%]+\\]):[0-9]{1,5}$" }))
    }
}
