//! `filters` and `sampling`: lists of rules, and what is wrong with rules among each other.

use serde_json::{Value as Json, json};

use crate::config::{
    dump::show_match,
    field_types::{Codec, Number, Shown, or_variable},
    matching::{self, read_match},
    reader::Reader,
    yaml::NodeId,
};
use crate::{
    filter::{self, Condition, Filters},
    model::attribute::Attribute,
    sampler::{self, Key, Limit, Rate, Ratio, Sampling},
};

/// Rules of one list at most: so many are still looked through in well under a millisecond.
const MAX_RULES: usize = 4_096;

/// `filters`
pub(super) struct FilterRules;

impl FilterRules {
    const ALLOWED: &'static str = "a list of rules: - drop: { tcp.reset.cause: port_closed } or - keep: { ... }";

    fn read_rule(reader: &mut Reader<'_>, node: NodeId) -> Option<filter::Rule> {
        if reader.mapping(node).is_none() {
            reader.error(node, "a rule is a mapping", "keep: { ... } or drop: { ... }");
            return None;
        }
        let elsewhere = &[("match", "keep: { ... } or drop: { ... }"), ("action", "keep: { ... } or drop: { ... }")];
        let before = reader.problem_count();
        let found = reader.entries(node, &["keep", "drop"], elsewhere)?;
        let (keep, key, condition) = match found.as_slice() {
            [Some(node), None] => (true, "keep", *node),
            [None, Some(node)] => (false, "drop", *node),
            [Some(_), Some(_)] => {
                reader.error(node, "a rule either keeps or drops", "two rules, in the order in which they are asked");
                return None;
            }
            // A key that is not known has been said to be.
            _ if reader.problem_count() > before => return None,
            _ => {
                reader.error(node, "the rule says neither keep nor drop", "keep: { ... } or drop: { ... }");
                return None;
            }
        };
        let condition = reader.within(key, |reader| read_match(reader, condition))?;
        Some(filter::Rule { keep, condition })
    }
}

impl Codec for FilterRules {
    type Value = Filters;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Filters) {
        let rules = read_rules(reader, node, Self::ALLOWED, Self::read_rule);
        say_shadowed(reader, "filters", &rules, |rule| &rule.condition);
        *value = Filters::new(rules.into_iter().map(|(_, rule)| rule).collect());
    }

    fn show(&self, value: &Filters) -> Shown {
        let rules = value.rules().iter().map(|rule| {
            let verdict = if rule.keep { "keep" } else { "drop" };
            Shown::Map(vec![(verdict.to_owned(), show_match(&rule.condition))])
        });
        Shown::List(rules.collect())
    }

    fn schema(&self) -> Json {
        let reference = json!({ "$ref": "#/$defs/match" });
        json!({ "type": ["array", "null"], "maxItems": MAX_RULES, "items": {
            "type": "object",
            "properties": { "keep": reference, "drop": reference },
            "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
        } })
    }
}

