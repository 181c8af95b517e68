//! Matches as a file would have them, and the JSON Schema of what a file may have.

use serde_json::{Value as Json, json};

use crate::config::{
    field_types::DumpValue,
    matching::{KNOWN_RESOURCE, fact_words},
};
use crate::{
    filter::{Condition, EnumSets, NumberRange, Pattern, Side},
    model::attribute::Attribute,
};

/// A match as a file would have it.
pub(super) fn show_match(condition: &Condition) -> DumpValue {
    let parts = match condition {
        Condition::All(parts) => parts.iter().map(show_entries).collect(),
        other => vec![show_entries(other)],
    };
    let mut entries: Vec<(String, DumpValue)> = Vec::new();
    let mut others = Vec::new();
    for part in parts {
        let is_new = part.iter().all(|(key, _)| entries.iter().all(|(known, _)| known != key));
        if is_new { entries.extend(part) } else { others.push(DumpValue::Map(part)) }
    }
    if !others.is_empty() {
        entries.push(("all".into(), DumpValue::List(others)));
    }
    DumpValue::Map(entries)
}

fn show_entries(condition: &Condition) -> Vec<(String, DumpValue)> {
    let (name, values) = match condition {
        Condition::All(_) => return vec![("all".into(), DumpValue::List(vec![show_match(condition)]))],
        Condition::Any(parts) => return vec![("any".into(), DumpValue::List(parts.iter().map(show_match).collect()))],
        Condition::Not(inner) => return vec![("not".into(), show_match(inner))],
        Condition::Facts(sets) => return show_facts(*sets),
        Condition::Port { end, ports } => {
            (port_attribute(*end).name(), ports.ranges().iter().map(show_ports).collect())
        }
        Condition::Address { end, networks } => {
            let texts = networks.iter().map(|network| DumpValue::Text(network.to_string()));
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

fn one_or_list(mut values: Vec<DumpValue>) -> DumpValue {
    if values.len() == 1 { values.remove(0) } else { DumpValue::List(values) }
}

/// An entry for each list of facts that is not whole.
fn show_facts(sets: EnumSets) -> Vec<(String, DumpValue)> {
    use Attribute as A;
    let attributes = [A::Cause, A::Origin, A::Direction, A::ConnectionState, A::NetworkType];
    let entries = attributes.into_iter().filter_map(|attribute| {
        let words = fact_words(attribute);
        // Two words share nothing of their own list and all of the others.
        let others = words.iter().map(|(_, word)| *word).reduce(EnumSets::intersection)?;
        let own = sets.union(others);
        let chosen = words.iter().filter(|(_, word)| !word.intersection(own).is_empty());
        let chosen: Vec<_> = chosen.map(|(word, _)| DumpValue::Text((*word).to_owned())).collect();
        (own != EnumSets::ALL).then(|| (attribute.name().to_owned(), one_or_list(chosen)))
    });
    entries.collect()
}

fn port_attribute(end: Side) -> Attribute {
    match end {
        Side::Local => Attribute::LocalPort,
        Side::Peer => Attribute::PeerPort,
    }
}

fn address_attribute(end: Side) -> Attribute {
    match end {
        Side::Local => Attribute::LocalAddress,
        Side::Peer => Attribute::PeerAddress,
    }
}

pub(super) fn show_ports((low, high): &(u16, u16)) -> DumpValue {
    if low == high { DumpValue::Integer(u64::from(*low)) } else { DumpValue::Text(format!("{low}-{high}")) }
}

fn show_patterns(patterns: &[Pattern]) -> impl Iterator<Item = DumpValue> {
    patterns.iter().map(|pattern| DumpValue::Text(pattern.to_string()))
}

fn show_range(range: &NumberRange) -> DumpValue {
    if range.low == range.high {
        return DumpValue::number(range.low);
    }
    let ends = [
        (if range.low_inside { "gte" } else { "gt" }, range.low),
        (if range.high_inside { "lte" } else { "lt" }, range.high),
    ];
    let finite = ends.into_iter().filter(|(_, end)| end.is_finite());
    DumpValue::Map(finite.map(|(name, end)| (name.to_owned(), DumpValue::number(end))).collect())
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
            Attribute::AdjustedCount => continue,
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
