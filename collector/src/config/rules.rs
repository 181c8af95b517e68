//! `filters` and `sampling`: lists of rules, and rules that are unreachable.

use serde_json::{Value as Json, json};

use crate::config::{
    dump::show_match,
    field_types::{DumpValue, FieldType, Number, or_variable},
    matching::{self, read_match},
    reader::{Hint, Reader},
    yaml::NodeId,
};
use crate::{
    filter::{self, Condition, Filters},
    model::attribute::Attribute,
    sampler::{self, Key, Rate, RateLimit, Ratio, Sampling},
};

/// Maximum number of rules in a list: evaluating this many takes well under a millisecond.
const MAX_RULES: usize = 4_096;

/// `filters`
pub(super) struct FilterRules;

impl FilterRules {
    const ALLOWED: &'static str = "a list of rules: - drop: { tcp.reset.cause: port_closed } or - keep: { ... }";

    fn read_rule(reader: &mut Reader<'_>, node: NodeId) -> Option<filter::Rule> {
        if reader.mapping(node).is_none() {
            reader.error(node, "expected a mapping", "keep: { ... } or drop: { ... }");
            return None;
        }
        let hints =
            &[("match", "write keep: { ... } or drop: { ... }"), ("action", "write keep: { ... } or drop: { ... }")];
        let before = reader.error_count();
        let found = reader.entries(node, &["keep", "drop"], hints)?;
        let (keep, key, condition) = match found.as_slice() {
            [Some(node), None] => (true, "keep", *node),
            [None, Some(node)] => (false, "drop", *node),
            [Some(_), Some(_)] => {
                reader.error(node, "a rule has either keep or drop", "two rules, in the order of evaluation");
                return None;
            }
            // An unknown key was reported.
            _ if reader.error_count() > before => return None,
            _ => {
                reader.error(node, "the rule has neither keep nor drop", "keep: { ... } or drop: { ... }");
                return None;
            }
        };
        let condition = reader.within(key, |reader| read_match(reader, condition))?;
        Some(filter::Rule { keep, condition })
    }
}

impl FieldType for FilterRules {
    type Value = Filters;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Filters) {
        let rules = read_rules(reader, node, Self::ALLOWED, Self::read_rule);
        report_unreachable(reader, "filters", &rules, |rule| &rule.condition);
        *value = Filters::new(rules.into_iter().map(|(_, rule)| rule).collect());
    }

    fn show(&self, value: &Filters) -> DumpValue {
        let rules = value.rules().iter().map(|rule| {
            let verdict = if rule.keep { "keep" } else { "drop" };
            DumpValue::Map(vec![(verdict.to_owned(), show_match(&rule.condition))])
        });
        DumpValue::List(rules.collect())
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

/// Each rule of a list with its position; invalid ones are reported and left out.
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
        reader.error(node, "expected a list of rules", allowed);
        return Vec::new();
    };
    if items.len() > MAX_RULES {
        let message = format!("too many rules: {}", items.len());
        reader.error(node, message, format!("at most {MAX_RULES}; one rule can have a list of values"));
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let rule = reader.within(&format!("[{index}]"), |reader| read(reader, *item));
        rules.extend(rule.map(|rule| (RuleAt { node: *item, index }, rule)));
    }
    rules
}

/// Position of a rule.
struct RuleAt {
    node: NodeId,
    index: usize,
}

fn report_unreachable<T>(
    reader: &mut Reader<'_>,
    list: &str,
    rules: &[(RuleAt, T)],
    condition: impl Fn(&T) -> &Condition,
) {
    // Rules are compared as they are evaluated.
    let simplified: Vec<_> = rules.iter().map(|(_, rule)| condition(rule).clone().simplified()).collect();
    let conditions: Vec<_> = simplified.iter().collect();
    let (pairs, is_complete) = filter::shadowed(&conditions);
    for (earlier, later) in pairs {
        let (earlier, later) = (&rules[earlier].0, &rules[later].0);
        let message = format!("unreachable rule: {list}[{}] matches everything that it matches", earlier.index);
        reader.within(&format!("[{}]", later.index), |reader| {
            reader.error(later.node, message, "remove it, or move it before that rule");
        });
    }
    if let (false, Some((first, _))) = (is_complete, rules.first()) {
        let message = "too many and too long rules to check for unreachable ones";
        reader.warning(first.node, message, "fewer rules, with lists of values");
    }
}

