//! The keys of the file: names, types, limits and descriptions in one place. Reading, the effective configuration and the
//! JSON Schema are all derived from it; defaults are those of [`crate::config::settings`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value as Json, json};

use crate::config::settings::{self, Console, Hardening, Settings};
use crate::config::{
    destination::{Destinations, SignalList},
    dump::show_ports,
    field_types::{
        BoolField, DumpValue, FieldType, FilePath, Keyword, ListenAddress, Number, OrNull, Size, Text, count, period,
        read_scalar, size,
    },
    reader::{Hint, Reader, shortened},
    rules::{FilterRules, SamplingRules},
    values::read_ports,
    yaml::NodeId,
};
use crate::filter::Ports;
use crate::model::signal::Signal;

/// Makes a field of a mapping with these keys, each read into its part of the value.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident($value:ident: $type:ty) {
        $($key:literal => $place:expr, $field:expr, $meaning:literal;)+
    } $(hints { $($other:literal => $instead:literal;)+ })?) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            const KEYS: &'static [&'static str] = &[$($key,)+];
            const HINTS: &'static [Hint] = &[$($(($other, $instead),)+)?];
        }

        impl FieldType for $name {
            type Value = $type;

            fn read(&self, reader: &mut Reader<'_>, node: NodeId, $value: &mut $type) {
                let Some(nodes) = reader.entries(node, Self::KEYS, Self::HINTS) else { return };
                let mut nodes = nodes.into_iter();
                $(if let Some(Some(node)) = nodes.next() {
                    reader.within($key, |reader| $field.read(reader, node, &mut $place));
                })+
            }

            fn show(&self, $value: &$type) -> DumpValue {
                DumpValue::Map(vec![$(($key.to_owned(), $field.show(&$place)),)+])
            }

            fn schema(&self) -> Json {
                let $value = &<$type>::default();
                mapping_schema(vec![$(key_schema($key, &$field, &$place, $meaning),)+])
            }
        }
    };
}
pub(super) use section;

/// A key with its schema, meaning and default.
pub(super) fn key_schema<C: FieldType>(key: &str, field: &C, default: &C::Value, meaning: &str) -> (String, Json) {
    let mut schema = field.schema();
    if let Json::Object(schema) = &mut schema {
        schema.insert("description".into(), meaning.into());
        // A section's default is the sum of its keys'.
        let default = field.show(default);
        if !matches!(default, DumpValue::Map(_)) {
            schema.insert("default".into(), json!(default));
        }
    }
    (key.to_owned(), schema)
}

/// The schema of a mapping with these keys.
pub(super) fn mapping_schema(keys: Vec<(String, Json)>) -> Json {
    let properties: serde_json::Map<_, _> = keys.into_iter().collect();
    json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": false })
}

section! {
    /// The whole file.
    File(settings: Settings) {
        "capture" => settings.capture, CaptureSection, "Which resets are captured.";
        "filters" => settings.filters, FilterRules, "Rules in order: the first that matches keeps or drops the reset; without a match it is kept.";
        "sampling" => settings.sampling, SamplingRules, "What share of the resets that the filters kept is exported.";
        "enrichment" => settings.enrichment, EnrichmentSection, "How the owner of a connection is described.";
        "correlation" => settings.correlation, CorrelationSection, "How a reset is matched to the request that it broke.";
        "export" => settings.export, ExportSection, "Where records are exported to.";
        "admin" => settings.admin, OrNull(AdminSection, any_address), "The admin endpoint: /healthz, /readyz and /metrics.";
        "hardening" => settings.hardening, Keyword(HARDENINGS), "Whether the process gives up the capabilities and system calls that it does not need once it runs: auto goes on where the kernel cannot do it, required does not.";
    } hints {
        "receivers" => "the only receiver is correlation.otlp_receiver";
        "exporters" => "write export: { otlp: ... }; there are no pipelines";
        "processors" => "write filters: and sampling:; there are no pipelines";
        "service" => "everything that is configured runs; there are no pipelines";
        "extensions" => "write admin: for health checks and metrics";
        "otlp" => "write export: { otlp: ... }";
        "prometheus" => "write admin: { endpoint: 127.0.0.1:9464 }; it serves /metrics";
        "log" => "set RESET_COLLECTOR_LOG, or --log-level";
        "logging" => "set RESET_COLLECTOR_LOG, or --log-level";
        "include" => "one file holds the whole configuration";
        "resource" => "write enrichment: { resource: ... }";
        "resource_attributes" => "write enrichment: { resource: ... }";
    }
}

