//! A match: attributes by their exported names with what they must be; `not`, `any` and `all` of further matches.

use std::net::IpAddr;

use serde_json::{Value as Json, json};

use super::{
    codec::{Shown, parse_duration, parse_size},
    reader::{Reader, Scalar, listed, nearest, shortened},
    tree::NodeId,
};
use crate::{
    attribute::Attribute,
    filter::{Condition, End, FactSets, IPV4, IPV6, Network, Numbers, Pattern, Ports, ResourceTest},
    reset::{Cause, Direction, Origin, State, TraceMethod},
};

/// Matches in each other at most.
const MAX_NESTED: usize = 8;

/// Resource attributes that resets often have: a name that is nearly one of them is doubted.
const KNOWN_RESOURCE: &[&str] = &[
    "container.id",
    "container.name",
    "deployment.environment.name",
    "host.id",
    "host.name",
    "k8s.cluster.name",
    "k8s.container.name",
    "k8s.daemonset.name",
    "k8s.deployment.name",
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.statefulset.name",
    "process.command_args",
    "process.creation.time",
    "process.executable.name",
    "process.executable.path",
    "process.pid",
    "service.instance.id",
    "service.name",
    "service.namespace",
    "service.version",
];

/// Names that begin so are the record's, so that a mistyped one is not taken for a resource attribute.
const RECORD_NAMESPACES: &[&str] = &["tcp.", "network.", "source.", "destination.", "error.", "client.", "server."];

/// What an attribute's name stands for.
pub(super) enum Named {
    /// An attribute of the record.
    Record(Attribute),
    /// An attribute of the resource, by its name.
    Resource,
}

/// What a name stands for; `None`, with an error said, where it can be nothing.
pub(super) fn attribute(reader: &mut Reader<'_>, node: NodeId, name: &str) -> Option<Named> {
    if let Some(attribute) = Attribute::from_name(name) {
        return Some(Named::Record(attribute));
    }
    let names = || Attribute::ALL.iter().map(|attribute| attribute.name());
    let last_part = |known: &&str| known.rsplit('.').next() == Some(name);
    let meant = names().chain(KNOWN_RESOURCE.iter().copied()).find(last_part);
    let is_of_record = RECORD_NAMESPACES.iter().any(|namespace| name.starts_with(namespace));
    if is_of_record || meant.is_some() || name.is_empty() {
        let allowed = match meant.or_else(|| nearest(name, names())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("any resource attribute, or one of {}", listed(&names().collect::<Vec<_>>())),
        };
        reader.error(node, format!("a reset has no attribute `{}`", shortened(name)), allowed);
        return None;
    }
    if !KNOWN_RESOURCE.contains(&name)
        && let Some(near) = nearest(name, KNOWN_RESOURCE.iter().copied().chain(names()))
    {
        let message = format!("`{}` is taken for a resource attribute of that name", shortened(name));
        reader.warning(node, message, format!("did you mean `{near}`?"));
    }
    Some(Named::Resource)
}

/// Reads a match; `None`, with errors said, where something is wrong or it can never match.
pub(super) fn read_match(reader: &mut Reader<'_>, node: NodeId) -> Option<Condition> {
    let condition = read_nested(reader, node, 0)?;
    if condition.clone().simplified().is_never() {
        reader.error(node, "no reset can ever match this", "conditions that can hold together");
        return None;
    }
    Some(condition)
}

fn read_nested(reader: &mut Reader<'_>, node: NodeId, depth: usize) -> Option<Condition> {
    if depth > MAX_NESTED {
        reader.error(node, format!("matches stand in each other more than {MAX_NESTED} deep"), "a flatter match");
        return None;
    }
    let Some(entries) = reader.mapping(node) else {
        let allowed = "attributes and values, as { tcp.reset.cause: port_closed }; {} matches every reset";
        reader.error(node, "a match is a mapping", allowed);
        return None;
    };
    let mut parts = Vec::new();
    for (name, key, value) in entries {
        parts.extend(reader.within(name, |reader| match name {
            "not" => read_nested(reader, value, depth + 1).map(|inner| Condition::Not(Box::new(inner))),
            "any" => read_list(reader, value, depth).map(Condition::Any),
            "all" => read_list(reader, value, depth).map(Condition::All),
            name => match attribute(reader, key, name)? {
                Named::Record(attribute) => read_record_test(reader, value, attribute),
                Named::Resource => read_resource_test(reader, value, name),
            },
        }));
    }
    // A part that could not be read leaves no match: without it, the rest would match too much.
    let is_whole = reader.mapping(node).is_some_and(|entries| entries.count() == parts.len());
    is_whole.then_some(Condition::All(parts))
}

