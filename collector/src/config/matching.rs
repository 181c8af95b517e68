//! A match: attributes by their exported names, with the values to match; `not`, `any` and `all` of further matches.
//!
//! The syntax of values is in [`crate::config::values`].

use crate::config::{
    field_types::{parse_duration, parse_size},
    reader::{Reader, Scalar, listed, nearest, shortened},
    values::{
        parse_number, read_address, read_number, read_patterns, read_ports, read_resource_test, read_values,
        text_pattern,
    },
    yaml::NodeId,
};
use crate::{
    filter::{self, Condition, EnumSets, IPV4, IPV6, Side},
    model::{Cause, Direction, Origin, State, TraceMethod, attribute::Attribute, cause::Severity},
};

/// Maximum depth of nested matches.
const MAX_NESTED: usize = 8;

/// Resource attributes that resets often have: a similar name is likely a mistake.
pub(super) const KNOWN_RESOURCE: &[&str] = &[
    "container.id",
    "container.name",
    "deployment.environment.name",
    "host.id",
    "host.name",
    "k8s.cluster.name",
    "k8s.container.name",
    "k8s.daemonset.name",
    "k8s.deployment.name",
    "k8s.job.name",
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.replicaset.name",
    "k8s.statefulset.name",
    "os.type",
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

/// Namespaces of the record, of spans and of older conventions: no resource has an attribute there.
const NOT_OF_RESOURCES: &[&str] = &[
    "tcp.",
    "network.",
    "source.",
    "destination.",
    "error.",
    "client.",
    "server.",
    "net.",
    "peer.",
    "http.",
    "url.",
    "span.",
    "severity",
];

/// Namespaces that only the collector fills in: it has no other attributes there than those of [`KNOWN_RESOURCE`].
const RESERVED: &[&str] = &["k8s.", "container.", "process.", "host."];

/// Names of older conventions and of other tools, and the attribute here.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("net.peer.ip", "network.peer.address"),
    ("net.peer.name", "network.peer.address"),
    ("net.peer.port", "network.peer.port"),
    ("net.sock.peer.addr", "network.peer.address"),
    ("net.sock.peer.port", "network.peer.port"),
    ("net.host.ip", "network.local.address"),
    ("net.host.name", "network.local.address"),
    ("net.host.port", "network.local.port"),
    ("net.transport", "network.transport"),
    ("process.name", "process.executable.name"),
    ("process.command", "process.executable.name"),
];

/// An attribute of a reset, as filters refer to it.
pub(super) enum AttributeRef {
    /// An attribute of the record.
    Record(Attribute),
    /// An attribute of the resource, by its name.
    Resource,
}

/// Resolves a name; reports an error and returns `None` where no reset has such an attribute.
pub(super) fn attribute(reader: &mut Reader<'_>, node: NodeId, name: &str) -> Option<AttributeRef> {
    if let Some(attribute) = Attribute::from_name(name) {
        return Some(AttributeRef::Record(attribute));
    }
    if KNOWN_RESOURCE.contains(&name) {
        return Some(AttributeRef::Resource);
    }
    let names = || Attribute::ALL.iter().map(|attribute| attribute.name());
    let known = || names().chain(KNOWN_RESOURCE.iter().copied());
    let (with_name, as_suffix) = (format!("{name}.name"), format!(".{name}"));
    let meant = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, here)| *here);
    let meant = meant.or_else(|| known().find(|known| *known == with_name || known.ends_with(&as_suffix)));
    let is_of_ends = ["client.", "server.", "source.", "destination."].iter().any(|end| name.starts_with(end));
    if meant.is_some() || name.is_empty() || NOT_OF_RESOURCES.iter().any(|namespace| name.starts_with(namespace)) {
        let near = meant.or_else(|| nearest(name, names()).filter(|_| !is_of_ends));
        let allowed = match near {
            None if is_of_ends => "network.local.* is this host's end, network.peer.* the other".into(),
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("any resource attribute, or one of {}", listed(&names().collect::<Vec<_>>())),
        };
        reader.error(node, format!("a reset has no attribute `{}`", shortened(name)), allowed);
        return None;
    }
    let near = nearest(name, known());
    let is_reserved = RESERVED.iter().any(|namespace| name.starts_with(namespace));
    if near.is_some() || is_reserved {
        let message = match is_reserved {
            true => format!("`{}` is not set by the collector, unless enrichment.resource has it", shortened(name)),
            false => format!("`{}` is taken as the name of a resource attribute", shortened(name)),
        };
        let in_namespace = || known().filter(|known| known.split('.').next() == name.split('.').next());
        let allowed = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", listed(&in_namespace().collect::<Vec<_>>())),
        };
        reader.warning(node, message, allowed);
    }
    Some(AttributeRef::Resource)
}