section! {
    /// `capture`
    CaptureSection(capture: settings::Capture) {
        "sent" => capture.sent, BoolField, "Resets that this host's TCP sends.";
        "received" => capture.received, BoolField, "Resets that a socket here receives.";
        "firewall" => capture.firewall, BoolField, "Resets that netfilter sends.";
        "unmatched" => capture.unmatched, BoolField, "Resets received that fit no connection here.";
        "max_records_per_second" => capture.max_records_per_second, OrNull(count(1, 10_000_000), || 0), "Maximum records per second from the kernel, shared fairly between keys; null is unlimited. Resets are counted exactly in any case.";
        "ring_buffer_size" => capture.ring_buffer_bytes, Size { power_of_two: true, ..size(64 << 10, 1 << 30) }, "Size of the buffer between kernel and collector, a power of two.";
    }
}

section! {
    /// `enrichment`
    EnrichmentSection(enrichment: settings::Enrichment) {
        "command_line" => enrichment.command_line, BoolField, "Export process.command_args; command lines may hold secrets.";
        "kubernetes" => enrichment.kubernetes, OrNull(KubernetesSection, || settings::Kubernetes { node_name: String::new() }), "Pod metadata from the Kubernetes API; null disables it.";
        "resource" => enrichment.resource, StaticAttributes, "Resource attributes of everything that is exported, such as deployment.environment.name and k8s.cluster.name.";
    } hints {
        "resource_attributes" => "did you mean `resource`?";
        "attributes" => "did you mean `resource`?";
    }
}

/// `enrichment.resource`
pub(super) struct StaticAttributes;

impl StaticAttributes {
    /// More attributes are a mistake: each is repeated with every resource.
    const MAX: usize = 64;

    /// Why an attribute cannot be set for all resources.
    pub(super) fn reserved(name: &str) -> Option<&'static str> {
        let is_cluster = name.starts_with("k8s.cluster.");
        match name {
            "service.name" | "service.instance.id" => Some("each process has its own"),
            "host.id" | "host.name" => Some("it is read from the host"),
            _ if name.starts_with("process.") || name.starts_with("container.") => Some("it is read from the process"),
            _ if name.starts_with("k8s.") && !is_cluster => Some("it is read from the pod"),
            _ if name.starts_with("telemetry.") => Some("it describes the SDK"),
            _ => None,
        }
    }
}

impl FieldType for StaticAttributes {
    type Value = Vec<(String, String)>;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value) {
        let allowed = "names and texts, as { deployment.environment.name: prod, k8s.cluster.name: eu-1 }";
        if reader.is_null(node) {
            return value.clear();
        }
        let Some(entries) = reader.mapping(node) else {
            return reader.error(node, "expected a mapping", allowed);
        };
        let mut attributes = Vec::new();
        for (name, key, text) in entries {
            if name.trim().is_empty() {
                reader.error(key, "empty attribute name", allowed);
            } else if let Some(why) = Self::reserved(name) {
                reader.error(key, format!("`{}` cannot be set: {why}", shortened(name)), "other attributes");
            }
            reader.within(name, |reader| {
                let mut read = String::new();
                Text.read(reader, text, &mut read);
                attributes.push((name.to_owned(), read));
            });
        }
        if attributes.len() > Self::MAX {
            let message = format!("too many attributes: {}", attributes.len());
            return reader.error(node, message, format!("at most {}", Self::MAX));
        }
        *value = attributes;
    }

    fn show(&self, value: &Self::Value) -> DumpValue {
        DumpValue::Map(value.iter().map(|(name, text)| (name.clone(), DumpValue::Text(text.clone()))).collect())
    }

    fn schema(&self) -> Json {
        json!({ "type": ["object", "null"], "maxProperties": Self::MAX,
            "additionalProperties": { "type": ["string", "number", "boolean"] } })
    }
}