fn read_list(reader: &mut Reader<'_>, node: NodeId, depth: usize) -> Option<Vec<Condition>> {
    let allowed = "a list of matches: [{ tcp.reset.cause: port_closed }, { ... }]";
    let items = match reader.list(node) {
        Some([]) => {
            reader.error(node, "the list is empty", allowed);
            return None;
        }
        Some(items) => items,
        None => {
            reader.error(node, "a list of matches is wanted here", allowed);
            return None;
        }
    };
    let mut parts = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        parts.extend(reader.within(&format!("[{index}]"), |reader| read_nested(reader, *item, depth + 1)));
    }
    (parts.len() == items.len()).then_some(parts)
}

fn read_record_test(reader: &mut Reader<'_>, node: NodeId, attribute: Attribute) -> Option<Condition> {
    use Attribute as A;
    match attribute {
        A::Cause | A::Origin | A::Direction | A::ConnectionState | A::NetworkType | A::Transport => {
            read_facts(reader, node, &fact_words(attribute)).map(Condition::Facts)
        }
        A::LocalAddress => read_address(reader, node, End::Local),
        A::PeerAddress => read_address(reader, node, End::Peer),
        A::SourceAddress => read_address(reader, node, End::Source),
        A::DestinationAddress => read_address(reader, node, End::Destination),
        A::LocalPort => read_ports(reader, node, End::Local),
        A::PeerPort => read_ports(reader, node, End::Peer),
        A::SourcePort => read_ports(reader, node, End::Source),
        A::DestinationPort => read_ports(reader, node, End::Destination),
        A::BytesSent | A::BytesReceived | A::UnreadBytes | A::UnsentBytes | A::UnackedBytes => read_number(
            reader,
            node,
            attribute,
            "a number of bytes, as 0 or 4KiB, a range \"1-100\", or { gte: 1 }",
            |text| parse_size(text).map(|bytes| bytes as f64),
        ),
        A::SmoothedRtt | A::Duration => {
            read_number(reader, node, attribute, "a time, as 200ms or 0.2 (s), or { gte: 1s, lt: 1m }", |text| {
                parse_duration(text).map(|time| time.as_secs_f64()).or_else(|| parse_number(text))
            })
        }
        A::Retransmits | A::NetworkNamespace => {
            read_number(reader, node, attribute, "a number, a range \"1-100\", or { gte: 1 }", parse_number)
        }
        A::Reason => {
            let patterns =
                read_patterns(reader, node, "names of the kernel's reasons, as NO_SOCKET or \"TCP_ABORT_*\"")?;
            if patterns.iter().any(|pattern| pattern.to_string().contains(|c: char| c.is_ascii_lowercase())) {
                reader.warning(node, "the kernel's reasons are written in capitals", "NO_SOCKET; `explain` lists them");
            }
            Some(Condition::Text { attribute, patterns })
        }
        A::ErrorType => read_words(reader, node, attribute, &["connection_refused", "connection_reset", "timed_out"]),
        A::TraceMethod => {
            let methods = [TraceMethod::Wire, TraceMethod::Span, TraceMethod::Thread, TraceMethod::Ambiguous];
            read_words(reader, node, attribute, &methods.map(TraceMethod::word))
        }
        A::SampleWeight => {
            reader.error(node, "the weight is known only after filters and sampling", "another attribute");
            None
        }
    }
}

/// The words of an attribute of a closed list, each with the resets that have it.
fn fact_words(attribute: Attribute) -> Vec<(&'static str, FactSets)> {
    let all = FactSets::ALL;
    match attribute {
        Attribute::Cause => {
            Cause::ALL.iter().map(|cause| (cause.word(), FactSets { causes: 1 << *cause as u32, ..all })).collect()
        }
        Attribute::Origin => {
            Origin::ALL.iter().map(|origin| (origin.word(), FactSets { origins: 1 << *origin as u8, ..all })).collect()
        }
        Attribute::Direction => Direction::ALL
            .iter()
            .map(|direction| (direction.word(), FactSets { directions: 1 << *direction as u8, ..all }))
            .collect(),
        Attribute::ConnectionState => {
            State::ALL.iter().map(|state| (state.word(), FactSets { states: 1 << *state as u16, ..all })).collect()
        }
        Attribute::NetworkType => {
            vec![("ipv4", FactSets { ip_versions: IPV4, ..all }), ("ipv6", FactSets { ip_versions: IPV6, ..all })]
        }
        _ => vec![("tcp", all)],
    }
}