/// `sampling`
pub(super) struct SamplingRules;

const RATE_KEYS: &[&str] = &["ratio", "max_per_second", "burst", "group_by"];

/// Old names, and those of the Collector's samplers.
const RATE_HINTS: &[Hint] = &[
    ("limit", "it is now `max_per_second`"),
    ("per", "it is now `group_by`"),
    ("probability", "write ratio: 0.05"),
    ("sampling_percentage", "write ratio: 0.05 for 5 percent"),
    ("spans_per_second", "did you mean `max_per_second`?"),
];

impl SamplingRules {
    const ALLOWED: &'static str = "a list of rules: - match: { ... }, with ratio: 0.05 or max_per_second: 100";
    const KEYS: &'static [&'static str] = &["default", "rules"];

    fn read_rule(reader: &mut Reader<'_>, node: NodeId) -> Option<sampler::Rule> {
        if reader.mapping(node).is_none() {
            reader.error(node, "expected a mapping", "match: { ... }, with ratio: 0.05 or max_per_second: 100");
            return None;
        }
        let keys = [&["match"], RATE_KEYS].concat();
        let hints =
            [RATE_HINTS, &[("keep", "write match: { ... }"), ("drop", "write match: { ... }, ratio: 0")]].concat();
        let before = reader.error_count();
        let found = reader.entries(node, &keys, &hints)?;
        let rate = read_rate(reader, node, &found[1..], before);
        let Some(condition) = found[0] else {
            reader.error(node, "missing key `match`", "match: { ... }; {} matches every reset");
            return None;
        };
        let condition = reader.within("match", |reader| read_match(reader, condition))?;
        Some(sampler::Rule { condition, rate: rate? })
    }
}

/// A rate from the nodes of [`RATE_KEYS`]; `before` is the number of problems before they were read.
fn read_rate(reader: &mut Reader<'_>, node: NodeId, found: &[Option<NodeId>], before: usize) -> Option<Rate> {
    let &[ratio, limit, burst, group_by] = found else { return None };
    let number = |reader: &mut Reader<'_>, key: &str, node, min, max| {
        let before = reader.error_count();
        let mut number = min;
        reader.within(key, |reader| Number { min, max }.read(reader, node, &mut number));
        (reader.error_count() == before).then_some(number)
    };
    match (ratio, limit) {
        (Some(_), Some(_)) => {
            reader.error(node, "a rule has either ratio or max_per_second", "one of them, or two rules");
            None
        }
        // An old key for one of them was reported.
        (None, None) if reader.error_count() > before => None,
        (None, None) => {
            reader.error(node, "the rule has neither ratio nor max_per_second", "ratio: 0.05, or max_per_second: 100");
            None
        }
        (Some(ratio), None) => {
            if let Some(other) = burst.or(group_by) {
                reader.error(other, "burst and group_by apply to max_per_second, not to ratio", "ratio alone");
            }
            number(reader, "ratio", ratio, 0.0, 1.0).and_then(Ratio::new).map(Rate::Ratio)
        }
        (None, Some(limit)) => {
            let per_second = number(reader, "max_per_second", limit, 0.001, 1e9);
            let burst = match burst {
                Some(burst) => number(reader, "burst", burst, 1.0, 1e9),
                None => per_second.map(|per_second| per_second.max(1.0)),
            };
            let group_by = match group_by {
                Some(node) => reader.within("group_by", |reader| read_group_by(reader, node)),
                None => Some(Vec::new()),
            };
            Some(Rate::PerSecond(RateLimit { per_second: per_second?, burst: burst?, group_by: group_by? }))
        }
    }
}

