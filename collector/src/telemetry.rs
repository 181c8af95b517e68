//! The collector's metrics by OTLP: the table of [`metrics`], under the SDK's periodic reader.
//!
//! opentelemetry-otlp encodes them. [`Client`] sends them, so TLS, proxies, headers, protocol and compression are those of
//! the destination, and a response is classified by the same table. A failed export is not retried: the counters are
//! cumulative, the next period carries everything.

pub mod admin;
pub mod degraded;
pub mod logging;
pub mod metrics;
pub mod prometheus;
pub mod systemd;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::{InstrumentationScope, Key, KeyValue, StringValue, metrics::MeterProvider};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
};
use tokio::runtime::Handle;

use crate::{
    account::{Account, DURATION_BOUNDS, snapshot::unix_seconds},
    config::settings::Destination,
    export::retry::{self, RetryDecision},
    model::{resource::ResourceValue, signal::Signal},
    otlp::client::{Client, ClientError},
    telemetry::metrics::{Kind, METRICS, Metric, Point, Sources, Value},
};

const SERVICE_NAME: &str = "reset-collector";

/// Metrics that cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The destination.
    #[error("metrics to {destination}: {error}")]
    Client {
        /// Its endpoint.
        destination: String,
        /// What is wrong.
        error: ClientError,
    },
    /// The SDK.
    #[error("metrics to {destination}: {why}")]
    Sdk {
        /// Its endpoint.
        destination: String,
        /// What is wrong.
        why: String,
    },
}

/// Metrics to one destination.
pub struct Telemetry {
    provider: SdkMeterProvider,
}

impl Telemetry {
    /// Starts a reader that exports the metrics at this interval, or as often as OTEL_METRIC_EXPORT_INTERVAL says (a minute
    /// by default), sending on this runtime.
    pub fn start(
        destination: &Destination,
        sources: &Arc<Sources>,
        resource: Resource,
        interval: Option<Duration>,
        runtime: &Handle,
    ) -> Result<Self, TelemetryError> {
        let _inside = runtime.enter();
        let name = destination.endpoint.clone();
        let client =
            Client::new(destination).map_err(|error| TelemetryError::Client { destination: name.clone(), error })?;
        let sender = Sender(Arc::new(SenderState {
            destination: name.clone(),
            client,
            runtime: runtime.clone(),
            account: Arc::clone(&sources.account),
            exported_exemplars: AtomicU64::new(0),
            failing_exports: Arc::clone(&sources.failing_exports),
        }));
        // The endpoint keeps the SDK from taking another from the environment; `sender` knows where to send.
        let exporter = MetricExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint("http://localhost/v1/metrics")
            .build()
            .map_err(|error| TelemetryError::Sdk { destination: name, why: error.to_string() })?;
        let reader = PeriodicReader::builder(exporter).with_interval(interval.unwrap_or_default()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        instruments(&provider, sources);
        Ok(Self { provider })
    }

    /// Exports a last time, until the deadline at most.
    pub async fn shutdown(self, deadline: Instant) {
        let longest = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(longest)).await;
        if let Ok(Err(error)) = ended {
            tracing::debug!(event = "metrics_shutdown_failed", %error, "the last metrics were not exported");
        }
    }
}

