//! The keys under `export.otlp`, named as in the OpenTelemetry Collector.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::config::endpoint::{Endpoint, EndpointError};
use crate::config::settings::{
    Batch, Compression, Destination, FsyncPolicy, OnOverflow, Protocol, Queue, Retry, Secret, Signals, Storage, Tls,
};
use crate::config::{
    exposure,
    field_types::{
        BoolField, DumpValue, FieldType, FilePath, Keyword, OrNull, count, or_variable, period, read_scalar,
        show_duration, size,
    },
    reader::{Hint, Reader, listed, shortened},
    sections::{MULTIPLIER, file_or_null, key_schema, mapping_schema, section, text_or_null},
    yaml::NodeId,
};
use crate::model::signal::Signal;

section! {
    /// One destination.
    DestinationSection(destination: Destination) {
        "endpoint" => destination.endpoint, Url, "Scheme, host and port; for HTTP optionally a path, to which /v1/logs and so on are appended. http:// does not use TLS, https:// does; unix:///PATH is a Unix socket.";
        "signals" => destination.signals, OrNull(SignalList, || NO_SIGNALS), "Which of export.signals this destination gets; null is all of them.";
        "protocol" => destination.protocol, Keyword(PROTOCOLS), "OTLP over gRPC, or protobuf over HTTP.";
        "headers" => destination.headers, Headers, "Headers of every request; their values are never shown.";
        "compression" => destination.compression, Keyword(COMPRESSIONS), "How requests are compressed.";
        "timeout" => destination.timeout, period(1, 600), "Timeout of one request.";
        "tls" => destination.tls, TlsSection, "TLS, used with https://.";
        "retry_on_failure" => destination.retry, RetrySection, "How failed requests are retried.";
        "sending_queue" => destination.queue, QueueSection, "The queue of resets to be sent.";
        "batch" => destination.batch, BatchSection, "How records are combined into requests.";
    } hints {
        "insecure" => "the scheme of the endpoint decides: http:// does not use TLS";
        "proxy_url" => "set HTTPS_PROXY or HTTP_PROXY, and NO_PROXY, in the environment";
        "keepalive" => "HTTP/2 pings are always on";
        "balancer_name" => "give the address of a load balancer as the endpoint";
        "wait_for_ready" => "failed requests are retried as retry_on_failure says";
        "encoding" => "requests are always protobuf";
        "compression_params" => "the level of compression is fixed";
        "logs_endpoint" => "set OTEL_EXPORTER_OTLP_LOGS_ENDPOINT";
        "traces_endpoint" => "set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        "metrics_endpoint" => "set OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
        "retry" => "did you mean `retry_on_failure`?";
        "queue" => "did you mean `sending_queue`?";
        "auth" => "write headers: { authorization: \"Bearer ${env:TOKEN}\" }";
    }
}

const PROTOCOLS: &[(&str, Protocol)] = &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)];
const COMPRESSIONS: &[(&str, Compression)] =
    &[("gzip", Compression::Gzip), ("zstd", Compression::Zstd), ("none", Compression::None)];
const ON_OVERFLOW: &[(&str, OnOverflow)] =
    &[("drop_oldest", OnOverflow::DropOldest), ("drop_newest", OnOverflow::DropNewest)];

section! {
    /// `tls`
    TlsSection(tls: Tls) {
        "ca_file" => tls.ca_file, file_or_null(), "Certificate authorities (PEM); null uses the system's.";
        "cert_file" => tls.cert_file, file_or_null(), "Client certificate (PEM).";
        "key_file" => tls.key_file, file_or_null(), "Client key (PEM).";
        "server_name_override" => tls.server_name_override, text_or_null(), "Expected name in the server's certificate, if it is not the endpoint's host.";
        "insecure_skip_verify" => tls.insecure_skip_verify, BoolField, "Accept any server certificate.";
        "reload_interval" => tls.reload_interval, OrNull(period(1_000, 31_536_000), || Duration::ZERO), "Interval at which the files are read again; null is never.";
    } hints {
        "insecure" => "the scheme of the endpoint decides: http:// does not use TLS";
        "min_version" => "the minimum is always TLS 1.2";
        "max_version" => "TLS 1.3 is used where the server supports it";
        "cipher_suites" => "the cipher suites are fixed: those of TLS 1.3, and of TLS 1.2 with forward secrecy";
        "curve_preferences" => "the key exchange groups are fixed";
        "include_system_ca_certs_pool" => "the system's certificate authorities are used unless ca_file is set";
        "ca_pem" => "write it to a file and set ca_file";
        "cert_pem" => "write it to a file and set cert_file";
        "key_pem" => "write it to a file and set key_file";
    }
}

