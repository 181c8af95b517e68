//! The reference pages under `docs/`, made from the code: causes and reasons, attributes, configuration.
//!
//! A test compares them with the files; `docs/generate` writes them.

use std::{
    fmt::{Display, Write},
    path::PathBuf,
};

use probes::Cause;
use reset_collector::{
    account::DropReason,
    config,
    model::{
        attribute::{Attribute, DESCRIPTION, DESCRIPTION_MEANING},
        cause::EXPLANATIONS,
        reason::{List, REASONS},
    },
    telemetry::{
        metrics::{Kind, METRICS},
        prometheus,
    },
};
use serde_json::{Map, Value};

/// A page: its file under `docs/`, and what makes its text.
pub type Page = (&'static str, fn() -> String);

/// Every generated page.
pub const PAGES: &[Page] = &[
    ("causes.md", causes),
    ("attributes.md", attributes),
    ("configuration.md", configuration),
    ("metrics.md", metrics),
];

/// The directory that the pages lie in.
pub fn directory() -> PathBuf {
    crate::crate_directory().join("../docs")
}

const GENERATED: &str = "<!-- Generated from the code by docs/generate; a test holds it to the code. -->\n";

/// Attributes of the workload: name, meaning, where it comes from.
const RESOURCE: &[(&str, &str, &str)] = &[
    (
        "service.name",
        "The service",
        "the process's published OpenTelemetry context, OTEL_SERVICE_NAME, \
      OTEL_RESOURCE_ATTRIBUTES, the pod, the container or systemd unit, `unknown_service:` and the program; the first that is there",
    ),
    ("process.pid", "The process, as the host numbers it", "the kernel's record"),
    ("process.creation.time", "When it started; with the pid, one process for ever", "the kernel's record"),
    ("process.executable.name", "Its program, without the path", "/proc/PID/exe, else the kernel's name of the task"),
    ("process.executable.path", "Its program", "/proc/PID/exe"),
    ("process.command_args", "Its arguments; only with `enrichment.command_line`", "/proc/PID/cmdline"),
    ("container.id", "Its container", "the path of its control group"),
    (
        "container.name",
        "Its container's name, where the runtime puts it into the path",
        "the path of its control group",
    ),
    ("k8s.pod.uid", "Its pod", "the path of its control group"),
    (
        "k8s.pod.name, k8s.namespace.name, k8s.node.name, k8s.container.name, k8s.deployment.name, …",
        "Names of its pod",
        "the Kubernetes API, or the collector's own environment for the pod that it is itself in",
    ),
    (
        "host.name, host.id, os.type",
        "The host; on every record, with an owner or without",
        "the kernel, /etc/machine-id",
    ),
    ("any other", "What the process says of itself", "its published OpenTelemetry context, OTEL_RESOURCE_ATTRIBUTES"),
];

/// Causes and the kernel's reasons, each explained.
fn causes() -> String {
    let mut page = format!(
        "# Causes\n\n{GENERATED}\n`tcp.reset.cause` is why a connection died, the same word on every kernel. \
         `reset-collector explain NAME` prints the same on the terminal.\n\n| cause | severity | what happened |\n\
         | --- | --- | --- |\n"
    );
    for it in EXPLANATIONS {
        let word = it.cause.word();
        put(&mut page, format_args!("| [`{word}`](#{word}) | {} | {} |\n", it.severity.word(), cell(it.meaning)));
    }
    page.push_str(
        "\nThe severity above applies if nothing else is known. What the record shows to be lost corrects it: unread or \
         undelivered data make INFO a WARN; a reset that the socket ignored is INFO; so is one received in a half-open \
         connection or after this side had closed, unless the peer has not acknowledged its data.\n",
    );
    for it in EXPLANATIONS {
        put(
            &mut page,
            format_args!(
                "\n## {}\n\n{}\n\n- **Usual fix**: {}\n- **In the kernel**: `{}`\n- **Standard**: {}\n",
                it.cause.word(),
                plain(it.meaning),
                plain(it.fix),
                it.kernel,
                plain(it.standard)
            ),
        );
    }
    page.push_str(
        "\n# The kernel's reasons\n\n`tcp.reset.reason` is the kernel's own name, read from the running kernel. Kernels before \
         6.10 name no reason for a reset that they send; the cause is known without it.\n",
    );
    for (list, title) in [(List::Reset, "Of resets sent"), (List::Dropped, "Of resets received and not accepted")] {
        put(
            &mut page,
            format_args!(
                "\n## {title} (`{}…`)\n\n| reason | meaning | comes with |\n| --- | --- | --- |\n",
                list.prefix()
            ),
        );
        for reason in REASONS.iter().filter(|reason| reason.list == list) {
            put(
                &mut page,
                format_args!("| `{}` | {} | {} |\n", reason.name, cell(reason.meaning), cell(reason.causes)),
            );
        }
    }
    page
}

/// Attributes of the record and of its resource, and reasons of loss.
fn metrics() -> String {
    let mut page = format!(
        "# Metrics\n\n{GENERATED}\nThe same metrics with the same labels are on `/metrics` of `admin.endpoint` and in OTLP \
         exports. Prometheus shows an up-down counter as a gauge, and a label's dots as underscores.\n\n\
         | OTLP | Prometheus | kind | unit | description |\n| --- | --- | --- | --- | --- |\n"
    );
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::UpDownCounter => "up-down counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let (name, prometheus) = (metric.name, prometheus::name(metric));
        let (unit, description) = (metric.unit, cell(metric.description));
        put(&mut page, format_args!("| `{name}` | `{prometheus}` | {kind} | `{unit}` | {description} |\n"));
    }
    page.push_str(
        "\n`tcp.resets` has the labels `network.io.direction`, `tcp.reset.origin` and `tcp.reset.cause`. Metrics of a sending \
         queue have `destination` and `signal`. For each of these, at any instant:\n\n\
         captured + recovered = exported + filtered + sampled_out + dropped + queued\n\n\
         The resource of the OTLP metrics has `service.name` (OTEL_SERVICE_NAME, else `reset-collector`), \
         `service.instance.id`, `service.version`, `host.*`, `os.type`, `enrichment.resource` and OTEL_RESOURCE_ATTRIBUTES. \
         OTEL_METRIC_EXPORT_INTERVAL (milliseconds, 60000 by default) and \
         OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE apply.\n",
    );
    page
}