fn read_facts(reader: &mut Reader<'_>, node: NodeId, words: &[(&'static str, FactSets)]) -> Option<FactSets> {
    let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let mut union: Option<FactSets> = None;
    read_values(reader, node, &format!("one or a list of {}", listed(&names)), |value| {
        let pattern = text_pattern(&value.text)?;
        let matched = words.iter().filter(|(word, _)| pattern.matches(word));
        let found = matched.map(|(_, sets)| *sets).reduce(FactSets::union);
        let found = found.ok_or_else(|| unknown_word(value, &names))?;
        union = Some(union.map_or(found, |union| union.union(found)));
        Ok(())
    })?;
    union
}

fn unknown_word(value: &Scalar<'_>, names: &[&str]) -> String {
    match nearest(&value.text, names.iter().copied()) {
        Some(near) => format!("`{}` is not known here, did you mean `{near}`?", value.shown()),
        None => format!("`{}` is not known here", value.shown()),
    }
}

fn read_words(reader: &mut Reader<'_>, node: NodeId, attribute: Attribute, words: &[&str]) -> Option<Condition> {
    let mut patterns = Vec::new();
    read_values(reader, node, &format!("one or a list of {}", listed(words)), |value| {
        let pattern = text_pattern(&value.text)?;
        if !words.iter().any(|word| pattern.matches(word)) {
            return Err(unknown_word(value, words));
        }
        patterns.push(pattern);
        Ok(())
    })?;
    Some(Condition::Text { attribute, patterns })
}

/// Reads one value or each of a list; `None`, with errors said, where one of them is wrong or there is none.
fn read_values(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    mut read: impl FnMut(&Scalar<'_>) -> Result<(), String>,
) -> Option<()> {
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        let scalar = reader.scalar(node, allowed)?;
        if scalar.is_null() {
            reader.error(node, "there is no value", allowed);
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
    let Some(items) = reader.list(node) else { return read(reader, node) };
    if items.is_empty() {
        reader.error(node, "the list is empty: nothing could match", allowed);
        return None;
    }
    let mut is_whole = true;
    for (index, item) in items.iter().enumerate() {
        is_whole &= reader.within(&format!("[{index}]"), |reader| read(reader, *item)).is_some();
    }
    is_whole.then_some(())
}

/// A glob; an error for what was meant as a regular expression.
fn text_pattern(text: &str) -> Result<Pattern, String> {
    let is_grouped = text.contains('(') && text.contains('|') && text.contains(')');
    let is_class = ["\\d", "\\w", "\\s", "\\b", "[a-", "[A-", "[0-", "[^"].iter().any(|class| text.contains(class));
    if text.starts_with('^') || (text.ends_with('$') && !text.ends_with("\\$")) || is_grouped || is_class {
        return Err(format!(
            "`{}` looks like a regular expression: patterns are globs, * for any text, ? for one character",
            shortened(text)
        ));
    }
    Ok(Pattern::new(text))
}

fn read_patterns(reader: &mut Reader<'_>, node: NodeId, allowed: &str) -> Option<Vec<Pattern>> {
    let mut patterns = Vec::new();
    read_values(reader, node, allowed, |value| {
        patterns.push(text_pattern(&value.text)?);
        Ok(())
    })?;
    Some(patterns)
}

fn read_resource_test(reader: &mut Reader<'_>, node: NodeId, name: &str) -> Option<Condition> {
    let allowed = "a text, a glob as \"checkout*\", a number, a list of them, or { gte: 1, lt: 10 }";
    let (mut patterns, mut ranges) = (Vec::new(), Vec::new());
    read_values_or_ranges(reader, node, allowed, &mut |reader, node| {
        if reader.mapping(node).is_some() {
            ranges.push(read_range(reader, node, allowed, &parse_number)?);
            return Some(());
        }
        let scalar = reader.scalar(node, allowed)?;
        if scalar.is_null() {
            let allowed = format!("not: {{ {name}: \"*\" }} matches where it is not known");
            reader.error(node, "there is no value", allowed);
            return None;
        }
        let pattern = text_pattern(&scalar.text).map_err(|message| reader.error(node, message, allowed)).ok()?;
        if scalar.text.contains(".*") {
            let message = format!("`{}` has `.*`: a glob needs a dot there", scalar.shown());
            reader.warning(node, message, "`*` alone for any text");
        }
        patterns.push(pattern);
        Some(())
    })?;
    Some(Condition::Resource(ResourceTest::new(name, patterns, ranges)))
}

fn read_address(reader: &mut Reader<'_>, node: NodeId, end: End) -> Option<Condition> {
    let allowed = "an address or a network, as 10.0.0.7, 10.0.0.0/8 or \"fd00::/8\", or a list of them";
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
        Err(_) if is_range => return Err("is a range: write the networks that it is made of".into()),
        Err(_) if text.contains(['*', '?']) => return Err("is a pattern: addresses are matched by networks".into()),
        Err(_) => return Err("is neither an address nor a network".into()),
    };
    let width = if parsed.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => width,
        Some(prefix) => prefix.parse().map_err(|_| format!("has no prefix length from 0 to {width}"))?,
    };
    let network = Network::new(parsed, prefix).ok_or_else(|| format!("has no prefix length from 0 to {width}"))?;
    let is_base = network.base() == parsed.to_canonical();
    if is_base { Ok(network) } else { Err(format!("has bits after its prefix: did you mean {network} or {parsed}?")) }
}

