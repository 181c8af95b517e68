//! The values in a match: texts and patterns, numbers and ranges, ports, addresses and networks.

use std::net::IpAddr;

use crate::config::{
    reader::{Reader, Scalar, shortened},
    yaml::NodeId,
};
use crate::{
    filter::{Condition, Network, NumberRange, Pattern, Ports, ResourceTest, Side},
    model::attribute::Attribute,
};

/// Reads one value or each of a list; reports errors and returns `None` where one is invalid or missing.
pub(super) fn read_values(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    mut read: impl FnMut(&Scalar<'_>) -> Result<(), String>,
) -> Option<()> {
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        let scalar = reader.scalar(node, allowed)?;
        if scalar.is_null() {
            reader.error(node, "missing value", allowed);
            return None;
        }
        read(&scalar).map_err(|message| reader.error(node, message, allowed)).ok()
    })
}

fn read_values_or_ranges(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    read: &mut dyn FnMut(&mut Reader<'_>, NodeId) -> Option<()>,
) -> Option<()> {
    let read = &mut |reader: &mut Reader<'_>, node| {
        let mut keys = reader.mapping(node).into_iter().flatten().map(|(key, ..)| key);
        if keys.any(|key| matches!(key, "regex" | "regexp" | "pattern")) {
            let allowed = "text with * for any text and ? for one character";
            reader.error(node, "regular expressions are not supported", allowed);
            return None;
        }
        read(reader, node)
    };
    let Some(items) = reader.list(node) else { return read(reader, node) };
    if items.is_empty() {
        reader.error(node, "empty list: it would match nothing", allowed);
        return None;
    }
    let mut is_whole = true;
    for (index, item) in items.iter().enumerate() {
        is_whole &= reader.within(&format!("[{index}]"), |reader| read(reader, *item)).is_some();
    }
    is_whole.then_some(())
}

/// A pattern; an error for what looks like a regular expression.
pub(super) fn text_pattern(text: &str) -> Result<Pattern, String> {
    let is_grouped = text.contains('(') && text.contains('|') && text.contains(')');
    let is_class = ["\\d", "\\w", "\\s", "\\b", "[a-", "[A-", "[0-", "[^"].iter().any(|class| text.contains(class));
    if text.starts_with('^') || (text.ends_with('$') && !text.ends_with("\\$")) || is_grouped || is_class {
        return Err(format!(
            "`{}` looks like a regular expression, which is not supported: use * for any text and ? for one character",
            shortened(text)
        ));
    }
    Ok(Pattern::new(text))
}

pub(super) fn read_patterns(reader: &mut Reader<'_>, node: NodeId, allowed: &str) -> Option<Vec<Pattern>> {
    let mut patterns = Vec::new();
    read_values(reader, node, allowed, |value| {
        patterns.push(text_pattern(&value.text)?);
        Ok(())
    })?;
    Some(patterns)
}

pub(super) fn read_resource_test(reader: &mut Reader<'_>, node: NodeId, name: &str) -> Option<Condition> {
    let allowed = "text, a pattern such as \"checkout*\", a number, a list of them, or { gte: 1, lt: 10 }";
    let (mut patterns, mut ranges) = (Vec::new(), Vec::new());
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        if reader.mapping(node).is_some() {
            ranges.push(read_range(reader, node, allowed, &parse_number)?);
            return Some(());
        }
        let scalar = reader.scalar(node, allowed)?;
        if scalar.is_null() {
            let allowed = format!("not: {{ {name}: \"*\" }} matches where it is unknown");
            reader.error(node, "missing value", allowed);
            return None;
        }
        let pattern = text_pattern(&scalar.text).map_err(|message| reader.error(node, message, allowed)).ok()?;
        if scalar.text.contains(".*") {
            let message = format!("`{}` contains `.*`, which matches a dot and any text", scalar.shown());
            reader.warning(node, message, "`*` alone matches any text");
        }
        patterns.push(pattern);
        Some(())
    })?;
    Some(Condition::Resource(ResourceTest::new(name, patterns, ranges)))
}

pub(super) fn read_address(reader: &mut Reader<'_>, node: NodeId, end: Side) -> Option<Condition> {
    let allowed = "an address or a network, such as 10.0.0.7, 10.0.0.0/8 or \"fd00::/8\", or a list of them";
    let mut networks = Vec::new();
    read_values(reader, node, allowed, |value| {
        networks.push(parse_network(&value.text).map_err(|what| format!("`{}` {what}", value.shown()))?);
        Ok(())
    })?;
    Some(Condition::Address { end, networks })
}

