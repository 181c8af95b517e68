//! Every metric of the collector, defined once: [`crate::telemetry::prometheus`] renders this table for `/metrics`, and
//! [`crate::telemetry`] exports it by OTLP, under the same names with the same labels.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::{
    account::{Account, DropReason, Dropped, QueueSnapshot, Snapshot, exemplar::Exemplar, snapshot::unix_seconds},
    correlate::Correlator,
    enrich::{self, pods::Pods},
    export::line_writer::LineWriter,
    model::signal::Signal,
    receiver::metrics::{RejectReason, Traffic},
    telemetry::{degraded::degraded, logging::Log},
};

/// What the metrics are read from. Without the optional parts their metrics have no series.
#[derive(Clone)]
pub struct Sources {
    /// The ledger of resets, and the health of queues and probes.
    pub account: Arc<Account>,
    /// Lines on standard output.
    pub console: Option<LineWriter>,
    /// The collector's own log.
    pub log: Option<Log>,
    /// What passes through the OTLP receivers.
    pub traffic: Option<Arc<Traffic>>,
    /// Owners of resets.
    pub enrichment: Option<Arc<enrich::Counters>>,
    /// Traces of resets.
    pub correlator: Option<Arc<Correlator>>,
    /// The Kubernetes API.
    pub pods: Option<Arc<Pods>>,
    /// Resets that shared the last bucket of a rate limit.
    pub sampling_overflow: Arc<AtomicU64>,
    /// Destinations that do not accept these metrics now, and the error.
    pub failing_exports: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Sources {
    /// The ledger alone.
    pub fn new(account: Arc<Account>) -> Self {
        Self {
            account,
            console: None,
            log: None,
            traffic: None,
            enrichment: None,
            correlator: None,
            pods: None,
            sampling_overflow: Arc::default(),
            failing_exports: Arc::default(),
        }
    }

    /// Every metric's points, all of one instant.
    pub fn collect(&self) -> Vec<Vec<Point>> {
        let observed = Observed { sources: self, snapshot: self.account.snapshot() };
        let points = |metric: &Metric| {
            let mut points = Points::default();
            (metric.observe)(&observed, &mut points);
            points.0
        };
        METRICS.iter().map(points).collect()
    }
}

/// How a metric's points are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls, and adds up across series.
    UpDownCounter,
    /// Does not add up.
    Gauge,
    /// Durations by upper bound.
    Histogram,
}

/// A metric of the table.
pub struct Metric {
    /// By OpenTelemetry's naming; [`crate::telemetry::prometheus::name`] derives the other.
    pub name: &'static str,
    /// UCUM, as OpenTelemetry has it.
    pub unit: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// One line.
    pub description: &'static str,
    observe: fn(&Observed<'_>, &mut Points),
}

/// A series at one instant.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its value.
    pub value: Value,
    /// Its labels, by their names in OpenTelemetry.
    pub labels: Labels,
    /// A reset that stands for the others.
    pub exemplar: Option<Exemplar>,
}

/// Labels, by their names in OpenTelemetry.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// A point's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Of counters and up-down counters.
    Integer(u64),
    /// Of gauges.
    Float(f64),
    /// Durations: how many up to each bound of [`crate::account::DURATION_BOUNDS`] and beyond, and their sum in seconds.
    Durations(Vec<u64>, f64),
}

/// What the table reads: one snapshot for all metrics of a collection, so that the accounting invariant holds among them.
struct Observed<'a> {
    sources: &'a Sources,
    snapshot: Snapshot,
}

#[derive(Default)]
struct Points(Vec<Point>);

impl Points {
    fn push(&mut self, value: u64, labels: Labels) {
        self.0.push(Point { value: Value::Integer(value), labels, exemplar: None });
    }

    fn push_float(&mut self, value: f64, labels: Labels) {
        self.0.push(Point { value: Value::Float(value), labels, exemplar: None });
    }