fn read_group_by(reader: &mut Reader<'_>, node: NodeId) -> Option<Vec<Key>> {
    /// More attributes do not distinguish resets any better.
    const MAX_ATTRIBUTES: usize = 8;
    let items = match reader.list(node) {
        Some(items) => items.to_vec(),
        None => vec![node],
    };
    if items.len() > MAX_ATTRIBUTES {
        reader.error(node, format!("too many attributes: {}", items.len()), format!("at most {MAX_ATTRIBUTES}"));
        return None;
    }
    let before = reader.error_count();
    let mut keys = Vec::with_capacity(items.len());
    for item in items {
        let Some(name) = reader.scalar(item, "names of attributes: [network.peer.address, tcp.reset.cause]") else {
            continue;
        };
        match matching::attribute(reader, item, &name.text) {
            Some(matching::AttributeRef::Record(Attribute::AdjustedCount)) => {
                reader.error(item, "the adjusted count is known only after sampling", "another attribute");
            }
            Some(matching::AttributeRef::Record(attribute)) => keys.push(Key::Record(attribute)),
            Some(matching::AttributeRef::Resource) => keys.push(Key::Resource(name.text.as_ref().into())),
            None => {}
        }
    }
    (reader.error_count() == before || !keys.is_empty()).then_some(keys)
}

impl FieldType for SamplingRules {
    type Value = Sampling;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Sampling) {
        let Some(found) = reader.entries(
            node,
            Self::KEYS,
            &[
                ("ratio", "write default: { ratio: ... }"),
                ("limit", "write default: { max_per_second: ... }"),
                ("probability", "write default: { ratio: ... }"),
                ("sampling_percentage", "write default: { ratio: 0.05 } for 5 percent"),
                ("policies", "write rules: here"),
            ],
        ) else {
            return;
        };
        let mut default = Rate::default();
        if let Some(node) = found[0].filter(|node| !reader.is_null(*node)) {
            reader.within("default", |reader| {
                let before = reader.error_count();
                if let Some(found) = reader.entries(node, RATE_KEYS, RATE_HINTS)
                    && let Some(rate) = read_rate(reader, node, &found, before)
                {
                    default = rate;
                }
            });
        }
        let mut rules = Vec::new();
        if let Some(node) = found[1] {
            rules = reader.within("rules", |reader| {
                let rules = read_rules(reader, node, Self::ALLOWED, Self::read_rule);
                report_unreachable(reader, "sampling.rules", &rules, |rule| &rule.condition);
                rules
            });
        }
        *value = Sampling::new(default, rules.into_iter().map(|(_, rule)| rule).collect());
    }

    fn show(&self, value: &Sampling) -> DumpValue {
        let rules = value.rules().iter().map(|rule| {
            let mut entries = vec![("match".to_owned(), show_match(&rule.condition))];
            entries.extend(show_rate(&rule.rate));
            DumpValue::Map(entries)
        });
        let rules = DumpValue::List(rules.collect());
        DumpValue::Map(vec![("default".into(), DumpValue::Map(show_rate(&value.default))), ("rules".into(), rules)])
    }

    fn schema(&self) -> Json {
        let rate = json!({
            "ratio": or_variable(json!({ "type": "number", "minimum": 0, "maximum": 1,
                "description": "The share that is exported: the same traces that OpenTelemetry's probability sampling keeps." })),
            "max_per_second": or_variable(json!({ "type": "number", "minimum": 0.001, "maximum": 1e9,
                "description": "Maximum records per second." })),
            "burst": or_variable(json!({ "type": "number", "minimum": 1, "maximum": 1e9,
                "description": "Records at once after an idle period; default: max_per_second, at least 1." })),
            "group_by": { "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "maxItems": 8 }],
                "description": "Attributes by which max_per_second is applied: each combination of their values has its own limit." },
        });
        let one_rate = json!([{ "required": ["ratio"] }, { "required": ["max_per_second"] }]);
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

fn show_rate(rate: &Rate) -> Vec<(String, DumpValue)> {
    match rate {
        Rate::Ratio(ratio) => vec![("ratio".into(), DumpValue::Float(ratio.share()))],
        Rate::PerSecond(limit) => {
            let mut entries = vec![
                ("max_per_second".into(), DumpValue::number(limit.per_second)),
                ("burst".into(), DumpValue::number(limit.burst)),
            ];
            if !limit.group_by.is_empty() {
                let names = limit.group_by.iter().map(|key| match key {
                    Key::Record(attribute) => DumpValue::Text(attribute.name().to_owned()),
                    Key::Resource(name) => DumpValue::Text(name.to_string()),
                });
                entries.push(("group_by".into(), DumpValue::List(names.collect())));
            }
            entries
        }
    }
}