fn read_ports(reader: &mut Reader<'_>, node: NodeId, end: End) -> Option<Condition> {
    let allowed = "a port, a range as \"8000-8999\", a list of them, or { gte: 8000, lt: 9000 }";
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
                "no port is in this range",
                "a range whose end is not below its start, within 0 to 65535",
            );
            return None;
        }
        Some(())
    })?;
    Some(Condition::Port { end, ports: Ports::new(ranges) })
}

fn parse_port(text: &str) -> Option<f64> {
    text.trim().parse::<u16>().ok().map(f64::from)
}

fn parse_number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|number| number.is_finite())
}

/// One number, or a range `low-high` with both ends inside.
fn parse_numbers(text: &str, parse: &dyn Fn(&str) -> Option<f64>) -> Result<Numbers, &'static str> {
    if let Some(number) = parse(text) {
        return Ok(Numbers::one(number));
    }
    let ends = text.split_once('-').and_then(|(low, high)| Some((parse(low.trim())?, parse(high.trim())?)));
    let (low, high) = ends.ok_or("is not a number or a range within what is allowed")?;
    let range = Numbers { low, high, low_inside: true, high_inside: true };
    if range.is_empty() { Err("is empty: its end is below its start") } else { Ok(range) }
}

fn read_number(
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
) -> Option<Numbers> {
    let found = reader.entries(
        node,
        &["gte", "gt", "lte", "lt"],
        &[("not", "not: { attribute: value }, around the attribute")],
    )?;
    let mut range = Numbers::ALL;
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
    let is_doubled = found[0].is_some() && found[1].is_some() || found[2].is_some() && found[3].is_some();
    if range == Numbers::ALL || is_doubled {
        reader.error(node, "a range has one lower end, one upper end, or both", "{ gte: 1, lt: 10 }");
        return None;
    }
    if range.is_empty() {
        reader.error(node, "the range is empty: no number is in it", "an upper end above the lower end");
        return None;
    }
    Some(range)
}

/// A match as a file would have it.
pub(super) fn show_match(condition: &Condition) -> Shown {
    let parts = match condition {
        Condition::All(parts) => parts.iter().map(show_entries).collect(),
        other => vec![show_entries(other)],
    };
    let mut entries: Vec<(String, Shown)> = Vec::new();
    let mut others = Vec::new();
    for part in parts {
        let is_new = part.iter().all(|(key, _)| entries.iter().all(|(known, _)| known != key));
        if is_new { entries.extend(part) } else { others.push(Shown::Map(part)) }
    }
    if !others.is_empty() {
        entries.push(("all".into(), Shown::List(others)));
    }
    Shown::Map(entries)
}

fn show_entries(condition: &Condition) -> Vec<(String, Shown)> {
    let (name, values) = match condition {
        Condition::All(_) => return vec![("all".into(), Shown::List(vec![show_match(condition)]))],
        Condition::Any(parts) => return vec![("any".into(), Shown::List(parts.iter().map(show_match).collect()))],
        Condition::Not(inner) => return vec![("not".into(), show_match(inner))],
        Condition::Facts(sets) => return show_facts(*sets),
        Condition::Port { end, ports } => {
            (port_attribute(*end).name(), ports.ranges().iter().map(show_ports).collect())
        }
        Condition::Address { end, networks } => {
            let texts = networks.iter().map(|network| Shown::Text(network.to_string()));
            (address_attribute(*end).name(), texts.collect())
        }
        Condition::Number { attribute, ranges } => (attribute.name(), ranges.iter().map(show_range).collect()),
        Condition::Text { attribute, patterns } => (attribute.name(), show_patterns(patterns).collect()),
        Condition::Resource(test) => {
            (&*test.name, show_patterns(&test.patterns).chain(test.ranges.iter().map(show_range)).collect())
        }
    };
    vec![(name.to_owned(), one_or_list(values))]
}