section! {
    /// `retry_on_failure`
    RetrySection(retry: Retry) {
        "enabled" => retry.enabled, BoolField, "Whether failed requests are retried.";
        "initial_interval" => retry.initial_interval, period(1, 3_600), "Delay before the first retry.";
        "max_interval" => retry.max_interval, period(1, 86_400), "Maximum delay between retries.";
        "max_elapsed_time" => retry.max_elapsed_time, period(0, 31_536_000), "Time after which a request is dropped; 0s is never.";
        "multiplier" => retry.multiplier, MULTIPLIER, "Multiplier between retry intervals.";
    } hints {
        "randomization_factor" => "intervals are always randomized";
    }
}

section! {
    /// `sending_queue`
    QueueSection(queue: Queue) {
        "queue_size" => queue.size, count(1, 100_000_000), "Maximum number of queued resets.";
        "num_consumers" => queue.consumers, count(1, 1_024), "Maximum concurrent requests.";
        "on_overflow" => queue.on_overflow, Keyword(ON_OVERFLOW), "Which batch is dropped when the queue is full: the oldest, or the one that does not fit.";
        "storage" => queue.storage, OrNull(StorageSection, Storage::default), "The queue on disk; null keeps it in memory.";
    } hints {
        "when_full" => "it is now `on_overflow`"; // words: allow: the old key
        "max_storage_size" => "it is now `storage.max_size`"; // words: allow: the old key
        "fsync" => "it is now `storage.fsync`";
        "enabled" => "the queue is always on, and `queue_size` bounds it";
        "batch" => "write batch: next to sending_queue:";
        "sizer" => "queue_size counts resets";
        "block_on_overflow" => "the kernel cannot wait: write on_overflow: drop_oldest or drop_newest";
        "wait_for_result" => "nothing waits for a result here";
    }
}

/// `sending_queue.storage`
struct StorageSection;

section! {
    /// The keys of `sending_queue.storage`.
    StorageKeys(storage: Storage) {
        "directory" => storage.directory, FilePath, "Directory of the queue, on a local disk.";
        "max_size" => storage.max_bytes, size(1 << 20, 1 << 50), "Maximum size on disk.";
        "fsync" => storage.fsync, Fsync, "When written data is synced to the disk: always, never, or at an interval.";
    }
}

impl FieldType for StorageSection {
    type Value = Storage;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Storage) {
        const EXAMPLE: &str = "storage: { directory: /var/lib/reset-collector }";
        if reader.mapping(node).is_none() {
            return reader.error(node, "expected a mapping", EXAMPLE);
        }
        let before = reader.error_count();
        StorageKeys.read(reader, node, value);
        if value.directory.as_os_str().is_empty() && reader.error_count() == before {
            reader.error(node, "missing key `directory`", EXAMPLE);
        }
    }

    fn show(&self, value: &Storage) -> DumpValue {
        StorageKeys.show(value)
    }

    fn schema(&self) -> Json {
        let mut schema = StorageKeys.schema();
        schema["type"] = "object".into();
        schema["required"] = json!(["directory"]);
        if let Some(directory) = schema["properties"]["directory"].as_object_mut() {
            directory.remove("default");
        }
        schema
    }
}

section! {
    /// `batch`
    BatchSection(batch: Batch) {
        "max_resets" => batch.max_resets, count(1, 1_000_000), "Maximum number of resets in a request.";
        "max_bytes" => batch.max_bytes, size(16 << 10, 64 << 20), "Maximum size of a request, before compression.";
        "flush_timeout" => batch.flush_timeout, period(1, 60), "How long the first reset of a batch waits for more.";
    } hints {
        "max_size" => "it is now `max_resets`";
        "min_size" => "a batch is sent at max_resets, or after flush_timeout";
        "sizer" => "max_resets counts resets, max_bytes bytes";
        "send_batch_size" => "did you mean `max_resets`?";
        "send_batch_max_size" => "did you mean `max_resets`?";
        "timeout" => "did you mean `flush_timeout`?";
    }
}

/// `export.otlp`: one destination, or a list; null is an empty list.
pub(super) struct Destinations;

impl Destinations {
    const MAX: usize = 16;

    fn read_one(reader: &mut Reader<'_>, node: NodeId) -> Destination {
        let before = reader.error_count();
        let mut destination = reader.base_destination();
        DestinationSection.read(reader, node, &mut destination);
        let is_given = reader.mapping(node).is_some_and(|mut entries| entries.any(|(key, ..)| key == "endpoint"));
        if !is_given
            && destination.protocol == Protocol::HttpProtobuf
            && destination.endpoint == Destination::default().endpoint
        {
            destination.endpoint = "http://localhost:4318".into();
        }
        if reader.error_count() == before {
            check(reader, node, &destination);
        }
        destination
    }
}