/// `enrichment.kubernetes`
struct KubernetesSection;

impl KubernetesSection {
    const NODE_NAME: SingleKeyMap<Text> =
        SingleKeyMap("node_name", Text, "Only this node's pods are watched: ${env:NODE_NAME} from the downward API.");
}

impl FieldType for KubernetesSection {
    type Value = settings::Kubernetes;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value) {
        Self::NODE_NAME.read(reader, node, &mut value.node_name);
    }

    fn show(&self, value: &Self::Value) -> DumpValue {
        Self::NODE_NAME.show(&value.node_name)
    }

    fn schema(&self) -> Json {
        Self::NODE_NAME.schema()
    }
}

section! {
    /// `correlation`
    CorrelationSection(correlation: settings::Correlation) {
        "otlp_receiver" => (*correlation), ReceiverSection, "Applications send their OTLP here; it is forwarded unchanged, with reset events added.";
        "http_headers" => correlation.http_header_ports, SingleKeyMap("ports", PortList, "Ports of servers, and ranges of ports."), "Read traceparent from plain HTTP/1.1 of servers on these ports and of their clients, in the kernel. Enabling or disabling it takes a restart.";
        "span_wait" => correlation.span_wait, period(0, 60), "How long a reset waits for its span before it is exported without one.";
    } hints {
        "wait" => "it is now `span_wait`";
    }
}

section! {
    /// `correlation.otlp_receiver`
    ReceiverSection(correlation: settings::Correlation) {
        "grpc" => correlation.grpc, OrNull(AdminSection, any_address), "Listener for OTLP/gRPC; null disables it.";
        "http" => correlation.http, OrNull(AdminSection, any_address), "Listener for OTLP/HTTP; null disables it.";
        "max_request_size" => correlation.max_request_bytes, OrNull(size(64 << 10, 1 << 30), || 4 << 20), "Maximum size of a request after decompression; null is 4MiB by gRPC and 20MiB by HTTP, as in the Collector.";
        "pass_headers" => correlation.pass_headers, HeaderNames, "Headers of applications that are forwarded in addition to user-agent, traceparent, tracestate and those of OTLP itself.";
    } hints {
        "protocols" => "write grpc: and http: here, without protocols:";
        "max_recv_msg_size_mib" => "write max_request_size: 4MiB";
        "max_request_body_size" => "write max_request_size: 20MiB";
    }
}

section! {
    /// `export`
    ExportSection(export: settings::Export) {
        "signals" => export.signals, SignalList, "Which signals are exported: logs, traces, metrics.";
        "console" => export.console, Keyword(CONSOLE), "Output on standard output; auto is pretty on a terminal and JSON lines otherwise.";
        "otlp" => export.otlp, Destinations, "One destination, or a list of them; each has its own queue. Without one, OTEL_EXPORTER_OTLP_ENDPOINT is used.";
    } hints {
        "endpoint" => "write it under otlp:";
        "headers" => "write it under otlp:";
        "otlphttp" => "write otlp: with protocol: http/protobuf";
        "otlp_http" => "write otlp: with protocol: http/protobuf";
        "otlp_grpc" => "write otlp: with protocol: grpc";
        "debug" => "write console: pretty";
        "file" => "write console: json and redirect standard output";
        "prometheus" => "write admin: { endpoint: 127.0.0.1:9464 }; it serves /metrics";
    }
}

const CONSOLE: &[(&str, Console)] =
    &[("auto", Console::Auto), ("pretty", Console::Pretty), ("json", Console::Json), ("off", Console::Off)];

const HARDENINGS: &[(&str, Hardening)] =
    &[("auto", Hardening::Auto), ("required", Hardening::Required), ("off", Hardening::Off)];

/// `{ endpoint: address:port }`
struct AdminSection;

impl AdminSection {
    const ENDPOINT: SingleKeyMap<ListenAddress> =
        SingleKeyMap("endpoint", ListenAddress, "Address and port to listen on.");
}

