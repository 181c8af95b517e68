//! The collector's metrics by OTLP: `tcp.resets`, the conservation law's terms, its own health.
//!
//! opentelemetry-otlp encodes them; [`Client`] carries them, so that TLS, proxies, headers, protocol and compression
//! are those of the destination, and an answer is judged by the same table. A failed export is not tried again: the
//! counters are cumulative, the next period carries everything.

pub mod admin;
pub mod logging;
pub mod prometheus;
pub mod systemd;

use std::{
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Compression, MetricExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
};
use tokio::runtime::Handle;

use crate::{
    account::{Account, DURATION_BOUNDS, DropReason, LaneSnapshot, Snapshot},
    config::settings::Destination,
    export::{
        log_throttle::LogThrottle,
        retry::{self, RetryDecision},
    },
    model::signal::Signal,
    otlp::client::{Client, ClientError},
    telemetry::admin::resident_bytes,
};

/// Between two exports, as OTEL_METRIC_EXPORT_INTERVAL's default.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// One snapshot serves all instruments of a period.
const SNAPSHOT_AGE: Duration = Duration::from_millis(500);
/// What the counter of the runs of hooks that the kernel passed over means.
const PASSED_OVER: &str = "Runs of a hook that the kernel passed over, each of which may have been a reset";

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

/// The metrics' way to one destination.
pub struct Telemetry {
    provider: SdkMeterProvider,
}

impl Telemetry {
    /// Starts a reader that exports the account at this interval, sending on this runtime.
    pub fn start(
        destination: &Destination,
        account: Arc<Account>,
        interval: Duration,
        runtime: &Handle,
    ) -> Result<Self, TelemetryError> {
        let _inside = runtime.enter();
        let name = destination.endpoint.clone();
        let client =
            Client::new(destination).map_err(|error| TelemetryError::Client { destination: name.clone(), error })?;
        let carrier = Carrier(Arc::new(Metrics {
            destination: name.clone(),
            client,
            runtime: runtime.clone(),
            account: Arc::clone(&account),
            exemplars_told: AtomicU64::new(0),
            off: AtomicBool::new(false),
            troubles: LogThrottle::default(),
        }));
        // Endpoint and compression are named so that the SDK does not take them from the environment; neither reaches
        // the wire.
        let exporter = MetricExporter::builder()
            .with_http()
            .with_http_client(carrier)
            .with_endpoint("http://localhost/v1/metrics")
            .with_compression(Compression::Gzip)
            .build()
            .map_err(|error| TelemetryError::Sdk { destination: name, why: error.to_string() })?;
        let reader = PeriodicReader::builder(exporter).with_interval(interval).build();
        let resource = Resource::builder()
            .with_service_name("reset-collector")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        instruments(&provider, account);
        Ok(Self { provider })
    }

    /// Exports a last time, until the deadline at most.
    pub async fn shutdown(self, deadline: Instant) {
        let longest = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(longest)).await;
        if let Ok(Err(error)) = ended {
            tracing::debug!("metrics: {error}");
        }
    }
}

fn instruments(provider: &SdkMeterProvider, account: Arc<Account>) {
    let meter = provider.meter("reset-collector");
    let view = Arc::new(View { account, latest: Mutex::new(None) });
    // An observable instrument lives as long as its provider; the handle that is returned is of no use.
    let count = |name: &'static str, unit, meaning: &'static str, observe: fn(&Snapshot, &mut Observed<u64>)| {
        let view = view.clone();
        let builder = meter.u64_observable_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(move |observer| view.each(observe, |v, l| observer.observe(v, l))).build();
    };
    let counter = |name, meaning, observe| count(name, "{reset}", meaning, observe);
    counter("tcp.resets", "TCP resets that the kernel counted, before filters and sampling", |snapshot, out| {
        for (direction, origin, cause, count) in &snapshot.resets {
            out.push((
                *count,
                vec![
                    KeyValue::new("network.io.direction", direction.word()),
                    KeyValue::new("tcp.reset.origin", origin.word()),
                    KeyValue::new("tcp.reset.cause", cause.word()),
                ],
            ));
        }
    });
    counter("reset_collector.captured_resets", "Resets that the kernel counted", |snapshot, out| {
        out.push((snapshot.captured, vec![]));
    });
    counter("reset_collector.filtered_resets", "Resets that the filters dropped", |snapshot, out| {
        out.push((snapshot.filtered, vec![]));
    });
    counter("reset_collector.sampled_out_resets", "Resets that sampling did not choose", |snapshot, out| {
        out.push((snapshot.sampled_out, vec![]));
    });
    counter("reset_collector.exported_resets", "Resets that the backend accepted", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.exported, labels(lane))));
    });
    counter("reset_collector.recovered_resets", "Resets of an earlier run that storage held", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.recovered, labels(lane))));
    });
    counter("reset_collector.dropped_resets", "Resets that were lost, by reason", dropped);
    count("reset_collector.retries", "{request}", "Requests sent again", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.health.retries, labels(lane))));
    });
    counter("reset_collector.possibly_duplicated_resets", "Resets that the backend may have twice", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.health.resent, labels(lane))));
    });
    count(
        "reset_collector.failed_requests",
        "{request}",
        "Requests that the backend did not accept",
        |snapshot, out| {
            out.extend(snapshot.lanes.iter().map(|lane| (lane.health.failed_requests, labels(lane))));
        },
    );
    count("reset_collector.hook_passed_over_runs", "{run}", PASSED_OVER, |snapshot, out| {
        let hooks = snapshot.hooks.iter().filter(|hook| hook.essential);
        out.extend(hooks.map(|hook| (hook.passed_over, vec![KeyValue::new("hook", hook.hook)])));
    });
    let gauge = |name: &'static str, unit, meaning: &'static str, observe: fn(&Snapshot, &mut Observed<u64>)| {
        let view = view.clone();
        let builder = meter.u64_observable_gauge(name).with_unit(unit).with_description(meaning);
        builder.with_callback(move |observer| view.each(observe, |v, l| observer.observe(v, l))).build();
    };
    gauge("reset_collector.queued_resets", "{reset}", "Resets without a fate", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.queued, labels(lane))));
    });
    gauge("reset_collector.queue_size", "{reset}", "Resets that wait to be sent", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.waiting, labels(lane))));
    });
    gauge("reset_collector.queue_capacity", "{reset}", "Resets that the queue takes", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.health.capacity, labels(lane))));
    });
    gauge("reset_collector.in_flight_resets", "{reset}", "Resets in requests", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.in_flight, labels(lane))));
    });
    gauge("reset_collector.storage_bytes", "By", "Bytes of the queue on disk", |snapshot, out| {
        out.extend(snapshot.lanes.iter().map(|lane| (lane.health.storage_bytes, labels(lane))));
    });
    gauge("reset_collector.last_error_timestamp", "s", "When a request failed last, since 1970", |snapshot, out| {
        // Whole seconds; a lane that never failed has no point.
        let failed =
            snapshot.lanes.iter().filter_map(|lane| Some((lane.health.last_error_unix_s? as u64, labels(lane))));
        out.extend(failed);
    });
    gauge("reset_collector.hook_active", "1", "1 where the hook is attached", |snapshot, out| {
        let hooks = snapshot.hooks.iter();
        out.extend(hooks.map(|hook| (u64::from(hook.active), vec![KeyValue::new("hook", hook.hook)])));
    });
    gauge("process.memory.usage", "By", "Resident memory of the collector", |_, out| {
        out.extend(resident_bytes().map(|bytes| (bytes, vec![])));
    });
    let durations = meter
        .f64_histogram("reset_collector.export_duration")
        .with_unit("s")
        .with_description("How long requests take")
        .with_boundaries(DURATION_BOUNDS.to_vec())
        .build();
    view.account.on_request(move |destination, signal, duration| {
        let labels = [KeyValue::new("destination", destination.to_owned()), KeyValue::new("signal", signal.word())];
        durations.record(duration.as_secs_f64(), &labels);
    });
}