/// Checks the endpoint against the protocol.
fn check_endpoint(reader: &mut Reader<'_>, node: NodeId, destination: &Destination) {
    let Ok(uri) = destination.endpoint.parse::<hyper::Uri>() else { return };
    let node = reader.find(node, &["endpoint"]);
    let base = format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |it| it.as_str()));
    let path = uri.path();
    let signal_path = Signal::ALL.iter().map(|signal| signal.http_path()).find(|suffix| path.ends_with(suffix));
    match (destination.protocol, uri.port_u16()) {
        (Protocol::Grpc, _) if !matches!(path, "" | "/") => {
            let allowed = format!("{base}, or protocol: http/protobuf");
            reader.error(node, format!("a gRPC endpoint has no path, and this has `{}`", shortened(path)), allowed);
        }
        (Protocol::HttpProtobuf, _) if let Some(suffix) = signal_path => {
            let allowed = format!("{base}{}", path.strip_suffix(suffix).unwrap_or_default());
            reader.error(node, format!("`{suffix}` is appended to the endpoint, which has it already"), allowed);
        }
        (Protocol::HttpProtobuf, Some(4317)) => {
            let allowed = "port 4318, or protocol: grpc";
            reader.warning(node, "port 4317 takes OTLP/gRPC by convention, and the protocol is http/protobuf", allowed);
        }
        (Protocol::Grpc, Some(4318)) => {
            let allowed = "port 4317, or protocol: http/protobuf";
            reader.warning(node, "port 4318 takes OTLP/HTTP by convention, and the protocol is grpc", allowed);
        }
        _ => {}
    }
}

/// Checks the keys of a destination against each other.
fn check(reader: &mut Reader<'_>, node: NodeId, destination: &Destination) {
    check_endpoint(reader, node, destination);
    exposure::check(reader, node, destination);
    let tls = &destination.tls;
    let tls_node = reader.find(node, &["tls"]);
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        let message = "tls.cert_file and tls.key_file must be set together";
        reader.error(tls_node, message, "both, or neither of them");
    }
    if *tls != Tls::default() && destination.endpoint.starts_with("http://") {
        let allowed = "endpoint: https://..., or remove tls";
        reader.warning(tls_node, "tls is set, but http:// does not use TLS", allowed);
    }
    if destination.signals == Some(NO_SIGNALS) {
        let message = "`signals` is empty: nothing would be sent to this destination";
        reader.error(
            reader.find(node, &["signals"]),
            message,
            "some of logs, traces and metrics, or leave the destination out",
        );
    }
    let retry = &destination.retry;
    if retry.max_interval < retry.initial_interval {
        let (max, initial) = (show_duration(retry.max_interval), show_duration(retry.initial_interval));
        let message = format!("retry_on_failure.max_interval, {max}, is shorter than initial_interval, {initial}");
        let node = reader.find(node, &["retry_on_failure", "max_interval"]);
        reader.error(node, message, "max_interval no shorter than initial_interval");
    }
}

impl FieldType for Destinations {
    type Value = Vec<Destination>;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value) {
        let Some(items) = reader.list(node) else {
            *value = if reader.is_null(node) { Vec::new() } else { vec![Self::read_one(reader, node)] };
            return;
        };
        if items.len() > Self::MAX {
            return reader.error(
                node,
                format!("too many destinations: {}", items.len()),
                format!("at most {}", Self::MAX),
            );
        }
        let read = |(index, item): (usize, &NodeId)| {
            reader.within(&format!("[{index}]"), |reader| Self::read_one(reader, *item))
        };
        *value = items.iter().enumerate().map(read).collect();
    }

    fn show(&self, value: &Self::Value) -> DumpValue {
        match value.as_slice() {
            [] => DumpValue::Null,
            [one] => DestinationSection.show(one),
            several => DumpValue::List(several.iter().map(|one| DestinationSection.show(one)).collect()),
        }
    }

    fn schema(&self) -> Json {
        let one = json!({ "$ref": "#/$defs/destination" });
        json!({ "anyOf": [one, { "type": "array", "items": one, "maxItems": Self::MAX }, { "type": "null" }] })
    }
}

impl DestinationSection {
    /// The schema that `#/$defs/destination` names.
    pub(super) fn definition() -> Json {
        Self.schema()
    }
}

const NO_SIGNALS: Signals = Signals { logs: false, traces: false, metrics: false };

/// `export.signals`, and a destination's own.
pub(super) struct SignalList;

impl SignalList {
    const WORDS: &'static [&'static str] = &["logs", "traces", "metrics"];
}