impl FieldType for AdminSection {
    type Value = SocketAddr;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut SocketAddr) {
        Self::ENDPOINT.read(reader, node, value);
    }

    fn show(&self, value: &SocketAddr) -> DumpValue {
        Self::ENDPOINT.show(value)
    }

    fn schema(&self) -> Json {
        Self::ENDPOINT.schema()
    }
}

fn any_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A mapping with one key, which must be there.
struct SingleKeyMap<C>(&'static str, C, &'static str);

impl<C: FieldType> FieldType for SingleKeyMap<C> {
    type Value = C::Value;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut C::Value) {
        let Self(key, field, meaning) = self;
        match reader.entries(node, &[key], &[]).as_deref() {
            Some([Some(node)]) => reader.within(key, |reader| field.read(reader, *node, value)),
            Some(_) => reader.error(node, format!("missing key `{key}`"), format!("{key}: {meaning}")),
            None => {}
        }
    }

    fn show(&self, value: &C::Value) -> DumpValue {
        DumpValue::Map(vec![(self.0.to_owned(), self.1.show(value))])
    }

    fn schema(&self) -> Json {
        let Self(key, field, meaning) = self;
        let mut schema = field.schema();
        if let Json::Object(schema) = &mut schema {
            schema.insert("description".into(), (*meaning).into());
        }
        json!({ "type": "object", "properties": { *key: schema }, "required": [key], "additionalProperties": false })
    }
}

/// A list of ports and ranges of ports.
struct PortList;

impl PortList {
    /// Entries; a range is one.
    const MAX: usize = 64;
}

impl FieldType for PortList {
    type Value = Ports;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Ports) {
        let Some(items) = reader.list(node) else {
            return reader.error(node, "expected a list of ports", "[8080] or [8080, \"9000-9099\"]; [] is none");
        };
        if items.len() > Self::MAX {
            let message = format!("too many ports: {}", items.len());
            return reader.error(node, message, format!("at most {}; a range counts as one", Self::MAX));
        }
        if items.is_empty() {
            *value = Ports::default();
        } else if let Some(ports) = read_ports(reader, node) {
            *value = ports;
        }
        if value.contains(0) {
            reader.error(node, "port 0 is not a server port", "ports from 1 to 65535");
        }
    }

    fn show(&self, value: &Ports) -> DumpValue {
        DumpValue::List(value.ranges().iter().map(show_ports).collect())
    }

    fn schema(&self) -> Json {
        let port = count::<u16>(1, 65_535).schema();
        let range = json!({ "type": "string", "pattern": "^[0-9]{1,5} ?- ?[0-9]{1,5}$" });
        json!({ "type": "array", "items": { "anyOf": [port, range] }, "maxItems": Self::MAX })
    }
}

/// Names of HTTP headers.
struct HeaderNames;

impl FieldType for HeaderNames {
    type Value = Vec<String>;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Vec<String>) {
        const MAX_HEADERS: usize = 64;
        let allowed = "a list of header names, as [x-scope-orgid]";
        let Some(items) = reader.list(node) else {
            return reader.error(node, "expected a list of header names", allowed);
        };
        if items.len() > MAX_HEADERS {
            return reader.error(
                node,
                format!("{} headers are too many", items.len()),
                format!("at most {MAX_HEADERS}"),
            );
        }
        let mut names = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let mut name = String::new();
            reader.within(&format!("[{index}]"), |reader| {
                read_scalar(reader, *item, allowed, &mut name, |text| {
                    let name = hyper::header::HeaderName::from_bytes(text.as_bytes());
                    Ok(name.map_err(|_| format!("invalid header name `{}`", shortened(text)))?.as_str().to_owned())
                });
            });
            names.push(name);
        }
        *value = names;
    }

    fn show(&self, value: &Vec<String>) -> DumpValue {
        DumpValue::List(value.iter().map(|name| DumpValue::Text(name.clone())).collect())
    }

    fn schema(&self) -> Json {
        json!({ "type": "array", "items": { "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$" }, "maxItems": 64 })
    }
}