fn parse_network(text: &str) -> Result<Network, String> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let is_range = text.matches('-').count() == 1 && text.split('-').all(|end| end.parse::<IpAddr>().is_ok());
    let parsed: IpAddr = match address.parse() {
        Ok(parsed) => parsed,
        Err(_) if is_range => return Err("is a range: write it as networks".into()),
        Err(_) if text.contains(['*', '?']) => return Err("is a pattern: use networks to match addresses".into()),
        Err(_) => return Err("is not an address or network".into()),
    };
    let width = if parsed.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => width,
        Some(prefix) => prefix.parse().map_err(|_| format!("has no prefix length from 0 to {width}"))?,
    };
    let network = Network::new(parsed, prefix).ok_or_else(|| format!("has no prefix length from 0 to {width}"))?;
    let is_base = network.base() == parsed.to_canonical();
    if is_base { Ok(network) } else { Err(format!("has host bits set: did you mean {network} or {parsed}?")) }
}

pub(super) fn read_ports(reader: &mut Reader<'_>, node: NodeId) -> Option<Ports> {
    let allowed = "a port, a range such as \"8000-8999\", a list of them, or { gte: 8000, lt: 9000 }";
    let mut ranges = Vec::new();
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        let range = if reader.mapping(node).is_some() {
            read_range(reader, node, allowed, &parse_number)?
        } else {
            let scalar = reader.scalar(node, allowed)?;
            let parsed =
                parse_numbers(&scalar.text, &parse_port).map_err(|what| format!("`{}` {what}", scalar.shown()));
            parsed.map_err(|message| reader.error(node, message, allowed)).ok()?
        };
        let low = if range.low_inside { range.low.ceil() } else { range.low.floor() + 1.0 };
        let high = if range.high_inside { range.high.floor() } else { range.high.ceil() - 1.0 };
        // Casts of floats stop at the ends of u16, and infinite ends are meant to.
        ranges.push((low as u16, high as u16));
        if low > high || low > f64::from(u16::MAX) || high < 0.0 {
            reader.error(
                node,
                "empty range: it contains no port",
                "a range within 0 to 65535 whose end is not below its start",
            );
            return None;
        }
        Some(())
    })?;
    Some(Ports::new(ranges))
}

fn parse_port(text: &str) -> Option<f64> {
    text.trim().parse::<u16>().ok().map(f64::from)
}

pub(super) fn parse_number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|number| number.is_finite())
}

/// One number, or a range `low-high` with both ends inside.
fn parse_numbers(text: &str, parse: &dyn Fn(&str) -> Option<f64>) -> Result<NumberRange, &'static str> {
    if let Some(number) = parse(text) {
        return Ok(NumberRange::one(number));
    }
    let ends = text.split_once('-').and_then(|(low, high)| Some((parse(low.trim())?, parse(high.trim())?)));
    let (low, high) = ends.ok_or("is not valid")?;
    let range = NumberRange { low, high, low_inside: true, high_inside: true };
    if range.is_empty() { Err("is empty: its end is below its start") } else { Ok(range) }
}

pub(super) fn read_number(
    reader: &mut Reader<'_>,
    node: NodeId,
    attribute: Attribute,
    allowed: &str,
    parse: impl Fn(&str) -> Option<f64>,
) -> Option<Condition> {
    let mut ranges = Vec::new();
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        if reader.mapping(node).is_some() {
            ranges.push(read_range(reader, node, allowed, &parse)?);
            return Some(());
        }
        let scalar = reader.scalar(node, allowed)?;
        let parsed = parse_numbers(&scalar.text, &parse).map_err(|what| format!("`{}` {what}", scalar.shown()));
        ranges.push(parsed.map_err(|message| reader.error(node, message, allowed)).ok()?);
        Some(())
    })?;
    Some(Condition::Number { attribute, ranges })
}

/// `{ gte: 1, lt: 10 }`
fn read_range(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    parse: &dyn Fn(&str) -> Option<f64>,
) -> Option<NumberRange> {
    let before = reader.error_count();
    let found = reader.entries(
        node,
        &["gte", "gt", "lte", "lt"],
        &[
            ("not", "write not: { attribute: value }, around the attribute"),
            ("eq", "write the value alone"),
            ("in", "write a list of values"),
        ],
    )?;
    let mut range = NumberRange::ALL;
    for (at, node) in found.iter().enumerate().filter_map(|(at, node)| Some((at, (*node)?))) {
        let scalar = reader.scalar(node, allowed)?;
        let Some(number) = parse(&scalar.text) else {
            reader.error(node, format!("`{}` is not a number", scalar.shown()), allowed);
            return None;
        };
        if at < 2 {
            (range.low, range.low_inside) = (number, at == 0);
        } else {
            (range.high, range.high_inside) = (number, at == 2);
        }
    }
    if reader.error_count() > before {
        return None;
    }
    let is_doubled = found[0].is_some() && found[1].is_some() || found[2].is_some() && found[3].is_some();
    if range == NumberRange::ALL || is_doubled {
        reader.error(node, "a range has a lower bound, an upper bound, or both", "{ gte: 1, lt: 10 }");
        return None;
    }
    if range.is_empty() {
        reader.error(node, "empty range: it contains no number", "an upper bound above the lower bound");
        return None;
    }
    Some(range)
}