impl FieldType for SignalList {
    type Value = Signals;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Signals) {
        let allowed = format!("a list of {}", listed(Self::WORDS));
        let Some(items) = reader.list(node) else {
            return reader.error(node, "expected a list of signals", allowed);
        };
        let mut signals = NO_SIGNALS;
        for (index, item) in items.iter().enumerate() {
            reader.within(&format!("[{index}]"), |reader| {
                read_scalar(reader, *item, &allowed, &mut (), |text| {
                    *match text {
                        "logs" => &mut signals.logs,
                        "traces" => &mut signals.traces,
                        "metrics" => &mut signals.metrics,
                        other => return Err(format!("unknown signal `{}`", shortened(other))),
                    } = true;
                    Ok(())
                });
            });
        }
        *value = signals;
    }

    fn show(&self, value: &Signals) -> DumpValue {
        let on = [value.logs, value.traces, value.metrics];
        let words = Self::WORDS.iter().zip(on).filter(|(_, on)| *on);
        DumpValue::List(words.map(|(word, _)| DumpValue::Text((*word).to_owned())).collect())
    }

    fn schema(&self) -> Json {
        json!({ "type": "array", "items": { "enum": Self::WORDS }, "uniqueItems": true })
    }
}

/// An endpoint of OTLP.
struct Url;

impl FieldType for Url {
    type Value = String;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut String) {
        let allowed = "scheme, host and port, such as http://localhost:4317 or https://otlp.example.com:4317";
        read_scalar(reader, node, allowed, value, |text| {
            let shown = shortened(text);
            Endpoint::parse(text).map(|_| text.trim_end_matches('/').to_owned()).map_err(|error| match error {
                EndpointError::Credentials => "the URL contains a user or password: use headers instead".into(),
                EndpointError::Scheme => match text.split_once("://") {
                    Some((scheme, _)) => format!("unknown scheme `{}`", shortened(scheme)),
                    None => format!("`{shown}` has no scheme: http://{shown} without TLS, https://{shown} with TLS"),
                },
                EndpointError::Query | EndpointError::Address => format!("invalid endpoint `{shown}`"),
            })
        });
    }

    fn show(&self, value: &String) -> DumpValue {
        DumpValue::Text(value.clone())
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "string", "pattern": "^(https?://[^/@?]+(/[^?]*)?|unix:///.+)$" }))
    }
}

/// Headers; their values are secrets and appear in no message.
struct Headers;

impl FieldType for Headers {
    type Value = Vec<(String, Secret)>;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut Self::Value) {
        let allowed =
            "a mapping of names to texts: { authorization: \"Bearer ${env:TOKEN}\" }, or ${file:/run/secrets/token}";
        if reader.is_null(node) {
            return value.clear();
        }
        let Some(entries) = reader.mapping(node) else {
            return reader.error(node, "expected a mapping", allowed);
        };
        let mut headers: Vec<(String, Secret)> = Vec::new();
        for (name, key, secret) in entries {
            let lower = name.to_ascii_lowercase();
            if hyper::header::HeaderName::from_bytes(lower.as_bytes()).is_err() {
                reader.error(key, "invalid header name", "letters, digits and -, as x-api-key");
            }
            if headers.iter().any(|(known, _)| *known == lower) {
                reader.error(key, "duplicate header: names are not case-sensitive", "one value for each header");
            }
            let Some(text) = reader.secret(secret, allowed) else { continue };
            if hyper::header::HeaderValue::from_str(&text.text).is_err() {
                reader.error(secret, "invalid header value", "printable characters on one line");
            }
            headers.push((lower, Secret(text.text.into_owned())));
        }
        *value = headers;
    }

    fn show(&self, value: &Self::Value) -> DumpValue {
        DumpValue::Map(value.iter().map(|(name, _)| (name.clone(), DumpValue::Text("[redacted]".into()))).collect())
    }

    fn schema(&self) -> Json {
        json!({ "type": ["object", "null"], "additionalProperties": { "type": ["string", "number", "boolean"] } })
    }
}

/// `always`, `never`, or an interval.
struct Fsync;

impl FieldType for Fsync {
    type Value = FsyncPolicy;

    fn read(&self, reader: &mut Reader<'_>, node: NodeId, value: &mut FsyncPolicy) {
        read_scalar(reader, node, "always, never, or a time from 1ms to 1h, as 1s", value, |text| match text {
            "always" => Ok(FsyncPolicy::Always),
            "never" => Ok(FsyncPolicy::Never),
            other => super::field_types::parse_duration(other)
                .filter(|often| (Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(often))
                .map(FsyncPolicy::Interval)
                .ok_or_else(|| format!("invalid value `{}`", shortened(other))),
        });
    }

    fn show(&self, value: &FsyncPolicy) -> DumpValue {
        DumpValue::Text(match value {
            FsyncPolicy::Always => "always".into(),
            FsyncPolicy::Never => "never".into(),
            FsyncPolicy::Interval(often) => show_duration(*often),
        })
    }

    fn schema(&self) -> Json {
        or_variable(json!({ "type": "string", "pattern": "^(always|never|([0-9]+(\\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$" }))
    }
}