/// Files of TLS: absolute paths, or null.
pub(super) fn file_or_null() -> OrNull<FilePath> {
    OrNull(FilePath, std::path::PathBuf::new)
}

/// A text, or null.
pub(super) fn text_or_null() -> OrNull<Text> {
    OrNull(Text, String::new)
}

/// The factor between intervals.
pub(super) const MULTIPLIER: Number = Number { min: 1.0, max: 10.0 };

/// Whether an endpoint is a listener of this program, as far as its address is written as one.
fn leads_to(endpoint: &str, listener: SocketAddr) -> bool {
    let Ok(uri) = endpoint.parse::<hyper::Uri>() else { return false };
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let (own, every) = (listener.ip(), listener.ip().is_unspecified());
    let is_here = match uri.host().unwrap_or_default().trim_matches(['[', ']']) {
        "localhost" => own.is_loopback() || every,
        host => host.parse::<IpAddr>().is_ok_and(|address| address == own || every && address.is_loopback()),
    };
    is_here && listener.port() != 0 && uri.port_u16().unwrap_or(default) == listener.port()
}

/// Checks sections against each other.
pub(super) fn check(reader: &mut Reader<'_>, root: NodeId, settings: &Settings) {
    let correlation = &settings.correlation;
    let listeners: [(&[&str], _); 3] = [
        (&["correlation", "otlp_receiver", "grpc"], correlation.grpc),
        (&["correlation", "otlp_receiver", "http"], correlation.http),
        (&["admin"], settings.admin),
    ];
    for (at, (path, address)) in listeners.iter().enumerate() {
        let is_taken = |other: &SocketAddr| other.port() != 0 && Some(*other) == *address;
        let twin = listeners[..at].iter().find(|(_, other)| other.as_ref().is_some_and(is_taken));
        if let (Some((other, _)), Some(address)) = (twin, address) {
            let message = format!("{} and {} both listen on {address}", other.join("."), path.join("."));
            let node = reader.find(root, &[*path, &["endpoint"]].concat());
            reader.error(node, message, "a different address and port for each");
        }
    }
    let destinations = &settings.export.otlp;
    let has_receiver = correlation.grpc.is_some() || correlation.http.is_some();
    if has_receiver && destinations.is_empty() && !reader.has_environment_destination() {
        let node = reader.find(root, &["correlation", "otlp_receiver"]);
        let message = "correlation.otlp_receiver forwards to export.otlp, which has no destination";
        reader.error(
            node,
            message,
            "export: { otlp: { endpoint: ... } }, or OTEL_EXPORTER_OTLP_ENDPOINT in the environment",
        );
    }
    for (index, destination) in destinations.iter().enumerate() {
        let at = reader.find(root, &["export", "otlp", &format!("[{index}]")]);
        for (path, address) in &listeners {
            if address.is_some_and(|address| leads_to(&destination.endpoint, address)) {
                let message =
                    format!("the endpoint is the collector's own {}: it would export to itself", path.join("."));
                reader.error(reader.find(at, &["endpoint"]), message, "the endpoint of another program");
            }
        }
        for signal in Signal::ALL {
            let wanted = destination.signals.is_some_and(|own| own.has(*signal));
            if wanted && !settings.export.signals.has(*signal) {
                let message =
                    format!("{} are sent to this destination, but are missing from export.signals", signal.word());
                reader.error(reader.find(at, &["signals"]), message, "some of export.signals");
            }
        }
        let storage = &destination.queue.storage;
        let directory = storage.as_ref().map(|storage| &storage.directory).filter(|path| !path.as_os_str().is_empty());
        let has_same =
            |other: &settings::Destination| other.queue.storage.as_ref().map(|other| &other.directory) == directory;
        let twin = destinations[..index].iter().position(|other| directory.is_some() && has_same(other));
        if let Some(twin) = twin {
            let node = reader.find(at, &["sending_queue", "storage", "directory"]);
            let message = format!("export.otlp[{index}] and export.otlp[{twin}] have the same storage directory");
            reader.error(node, message, "a different directory for each");
        }
    }
}