/// Each rule of a list with its node; those that are wrong are left out, with an error said.
fn read_rules<T>(
    reader: &mut Reader<'_>,
    node: NodeId,
    allowed: &str,
    mut read: impl FnMut(&mut Reader<'_>, NodeId) -> Option<T>,
) -> Vec<(RuleAt, T)> {
    if reader.is_null(node) {
        return Vec::new();
    }
    let Some(items) = reader.list(node) else {
        reader.error(node, "a list of rules is wanted here", allowed);
        return Vec::new();
    };
    if items.len() > MAX_RULES {
        let message = format!("{} rules are too many", items.len());
        reader.error(node, message, format!("at most {MAX_RULES}; one rule takes a list of values"));
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let rule = reader.within(&format!("[{index}]"), |reader| read(reader, *item));
        rules.extend(rule.map(|rule| (RuleAt { node: *item, index }, rule)));
    }
    rules
}

/// Where a rule stands.
struct RuleAt {
    node: NodeId,
    index: usize,
}

fn say_shadowed<T>(reader: &mut Reader<'_>, list: &str, rules: &[(RuleAt, T)], condition: impl Fn(&T) -> &Condition) {
    // Rules are compared as they are evaluated.
    let simplified: Vec<_> = rules.iter().map(|(_, rule)| condition(rule).clone().simplified()).collect();
    let conditions: Vec<_> = simplified.iter().collect();
    let (pairs, is_complete) = filter::shadowed(&conditions);
    for (earlier, later) in pairs {
        let (earlier, later) = (&rules[earlier].0, &rules[later].0);
        let message = format!("the rule can never decide: {list}[{}] matches all that it matches", earlier.index);
        reader.within(&format!("[{}]", later.index), |reader| {
            reader.error(later.node, message, "leave it out, or put it before the other rule");
        });
    }
    if let (false, Some((first, _))) = (is_complete, rules.first()) {
        let message = "the rules are too many and too long to look for some that can never decide";
        reader.warning(first.node, message, "fewer rules, each with a list of values");
    }
}

/// `sampling`
pub(super) struct SamplingRules;

const RATE_KEYS: &[&str] = &["ratio", "limit", "burst", "per"];

impl SamplingRules {
    const ALLOWED: &'static str = "a list of rules: - match: { ... }, with ratio: 0.05 or limit: 100";
    const KEYS: &'static [&'static str] = &["default", "rules"];

    fn read_rule(reader: &mut Reader<'_>, node: NodeId) -> Option<sampler::Rule> {
        if reader.mapping(node).is_none() {
            reader.error(node, "a rule is a mapping", "match: { ... }, with ratio: 0.05 or limit: 100");
            return None;
        }
        let keys = [&["match"], RATE_KEYS].concat();
        let found = reader.entries(node, &keys, &[("keep", "match: { ... }"), ("drop", "match: { ... }, ratio: 0")])?;
        let rate = read_rate(reader, node, &found[1..]);
        let Some(condition) = found[0] else {
            reader.error(node, "the rule does not say which resets it is for", "match: { ... }; {} is all");
            return None;
        };
        let condition = reader.within("match", |reader| read_match(reader, condition))?;
        Some(sampler::Rule { condition, rate: rate? })
    }
}

/// A rate from the nodes of [`RATE_KEYS`].
fn read_rate(reader: &mut Reader<'_>, node: NodeId, found: &[Option<NodeId>]) -> Option<Rate> {
    let &[ratio, limit, burst, per] = found else { return None };
    let number = |reader: &mut Reader<'_>, key: &str, node, min, max| {
        let before = reader.problem_count();
        let mut number = min;
        reader.within(key, |reader| Number { min, max }.read(reader, node, &mut number));
        (reader.problem_count() == before).then_some(number)
    };
    match (ratio, limit) {
        (Some(_), Some(_)) => {
            reader.error(node, "a rule has either a ratio or a limit", "two rules, or one of ratio and limit");
            None
        }
        (None, None) => {
            reader.error(node, "the rule does not say how many go on", "ratio: 0.05, or limit: 100");
            None
        }
        (Some(ratio), None) => {
            if let Some(other) = burst.or(per) {
                reader.error(other, "burst and per belong to a limit, and this is a ratio", "ratio alone");
            }
            number(reader, "ratio", ratio, 0.0, 1.0).and_then(Ratio::new).map(Rate::Ratio)
        }
        (None, Some(limit)) => {
            let per_second = number(reader, "limit", limit, 0.001, 1e9);
            let burst = match burst {
                Some(burst) => number(reader, "burst", burst, 1.0, 1e9),
                None => per_second.map(|per_second| per_second.max(1.0)),
            };
            let per = match per {
                Some(per) => reader.within("per", |reader| read_per(reader, per)),
                None => Some(Vec::new()),
            };
            Some(Rate::Limit(Limit { per_second: per_second?, burst: burst?, per: per? }))
        }
    }
}