fn dropped(snapshot: &Snapshot, out: &mut Observed<u64>) {
    for lane in &snapshot.lanes {
        for reason in DropReason::ALL {
            let count = lane.dropped[*reason as usize];
            if count > 0 {
                let mut labels = labels(lane);
                labels.push(KeyValue::new("reason", reason.word()));
                out.push((count, labels));
            }
        }
    }
}

fn labels(lane: &LaneSnapshot) -> Vec<KeyValue> {
    vec![KeyValue::new("destination", lane.destination.to_string()), KeyValue::new("signal", lane.signal.word())]
}

type Observed<V> = Vec<(V, Vec<KeyValue>)>;

/// The account at one instant for all instruments of a period, so that the law holds among the points as well.
struct View {
    account: Arc<Account>,
    latest: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

impl View {
    fn each(&self, observe: fn(&Snapshot, &mut Observed<u64>), mut emit: impl FnMut(u64, &[KeyValue])) {
        let mut out = Vec::new();
        observe(&self.snapshot(), &mut out);
        out.iter().for_each(|(value, labels)| emit(*value, labels));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((taken, snapshot)) if taken.elapsed() < SNAPSHOT_AGE => snapshot.clone(),
            _ => {
                let snapshot = Arc::new(self.account.snapshot());
                *latest = Some((Instant::now(), snapshot.clone()));
                snapshot
            }
        }
    }
}

/// Stands where the SDK wants an HTTP client. Always says that all went well: what did not is said here, once.
#[derive(Clone)]
struct Carrier(Arc<Metrics>);

struct Metrics {
    destination: String,
    client: Client,
    runtime: Handle,
    account: Arc<Account>,
    /// The number of the last exemplar that went out.
    exemplars_told: AtomicU64,
    off: AtomicBool,
    troubles: LogThrottle,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Carrier").field(&self.0.destination).finish()
    }
}

#[async_trait]
impl HttpClient for Carrier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut message = Vec::new();
        flate2::read::GzDecoder::new(&request.into_body()[..]).read_to_end(&mut message)?;
        let metrics = self.0.clone();
        let told = metrics.account.exemplars.put_into(&mut message, metrics.exemplars_told.load(Ordering::Relaxed));
        metrics.exemplars_told.store(told, Ordering::Relaxed);
        // The SDK's reader runs on a thread of its own, without the runtime that the connections need.
        self.0.runtime.spawn(async move { metrics.send(message.into()).await }).await?;
        Ok(Response::new(Bytes::new()))
    }
}

impl Metrics {
    async fn send(&self, message: Bytes) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let verdict = match self.client.send(Signal::Metrics, message).await {
            Ok(answer) => retry::classify(&answer, SystemTime::now()),
            Err(error) => RetryDecision::Retry { after: None, reason: error.to_string() },
        };
        let destination = &self.destination;
        match verdict {
            RetryDecision::Accepted { .. } => {}
            RetryDecision::Unsupported { reason, .. } => {
                self.off.store(true, Ordering::Relaxed);
                tracing::warn!(
                    "{destination}: does not take metrics ({reason}); metrics stop here, the other signals go on; \
                     take metrics out of export.signals to be rid of this line"
                );
            }
            RetryDecision::Retry { reason, .. } | RetryDecision::NonRetryable { reason, .. } => {
                if self.troubles.due("metrics_export_failed", Instant::now()).is_some() {
                    tracing::warn!("{destination}: metrics do not go out: {reason}; the next ones carry the counts");
                }
            }
        }
    }
}