/// The resource of the collector itself: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, and what they do not say.
pub fn own_resource(host: impl IntoIterator<Item = (impl Into<Key>, ResourceValue)>) -> Resource {
    let environment = Resource::builder().build();
    let text = |key: &'static str| environment.get(&Key::from_static_str(key)).map(|value| value.to_string());
    let mut attributes: Vec<KeyValue> =
        host.into_iter().map(|(key, value)| KeyValue::new(key, otel_value(&value))).collect();
    let of_host = |key: &str| attributes.iter().find(|it| it.key.as_str() == key).map(|it| it.value.to_string());
    // One that a restart changes: two collectors on one host are two instances.
    let host = of_host("host.id").or_else(|| of_host("host.name")).unwrap_or_default();
    let instance = format!("{host}-{:x}-{:x}", unix_seconds(SystemTime::now()) as u64, std::process::id());
    attributes.push(KeyValue::new("service.instance.id", instance));
    attributes.push(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    attributes.retain(|attribute| environment.get(&attribute.key).is_none());
    // The SDK's own default begins so.
    let name = text("service.name").filter(|name| !name.starts_with("unknown_service"));
    Resource::builder()
        .with_attributes(attributes)
        .with_service_name(name.unwrap_or_else(|| SERVICE_NAME.to_owned()))
        .build()
}

fn otel_value(value: &ResourceValue) -> opentelemetry::Value {
    match value {
        ResourceValue::Text(text) => text.clone().into(),
        ResourceValue::Integer(number) => (*number).into(),
        ResourceValue::List(texts) => {
            let texts = texts.iter().map(|text| StringValue::from(text.clone())).collect();
            opentelemetry::Value::Array(opentelemetry::Array::String(texts))
        }
    }
}

/// The table as observable instruments. The SDK calls their callbacks in the order of their creation, in one go for each
/// collection: the first collects for all, so the accounting invariant holds among the points.
fn instruments(provider: &SdkMeterProvider, sources: &Arc<Sources>) {
    let scope = InstrumentationScope::builder(SERVICE_NAME).with_version(env!("CARGO_PKG_VERSION")).build();
    let meter = provider.meter_with_scope(scope);
    let (account, collected) = (&sources.account, Arc::new(Mutex::new(Vec::new())));
    for (index, Metric { name, unit, kind, description, .. }) in METRICS.iter().enumerate() {
        let (sources, collected) = (Arc::clone(sources), Arc::clone(&collected));
        let points = move || {
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            if index == 0 {
                *collected = sources.collect();
            }
            collected.get_mut(index).map(std::mem::take).unwrap_or_default()
        };
        // An observable instrument lives as long as its provider: its handle is not needed.
        match kind {
            Kind::Counter => {
                let builder = meter.u64_observable_counter(*name).with_unit(*unit).with_description(*description);
                builder
                    .with_callback(move |observer| {
                        points().iter().for_each(|point| observer.observe(integer(&point.value), &labels(point)));
                    })
                    .build();
            }
            Kind::UpDownCounter => {
                let builder =
                    meter.i64_observable_up_down_counter(*name).with_unit(*unit).with_description(*description);
                builder
                    .with_callback(move |observer| {
                        for point in points() {
                            observer.observe(integer(&point.value).try_into().unwrap_or(i64::MAX), &labels(&point));
                        }
                    })
                    .build();
            }
            Kind::Gauge => {
                let builder = meter.f64_observable_gauge(*name).with_unit(*unit).with_description(*description);
                builder
                    .with_callback(move |observer| {
                        for point in points() {
                            if let Value::Float(value) = point.value {
                                observer.observe(value, &labels(&point));
                            }
                        }
                    })
                    .build();
            }
            Kind::Histogram => {
                let builder = meter.f64_histogram(*name).with_unit(*unit).with_description(*description);
                let durations = builder.with_boundaries(DURATION_BOUNDS.to_vec()).build();
                // The SDK has no observable histogram: requests are recorded one by one.
                account.health.on_request(move |destination, signal, duration| {
                    let labels = [("destination", destination.to_owned()), ("signal", signal.word().to_owned())];
                    let labels = labels.map(|(name, value)| KeyValue::new(name, value));
                    durations.record(duration.as_secs_f64(), &labels);
                });
            }
        }
    }
}

fn integer(value: &Value) -> u64 {
    match value {
        Value::Integer(value) => *value,
        Value::Float(_) | Value::Durations(..) => 0,
    }
}

fn labels(point: &Point) -> Vec<KeyValue> {
    point.labels.iter().map(|(name, value)| KeyValue::new(*name, value.clone().into_owned())).collect()
}

/// Sends what opentelemetry-otlp encodes. Always reports success to the SDK: a failure is logged here, once.
#[derive(Clone)]
struct Sender(Arc<SenderState>);

struct SenderState {
    destination: String,
    client: Client,
    runtime: Handle,
    account: Arc<Account>,
    /// The number of the last exemplar that was exported.
    exported_exemplars: AtomicU64,
    failing_exports: Arc<Mutex<BTreeMap<String, String>>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Sender").field(&self.0.destination).finish()
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sender = self.0.clone();
        // The SDK's reader runs on a thread of its own, without the runtime that the connections need.
        self.0.runtime.spawn(async move { sender.send(request.into_body()).await }).await?;
        Ok(Response::new(Bytes::new()))
    }
}

impl SenderState {
    async fn send(&self, message: Bytes) {
        let exemplars = &self.account.exemplars;
        let (message, last) = exemplars.put_into(message, self.exported_exemplars.load(Ordering::Relaxed));
        let verdict = match self.client.send(Signal::Metrics, message).await {
            Ok(answer) => retry::classify(&answer, SystemTime::now()),
            Err(error) => RetryDecision::Retry { after: None, reason: error.to_string() },
        };
        let error = match verdict {
            RetryDecision::Accepted { .. } => None,
            RetryDecision::Unsupported { reason, .. } => {
                Some(format!("{reason}; take metrics out of its signals to silence this line"))
            }
            RetryDecision::Retry { reason, .. } | RetryDecision::NonRetryable { reason, .. } => Some(reason),
        };
        if error.is_none() {
            self.exported_exemplars.store(last, Ordering::Relaxed);
        }
        let mut failing = self.failing_exports.lock().unwrap_or_else(PoisonError::into_inner);
        let was_failing = match &error {
            Some(error) => failing.insert(self.destination.clone(), error.clone()),
            None => failing.remove(&self.destination),
        }
        .is_some();
        drop(failing);
        let destination = &self.destination;
        match error {
            Some(error) if !was_failing => {
                tracing::warn!(event = "metrics_export_failed", destination, error, "metrics export failed");
            }
            None if was_failing => {
                tracing::info!(event = "metrics_export_recovered", destination, "metrics export recovered");
            }
            _ => {}
        }
    }
}