fn read_per(reader: &mut Reader<'_>, node: NodeId) -> Option<Vec<Key>> {
    /// More do not tell resets apart any better.
    const MAX_ATTRIBUTES: usize = 8;
    let items = match reader.list(node) {
        Some(items) => items.to_vec(),
        None => vec![node],
    };
    if items.len() > MAX_ATTRIBUTES {
        reader.error(node, format!("{} attributes are too many", items.len()), format!("at most {MAX_ATTRIBUTES}"));
        return None;
    }
    let before = reader.problem_count();
    let mut keys = Vec::with_capacity(items.len());
    for item in items {
        let Some(name) = reader.scalar(item, "names of attributes: [network.peer.address, tcp.reset.cause]") else {
            continue;
        };
        match matching::attribute(reader, item, &name.text) {
            Some(matching::Named::Record(Attribute::SampleWeight)) => {
                reader.error(item, "the weight is known only after sampling", "another attribute");
            }
            Some(matching::Named::Record(attribute)) => keys.push(Key::Record(attribute)),
            Some(matching::Named::Resource) => keys.push(Key::Resource(name.text.as_ref().into())),
            None => {}
        }
    }
    (reader.problem_count() == before || !keys.is_empty()).then_some(keys)
}

impl Codec for SamplingRules {
    type Value = Sampling;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Sampling) {
        let Some(found) = reader.entries(node, Self::KEYS, &[("ratio", "default: { ratio: ... }")]) else { return };
        let mut default = Rate::default();
        if let Some(node) = found[0].filter(|node| !reader.is_null(*node)) {
            reader.within("default", |reader| {
                if let Some(found) = reader.entries(node, RATE_KEYS, &[])
                    && let Some(rate) = read_rate(reader, node, &found)
                {
                    default = rate;
                }
            });
        }
        let mut rules = Vec::new();
        if let Some(node) = found[1] {
            rules = reader.within("rules", |reader| {
                let rules = read_rules(reader, node, Self::ALLOWED, Self::read_rule);
                say_shadowed(reader, "sampling.rules", &rules, |rule| &rule.condition);
                rules
            });
        }
        *value = Sampling::new(default, rules.into_iter().map(|(_, rule)| rule).collect());
    }

    fn show(&self, value: &Sampling) -> Shown {
        let rules = value.rules().iter().map(|rule| {
            let mut entries = vec![("match".to_owned(), show_match(&rule.condition))];
            entries.extend(show_rate(&rule.rate));
            Shown::Map(entries)
        });
        let rules = Shown::List(rules.collect());
        Shown::Map(vec![("default".into(), Shown::Map(show_rate(&value.default))), ("rules".into(), rules)])
    }

    fn schema(&self) -> Json {
        let rate = json!({
            "ratio": or_variable(json!({ "type": "number", "minimum": 0, "maximum": 1,
                "description": "This share goes on, the same traces as OpenTelemetry's probability sampling keeps." })),
            "limit": or_variable(json!({ "type": "number", "minimum": 0.001, "maximum": 1e9,
                "description": "Records a second." })),
            "burst": or_variable(json!({ "type": "number", "minimum": 1, "maximum": 1e9,
                "description": "Records at once after quiet; as many as limit, unless given." })),
            "per": { "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "maxItems": 8 }],
                "description": "Attributes that the limit is kept for, each value of its own." },
        });
        let one_rate = json!([{ "required": ["ratio"] }, { "required": ["limit"] }]);
        let mut rule = rate.clone();
        rule["match"] = json!({ "$ref": "#/$defs/match" });
        json!({ "type": ["object", "null"], "additionalProperties": false, "properties": {
            "default": { "type": ["object", "null"], "properties": rate, "additionalProperties": false, "default": { "ratio": 1.0 },
                "description": "For resets that no rule matches." },
            "rules": { "type": ["array", "null"], "maxItems": MAX_RULES, "default": [],
                "description": "In order: the first that matches decides.",
                "items": { "type": "object", "properties": rule, "required": ["match"], "oneOf": one_rate,
                    "additionalProperties": false } },
        } })
    }
}

fn show_rate(rate: &Rate) -> Vec<(String, Shown)> {
    match rate {
        Rate::Ratio(ratio) => vec![("ratio".into(), Shown::Float(ratio.share()))],
        Rate::Limit(limit) => {
            let mut entries =
                vec![("limit".into(), Shown::number(limit.per_second)), ("burst".into(), Shown::number(limit.burst))];
            if !limit.per.is_empty() {
                let names = limit.per.iter().map(|key| match key {
                    Key::Record(attribute) => Shown::Text(attribute.name().to_owned()),
                    Key::Resource(name) => Shown::Text(name.to_string()),
                });
                entries.push(("per".into(), Shown::List(names.collect())));
            }
            entries
        }
    }
}