/// Reads a match; reports errors and returns `None` where it is invalid or can never match.
pub(super) fn read_match(reader: &mut Reader<'_>, node: NodeId) -> Option<Condition> {
    let condition = read_nested(reader, node, 0)?;
    if filter::is_never(&condition.clone().simplified()) {
        reader.error(node, "no reset can match this", "conditions that can all hold");
        return None;
    }
    Some(condition)
}

fn read_nested(reader: &mut Reader<'_>, node: NodeId, depth: usize) -> Option<Condition> {
    if depth > MAX_NESTED {
        reader.error(node, format!("matches are nested more than {MAX_NESTED} levels deep"), "a flatter match");
        return None;
    }
    let Some(entries) = reader.mapping(node) else {
        let allowed = "attributes and values, such as { tcp.reset.cause: port_closed }; {} matches every reset";
        reader.error(node, "expected a mapping", allowed);
        return None;
    };
    let mut parts = Vec::new();
    for (name, key, value) in entries {
        if let Some(flat) = flat_name(reader, name, value) {
            let message = format!("`{}` is not an attribute: the names of attributes are not nested", shortened(name));
            reader.error(key, message, format!("write `{}: ...`", shortened(&flat)));
            continue;
        }
        parts.extend(reader.within(name, |reader| match name {
            "not" => read_nested(reader, value, depth + 1).map(|inner| Condition::Not(Box::new(inner))),
            "any" => read_list(reader, value, depth).map(Condition::Any),
            "all" => read_list(reader, value, depth).map(Condition::All),
            name => match attribute(reader, key, name)? {
                AttributeRef::Record(attribute) => read_record_test(reader, value, attribute),
                AttributeRef::Resource => read_resource_test(reader, value, name),
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
            reader.error(node, "expected a list of matches", allowed);
            return None;
        }
    };
    let mut parts = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        parts.extend(reader.within(&format!("[{index}]"), |reader| read_nested(reader, *item, depth + 1)));
    }
    (parts.len() == items.len()).then_some(parts)
}

/// `tcp.reset.cause` of `tcp: { reset: { cause: ... } }`: the name that was meant where names of attributes are nested.
fn flat_name(reader: &Reader<'_>, name: &str, value: NodeId) -> Option<String> {
    let known = || Attribute::ALL.iter().map(|attribute| attribute.name()).chain(KNOWN_RESOURCE.iter().copied());
    let (mut flat, mut value) = (name.to_owned(), value);
    while !known().any(|known| known == flat) {
        let (key, _, inner) = reader.mapping(value)?.next()?;
        let namespace = format!("{flat}.");
        known().find(|known| known.starts_with(&namespace))?;
        flat = namespace + key;
        value = inner;
    }
    (flat != name).then_some(flat)
}

fn read_record_test(reader: &mut Reader<'_>, node: NodeId, attribute: Attribute) -> Option<Condition> {
    use Attribute as A;
    match attribute {
        A::Cause | A::Origin | A::Direction | A::ConnectionState | A::NetworkType | A::Transport => {
            read_facts(reader, node, &fact_words(attribute)).map(Condition::Facts)
        }
        A::LocalAddress => read_address(reader, node, Side::Local),
        A::PeerAddress => read_address(reader, node, Side::Peer),
        A::LocalPort => read_port_test(reader, node, Side::Local),
        A::PeerPort => read_port_test(reader, node, Side::Peer),
        A::BytesSent | A::BytesReceived | A::UnreadBytes | A::UnsentBytes | A::UnackedBytes => read_number(
            reader,
            node,
            attribute,
            "a number of bytes, such as 0 or 4KiB, a range \"1-100\", or { gte: 1 }",
            |text| parse_size(text).map(|bytes| bytes as f64).or_else(|| parse_number(text)),
        ),
        A::SmoothedRtt | A::Duration => read_number(
            reader,
            node,
            attribute,
            "a time, such as 200ms or 0.2 (seconds), or { gte: 1s, lt: 1m }",
            |text| parse_duration(text).map(|time| time.as_secs_f64()).or_else(|| parse_number(text)),
        ),
        A::Retransmits | A::NetworkNamespace | A::ExitCode | A::ExitSignal | A::ActorPid => {
            read_number(reader, node, attribute, "a number, a range \"1-100\", or { gte: 1 }", parse_number)
        }
        A::Reason => {
            let patterns =
                read_patterns(reader, node, "names of kernel reasons, such as NO_SOCKET or \"TCP_ABORT_*\"")?;
            if patterns.iter().any(|pattern| pattern.to_string().contains(|c: char| c.is_ascii_lowercase())) {
                reader.warning(node, "kernel reasons are upper case", "NO_SOCKET; `explain` lists them");
            }
            Some(Condition::Text { attribute, patterns })
        }
        A::ActorName => {
            let patterns = read_patterns(reader, node, "names of programs, as ss or \"cilium-*\"")?;
            Some(Condition::Text { attribute, patterns })
        }
        A::Severity => {
            read_words(reader, node, attribute, &[Severity::Info, Severity::Warn, Severity::Error].map(Severity::word))
        }
        A::ErrorType => read_words(reader, node, attribute, &["connection_refused", "connection_reset", "timed_out"]),
        A::TraceMethod => read_words(reader, node, attribute, &TraceMethod::ALL.map(TraceMethod::word)),
        A::AdjustedCount => {
            reader.error(node, "the adjusted count is known only after filters and sampling", "another attribute");
            None
        }
    }
}

fn read_port_test(reader: &mut Reader<'_>, node: NodeId, end: Side) -> Option<Condition> {
    read_ports(reader, node).map(|ports| Condition::Port { end, ports })
}

/// The words of an attribute of a closed list, each with the resets that have it.
pub(super) fn fact_words(attribute: Attribute) -> Vec<(&'static str, EnumSets)> {
    let all = EnumSets::ALL;
    match attribute {
        Attribute::Cause => {
            Cause::ALL.iter().map(|cause| (cause.word(), EnumSets { causes: 1 << *cause as u32, ..all })).collect()
        }
        Attribute::Origin => {
            Origin::ALL.iter().map(|origin| (origin.word(), EnumSets { origins: 1 << *origin as u8, ..all })).collect()
        }
        Attribute::Direction => Direction::ALL
            .iter()
            .map(|direction| (direction.word(), EnumSets { directions: 1 << *direction as u8, ..all }))
            .collect(),
        Attribute::ConnectionState => {
            State::ALL.iter().map(|state| (state.word(), EnumSets { states: 1 << *state as u16, ..all })).collect()
        }
        Attribute::NetworkType => {
            vec![("ipv4", EnumSets { ip_versions: IPV4, ..all }), ("ipv6", EnumSets { ip_versions: IPV6, ..all })]
        }
        _ => vec![("tcp", all)],
    }
}

fn read_facts(reader: &mut Reader<'_>, node: NodeId, words: &[(&'static str, EnumSets)]) -> Option<EnumSets> {
    let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let mut union: Option<EnumSets> = None;
    read_values(reader, node, &format!("one or a list of {}", listed(&names)), |value| {
        let pattern = text_pattern(&value.text)?;
        let matched = words.iter().filter(|(word, _)| pattern.matches(word));
        let found = matched.map(|(_, sets)| *sets).reduce(EnumSets::union);
        let found = found.ok_or_else(|| unknown_word(value, &names))?;
        union = Some(union.map_or(found, |union| union.union(found)));
        Ok(())
    })?;
    union
}

fn unknown_word(value: &Scalar<'_>, names: &[&str]) -> String {
    match nearest(&value.text, names.iter().copied()) {
        Some(near) => format!("unknown value `{}`, did you mean `{near}`?", value.shown()),
        None => format!("unknown value `{}`", value.shown()),
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