fn attributes() -> String {
    let mut page = format!(
        "# Attributes\n\n{GENERATED}\nThe log record and the span event `tcp.reset` carry the same attributes. Filters and \
         sampling rules use the same names. What is not known is left out, never 0 or empty.\n\n## Of the record\n\n\
         | attribute | meaning |\n| --- | --- |\n"
    );
    for attribute in Attribute::ALL {
        put(&mut page, format_args!("| `{}` | {} |\n", attribute.name(), cell(attribute.meaning())));
    }
    put(&mut page, format_args!("| `{DESCRIPTION}` | {DESCRIPTION_MEANING} |\n"));
    page.push_str(
        "\nThe log record has the event name `tcp.reset`, the kernel's time as its timestamp, one sentence as its body, and \
         `trace_id` and `span_id` of the span that carries the event, or of the application's span where traces are not \
         exported and it is known. The collector's own span is named `tcp.reset CAUSE`; its status is Error, with the same \
         sentence, exactly where `error.type` is set.\n\n## Of the resource\n\nThe resource is the workload that owns the socket. A reset without \
         an owner has the host's alone.\n\n| attribute | meaning | from |\n| --- | --- | --- |\n",
    );
    for (names, meaning, source) in RESOURCE {
        let names =
            names.split(", ").map(|name| if name.contains('.') { format!("`{name}`") } else { name.to_owned() });
        put(&mut page, format_args!("| {} | {meaning} | {source} |\n", names.collect::<Vec<_>>().join(", ")));
    }
    page.push_str(
        "\n## Reasons of loss\n\n`reason` of `reset_collector_dropped_resets_total`: every reset that does not arrive is \
         counted under one.\n\n| reason | what happened, and what helps |\n| --- | --- |\n",
    );
    for reason in DropReason::ALL {
        put(&mut page, format_args!("| `{}` | {} |\n", reason.name(), cell(reason.meaning())));
    }
    put(
        &mut page,
        format_args!("\nThe {} words of `tcp.reset.cause` are in [causes.md](causes.md).\n", Cause::ALL.len()),
    );
    page
}

/// Every key of the configuration.
fn configuration() -> String {
    let schema = config::schema();
    let mut rows = Vec::new();
    walk(&schema, &schema, "", &mut rows);
    let mut page = format!(
        "# Configuration\n\n{GENERATED}\nOne YAML file. [config/reset-collector.yaml](../config/reset-collector.yaml) has every \
         key at its default with a comment; [config/schema.json](../config/schema.json) is its JSON Schema, for editors:\n\n\
         ```yaml\n# yaml-language-server: $schema=https://raw.githubusercontent.com/reset-collector/reset-collector/main/config/schema.json\n```\n\n\
         `reset-collector check --config FILE` says what is wrong with a file, or what it means. An unknown key is an error. \
         `${{env:NAME}}` and `${{env:NAME:-default}}` stand for variables of the environment, in values only. A file that \
         changes, as a ConfigMap does, is read again within seconds, on SIGHUP at once: `capture`, `filters` and `sampling` \
         change while it runs, the rest needs a restart. A bad new file changes nothing, and the log says why.\n\n## Keys\n\n| key | values | default | meaning |\n| --- | --- | --- | --- |\n"
    );
    for row in &rows {
        put(
            &mut page,
            format_args!("| `{}` | {} | {} | {} |\n", row.path, cell(&row.kind), row.default, cell(&row.meaning)),
        );
    }
    page.push_str(ENVIRONMENT);
    page
}