fn one_or_list(mut values: Vec<Shown>) -> Shown {
    if values.len() == 1 { values.remove(0) } else { Shown::List(values) }
}

/// An entry for each list of facts that is not whole.
fn show_facts(sets: FactSets) -> Vec<(String, Shown)> {
    use Attribute as A;
    let attributes = [A::Cause, A::Origin, A::Direction, A::ConnectionState, A::NetworkType];
    let entries = attributes.into_iter().filter_map(|attribute| {
        let words = fact_words(attribute);
        // Two words share nothing of their own list and all of the others.
        let others = words.iter().map(|(_, word)| *word).reduce(FactSets::intersection)?;
        let own = sets.union(others);
        let chosen = words.iter().filter(|(_, word)| !word.intersection(own).is_empty());
        let chosen: Vec<_> = chosen.map(|(word, _)| Shown::Text((*word).to_owned())).collect();
        (own != FactSets::ALL).then(|| (attribute.name().to_owned(), one_or_list(chosen)))
    });
    entries.collect()
}

fn port_attribute(end: End) -> Attribute {
    match end {
        End::Local => Attribute::LocalPort,
        End::Peer => Attribute::PeerPort,
        End::Source => Attribute::SourcePort,
        End::Destination => Attribute::DestinationPort,
    }
}

fn address_attribute(end: End) -> Attribute {
    match end {
        End::Local => Attribute::LocalAddress,
        End::Peer => Attribute::PeerAddress,
        End::Source => Attribute::SourceAddress,
        End::Destination => Attribute::DestinationAddress,
    }
}

fn show_ports((low, high): &(u16, u16)) -> Shown {
    if low == high { Shown::Integer(u64::from(*low)) } else { Shown::Text(format!("{low}-{high}")) }
}

fn show_patterns(patterns: &[Pattern]) -> impl Iterator<Item = Shown> {
    patterns.iter().map(|pattern| Shown::Text(pattern.to_string()))
}

fn show_range(range: &Numbers) -> Shown {
    if range.low == range.high {
        return Shown::Float(range.low);
    }
    let ends = [
        (if range.low_inside { "gte" } else { "gt" }, range.low),
        (if range.high_inside { "lte" } else { "lt" }, range.high),
    ];
    let finite = ends.into_iter().filter(|(_, end)| end.is_finite());
    Shown::Map(finite.map(|(name, end)| (name.to_owned(), Shown::Float(end))).collect())
}

/// The schema that `#/$defs/match` names.
pub(super) fn definition() -> Json {
    let value = json!({ "type": ["string", "number"] });
    let end = json!({ "type": ["string", "number"] });
    let range = json!({ "type": "object", "properties": { "gte": end, "gt": end, "lte": end, "lt": end },
        "minProperties": 1, "additionalProperties": false });
    let values = |one: Json| json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] });
    let any_value = values(json!({ "anyOf": [value, range] }));
    let mut properties = serde_json::Map::new();
    for attribute in Attribute::ALL {
        let mut schema = match attribute {
            Attribute::SampleWeight => continue,
            Attribute::Cause
            | Attribute::Origin
            | Attribute::Direction
            | Attribute::ConnectionState
            | Attribute::NetworkType => {
                let words: Vec<_> = fact_words(*attribute).into_iter().map(|(word, _)| word).collect();
                values(json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": "[*?$]" }] }))
            }
            _ => any_value.clone(),
        };
        schema["description"] = attribute.meaning().into();
        properties.insert(attribute.name().into(), schema);
    }
    for name in KNOWN_RESOURCE {
        properties.insert((*name).into(), any_value.clone());
    }
    let nested = json!({ "$ref": "#/$defs/match" });
    properties.insert("not".into(), nested.clone());
    properties.insert("any".into(), json!({ "type": "array", "items": nested, "minItems": 1 }));
    properties.insert("all".into(), json!({ "type": "array", "items": nested, "minItems": 1 }));
    json!({
        "description": "Attributes by their exported names, all of which must match; any resource attribute is allowed.",
        "type": "object",
        "properties": properties,
        "propertyNames": { "not": { "pattern": "^(client|server)\\." } },
        "additionalProperties": any_value,
    })
}