    /// A point for each destination and signal.
    fn per_queue(&mut self, observed: &Observed<'_>, value: impl Fn(&QueueSnapshot) -> u64) {
        observed.snapshot.queues.iter().for_each(|queue| self.push(value(queue), queue_labels(queue)));
    }
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    observe: fn(&Observed<'_>, &mut Points),
) -> Metric {
    Metric { name, unit, kind: Kind::Counter, description, observe }
}

const fn up_down(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    observe: fn(&Observed<'_>, &mut Points),
) -> Metric {
    Metric { name, unit, kind: Kind::UpDownCounter, description, observe }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    observe: fn(&Observed<'_>, &mut Points),
) -> Metric {
    Metric { name, unit, kind: Kind::Gauge, description, observe }
}

/// The table.
pub const METRICS: &[Metric] = &[
    counter("tcp.resets", "{reset}", "TCP resets that the kernel counted, before filters and sampling", resets),
    // The terms of the accounting invariant, for each destination and signal:
    // captured + recovered = exported + filtered + sampled_out + dropped + queued.
    counter("reset_collector.captured_resets", "{reset}", "Resets that the kernel counted", |observed, points| {
        points.push(observed.snapshot.captured, vec![]);
    }),
    counter("reset_collector.filtered_resets", "{reset}", "Resets that filters dropped", |observed, points| {
        points.push(observed.snapshot.filtered, vec![]);
    }),
    counter("reset_collector.sampled_out_resets", "{reset}", "Resets that sampling left out", |observed, points| {
        points.push(observed.snapshot.sampled_out, vec![]);
    }),
    counter("reset_collector.dropped_resets", "{reset}", "Resets lost, by reason", dropped),
    counter("reset_collector.exported_resets", "{reset}", "Resets that the backend accepted", |observed, points| {
        points.per_queue(observed, |queue| queue.exported);
    }),
    counter(
        "reset_collector.recovered_resets",
        "{reset}",
        "Resets of an earlier run found in storage at startup",
        |observed, points| points.per_queue(observed, |queue| queue.recovered),
    ),
    up_down(
        "reset_collector.queued_resets",
        "{reset}",
        "Resets captured but not yet exported, dropped or filtered",
        |observed, points| points.per_queue(observed, |queue| queue.queued),
    ),
    up_down("reset_collector.queue_size", "{reset}", "Resets in the sending queue", |observed, points| {
        points.per_queue(observed, |queue| queue.waiting);
    }),
    up_down("reset_collector.queue_capacity", "{reset}", "Capacity of the sending queue", |observed, points| {
        points.per_queue(observed, |queue| queue.health.capacity);
    }),
    up_down("reset_collector.in_flight_resets", "{reset}", "Resets in requests", |observed, points| {
        points.per_queue(observed, |queue| queue.in_flight);
    }),
    up_down("reset_collector.storage", "By", "Size of the sending queue on disk", |observed, points| {
        points.per_queue(observed, |queue| queue.health.storage_bytes);
    }),
    counter("reset_collector.retries", "{request}", "Requests sent again", |observed, points| {
        points.per_queue(observed, |queue| queue.health.retries);
    }),
    counter(
        "reset_collector.failed_requests",
        "{request}",
        "Requests that the backend did not accept",
        |observed, points| {
            points.per_queue(observed, |queue| queue.health.failed_requests);
        },
    ),
    counter(
        "reset_collector.resent_resets",
        "{reset}",
        "Resets accepted after an attempt with an unknown outcome: the backend may have them twice",
        |observed, points| points.per_queue(observed, |queue| queue.health.resent),
    ),
    gauge(
        "reset_collector.exporter_signal_disabled",
        "1",
        "1 while nothing is sent because the backend does not support the signal",
        |observed, points| {
            for queue in &observed.snapshot.queues {
                points.push_float(flag(queue.health.signal_disabled), queue_labels(queue));
            }
        },
    ),
    gauge("reset_collector.last_failure_timestamp", "s", "Time of the last failed request", |observed, points| {
        for queue in &observed.snapshot.queues {
            queue.health.last_error_unix_s.into_iter().for_each(|time| points.push_float(time, queue_labels(queue)));
        }
    }),
    gauge("reset_collector.last_success_timestamp", "s", "Time of the last accepted request", |observed, points| {
        for queue in &observed.snapshot.queues {
            queue.health.last_success_unix_s.into_iter().for_each(|time| points.push_float(time, queue_labels(queue)));
        }
    }),
    Metric {
        name: "reset_collector.export_duration",
        unit: "s",
        kind: Kind::Histogram,
        description: "Duration of export requests",
        observe: |observed, points| {
            for queue in &observed.snapshot.queues {
                let health = &queue.health;
                let value = Value::Durations(health.durations.to_vec(), health.duration_sum.as_secs_f64());
                points.0.push(Point { value, labels: queue_labels(queue), exemplar: None });
            }
        },
    },
    up_down(
        "reset_collector.ring_buffer_resets",
        "{reset}",
        "Resets that the kernel counted and the collector has not read",
        |observed, points| points.push(observed.snapshot.in_ring_buffer, vec![]),
    ),
    gauge("reset_collector.probe_attached", "1", "1 if the probe is attached", |observed, points| {
        for probe in &observed.snapshot.hooks {
            points.push_float(flag(probe.active), vec![("probe", probe.hook.into())]);
        }
    }),
    counter(
        "reset_collector.probe_missed_runs",
        "{run}",
        "Probe runs that the kernel skipped, each of which may have been a reset",
        |observed, points| {
            for probe in observed.snapshot.hooks.iter().filter(|probe| probe.essential) {
                points.push(probe.missed_runs, vec![("probe", probe.hook.into())]);
            }
        },
    ),
    gauge("reset_collector.hardening_active", "1", "1 if the hardening step succeeded", |observed, points| {
        for (step, done) in &observed.snapshot.hardening {
            points.push_float(flag(*done), vec![("step", (*step).into())]);
        }
    }),
    gauge(
        "reset_collector.heartbeat_age",
        "s",
        "Time since an unanswered request for a heartbeat of the reader",
        |observed, points| {
            observed.snapshot.heartbeat_age.iter().for_each(|age| points.push_float(age.as_secs_f64(), vec![]));
        },
    ),
    gauge("reset_collector.degraded", "1", "1 for each reason that /readyz names", |observed, points| {
        for reason in degraded(observed.sources, &observed.snapshot) {
            points.push_float(1.0, reason.labels);
        }
    }),
    counter("reset_collector.correlated_resets", "{reset}", "Resets by what correlation found", correlated),
    counter(
        "reset_collector.enrichment_events",
        "{event}",
        "Events of owner resolution, by kind",
        |observed, points| {
            for (event, _, count) in observed.sources.enrichment.iter().flat_map(|counters| counters.each()) {
                points.push(count, vec![("event", event.into())]);
            }
        },
    ),
    counter(
        "reset_collector.sampling_overflow_resets",
        "{reset}",
        "Resets that a rate limit did not group because it had too many groups",
        |observed, points| points.push(observed.sources.sampling_overflow.load(Ordering::Relaxed), vec![]),
    ),
    counter(
        "reset_collector.kubernetes_failures",
        "{failure}",
        "Failures of the watch for pod names",
        |observed, points| observed.sources.pods.iter().for_each(|pods| points.push(pods.failures(), vec![])),
    ),
    counter(
        "reset_collector.forwarded_requests",
        "{request}",
        "OTLP requests that the backend answered",
        |observed, points| {
            if let Some(traffic) = &observed.sources.traffic {
                for signal in Signal::ALL {
                    points.push(traffic.passed(*signal).0, vec![("signal", signal.word().into())]);
                }
            }
        },
    ),
    counter(
        "reset_collector.forwarded",
        "By",
        "Size of the OTLP requests that the backend answered",
        |observed, points| {
            if let Some(traffic) = &observed.sources.traffic {
                for signal in Signal::ALL {
                    points.push(traffic.passed(*signal).1, vec![("signal", signal.word().into())]);
                }
            }
        },
    ),
    counter(
        "reset_collector.rejected_requests",
        "{request}",
        "OTLP requests that the receiver answered itself, by reason",
        |observed, points| {
            if let Some(traffic) = &observed.sources.traffic {
                for reason in RejectReason::ALL {
                    points.push(traffic.refused(*reason), vec![("reason", reason.word().into())]);
                }
            }
        },
    ),
    counter(
        "reset_collector.unparsed_requests",
        "{request}",
        "Trace requests that were forwarded without being read",
        |observed, points| observed.sources.traffic.iter().for_each(|traffic| points.push(traffic.malformed(), vec![])),
    ),
    counter(
        "reset_collector.console_dropped_lines",
        "{line}",
        "Lines dropped because standard output was not read or could not be written",
        |observed, points| observed.sources.console.iter().for_each(|lines| points.push(lines.dropped(), vec![])),
    ),
    counter(
        "reset_collector.log_dropped_lines",
        "{line}",
        "Log lines dropped because standard error was not read or could not be written",
        |observed, points| observed.sources.log.iter().for_each(|log| points.push(log.dropped_lines(), vec![])),
    ),
    gauge("reset_collector.build_info", "1", "Always 1, with the version as label", |_, points| {
        points.push_float(1.0, vec![("version", env!("CARGO_PKG_VERSION").into())]);
    }),
    up_down("process.memory.usage", "By", "Resident memory", |_, points| {
        resident_bytes().into_iter().for_each(|bytes| points.push(bytes, vec![]));
    }),
    gauge("process.uptime", "s", "Time since the start", |observed, points| {
        points.push_float((unix_seconds(SystemTime::now()) - observed.snapshot.started_unix_s).max(0.0), vec![]);
    }),
];

fn resets(observed: &Observed<'_>, points: &mut Points) {
    for (direction, origin, cause, count) in &observed.snapshot.resets {
        let labels = vec![
            ("network.io.direction", direction.word().into()),
            ("tcp.reset.origin", origin.word().into()),
            ("tcp.reset.cause", cause.word().into()),
        ];
        let exemplar = observed.sources.account.exemplars.of(*cause, *origin, *direction);
        points.0.push(Point { value: Value::Integer(*count), labels, exemplar });
    }
}

fn dropped(observed: &Observed<'_>, points: &mut Points) {
    let mut push = |labels: &Labels, counts: &Dropped| {
        for reason in DropReason::ALL {
            let reason_label = ("reason", reason.name().into());
            points.push(counts[*reason as usize], labels.iter().cloned().chain([reason_label]).collect());
        }
    };
    if observed.snapshot.queues.is_empty() {
        push(&vec![], &observed.snapshot.dropped_before_queues);
    }
    observed.snapshot.queues.iter().for_each(|queue| push(&queue_labels(queue), &queue.dropped));
}

fn correlated(observed: &Observed<'_>, points: &mut Points) {
    let Some(correlator) = &observed.sources.correlator else { return };
    let stats = correlator.stats.read();
    let outcomes = [
        ("on_span", stats.on_span),
        ("trace_only", stats.passed),
        ("ambiguous", stats.ambiguous),
        ("unmatched", stats.unmatched),
        ("overflow", stats.overflow),
    ];
    outcomes.into_iter().for_each(|(outcome, count)| points.push(count, vec![("outcome", outcome.into())]));
}

/// The labels of a sending queue.
pub(crate) fn queue_labels(queue: &QueueSnapshot) -> Labels {
    vec![("destination", queue.destination.to_string().into()), ("signal", queue.signal.word().into())]
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

/// Second field of /proc/self/statm, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