const ENVIRONMENT: &str = "\n## Matches\n\nA match asks for attributes by their exported names ([attributes.md](attributes.md)); \
all that it asks for must hold. A list is any of its values. Text may have `*` and `?`. Addresses are matched by networks \
(`10.0.0.0/8`), ports and numbers by ranges (`\"8000-8999\"`, `{ gte: 1, lt: 10 }`). `not`, `any` and `all` take further matches. \
What is not known of a reset matches nothing, so `not` of it matches.\n\n## Environment\n\nWithout a destination in the file, \
`OTEL_EXPORTER_OTLP_ENDPOINT` names one, with OpenTelemetry's other variables of that name (`_HEADERS`, `_PROTOCOL`, \
`_COMPRESSION`, `_TIMEOUT`, `_CERTIFICATE`, `_CLIENT_KEY`, `_CLIENT_CERTIFICATE`, and their forms for one signal). What the file \
says stands before them. `RESET_COLLECTOR_LOG` says how much the collector tells of itself, `RESET_COLLECTOR_BTF` names the \
kernel's type information where `/sys/kernel/btf/vmlinux` is missing.\n";

/// One key.
struct Row {
    path: String,
    kind: String,
    default: String,
    meaning: String,
}

/// Gathers the keys of a mapping, and of the mappings in it.
fn walk(root: &Value, schema: &Value, path: &str, rows: &mut Vec<Row>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (key, property) in sorted(properties) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let alternatives = alternatives(root, property);
        let inner = alternatives.iter().copied().find(|one| one["properties"].is_object());
        let list = alternatives.iter().copied().find(|one| one["items"]["properties"].is_object());
        let default = property.get("default").map_or_else(String::new, |default| format!("`{}`", brief(default)));
        let mut kinds: Vec<String> = alternatives.iter().filter_map(|one| kind(one)).collect();
        kinds.dedup();
        let meaning =
            described(property).or_else(|| alternatives.iter().find_map(|one| described(one))).unwrap_or_default();
        rows.push(Row { path: path.clone(), kind: kinds.join(" or "), default, meaning });
        match (inner, list) {
            (Some(inner), _) => walk(root, inner, &path, rows),
            (None, Some(list)) => walk(root, &list["items"], &format!("{path}[]"), rows),
            (None, None) => {}
        }
    }
}

/// What a value may be, one by one; variables of the environment may stand anywhere and are left out.
fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        return match name {
            "variable" | "match" => Vec::from_iter((name == "match").then_some(schema)),
            _ => alternatives(root, &root["$defs"][name]),
        };
    }
    match schema["anyOf"].as_array() {
        Some(list) => list.iter().flat_map(|one| alternatives(root, one)).collect(),
        None => vec![schema],
    }
}

fn described(schema: &Value) -> Option<String> {
    schema["description"].as_str().map(str::to_owned)
}

/// The kind of a value in words, with its bounds.
fn kind(schema: &Value) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return name.ends_with("/match").then(|| "a match".into());
    }
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().map(|word| format!("`{}`", brief(word))).collect::<Vec<_>>().join(", "));
    }
    if let Some(only) = schema.get("const") {
        return Some(format!("`{only}`"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    Some(match types.first().copied()? {
        "boolean" => "`true`, `false`".into(),
        "null" => "`null`".into(),
        "object" => "keys".into(),
        "array" => match kind(&schema["items"]) {
            Some(items) if items != "keys" && schema["items"]["properties"].is_null() => format!("list of {items}"),
            _ => "list".into(),
        },
        "integer" | "number" => bounds(schema),
        "string" if pattern.contains("(ns|us") => "time with a unit".into(),
        "string" if pattern.contains("[KMG]") => "size with a unit".into(),
        "string" if pattern.starts_with("^https?") => "URL".into(),
        "string" if pattern.contains("localhost") => "address:port".into(),
        _ => "text".into(),
    })
}

fn bounds(schema: &Value) -> String {
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(least), Some(most)) => format!("{} to {}", number(least), number(most)),
        (Some(least), None) => format!("{} or more", number(least)),
        _ => "number".into(),
    }
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(float) if float.fract() == 0.0 => format!("{float:.0}"),
        _ => value.to_string(),
    }
}

/// A value as a file would have it, on one line.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(brief).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.is_empty() => "{}".into(),
        Value::Object(map) => format!("{{ {} }}", pairs(map)),
        other => other.to_string(),
    }
}

/// In the order of the keys, whatever order a map was built to keep.
fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

fn pairs(map: &Map<String, Value>) -> String {
    sorted(map).into_iter().map(|(key, value)| format!("{key}: {}", brief(value))).collect::<Vec<_>>().join(", ")
}

/// Text for a paragraph of Markdown: what would be taken for markup is not.
fn plain(text: &str) -> String {
    let mut in_code = false;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        in_code ^= character == '`';
        if !in_code && matches!(character, '_' | '*' | '<' | '[') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    let text = if text.starts_with('`') && text.ends_with('`') { text.to_owned() } else { plain(text) };
    text.replace('|', "\\|").replace('\n', " ")
}

/// Formats into a string, which takes whatever it is given.
fn put(out: &mut String, text: impl Display) {
    out.write_fmt(format_args!("{text}")).unwrap_or_default();
}
