//! The table of metrics as Prometheus text (exposition format 0.0.4) or OpenMetrics (1.0.0, which alone has exemplars).

use std::fmt::{Display, Write};

use crate::{
    account::{DURATION_BOUNDS, exemplar::Exemplar},
    telemetry::metrics::{Kind, Labels, METRICS, Metric, Sources, Value},
};

/// The text's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own.
    Text,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// What a scraper's `Accept` asks for: OpenMetrics where it is named, unless with a weight of zero.
    pub fn accepted(accept: &str) -> Self {
        let wanted = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok());
            named && weight.is_none_or(|weight| weight > 0.0)
        });
        if wanted { Self::OpenMetrics } else { Self::Text }
    }

    /// `Content-Type` of the text.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Renders every metric that has a series.
pub fn render(sources: &Sources, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(16 << 10), format };
    for (metric, points) in METRICS.iter().zip(sources.collect()) {
        if points.is_empty() {
            continue;
        }
        let name = name(metric);
        page.family(&name, metric);
        for point in points {
            match point.value {
                Value::Integer(value) => page.sample(&name, "", &point.labels, value),
                Value::Float(value) => page.sample(&name, "", &point.labels, value),
                Value::Durations(counts, sum) => page.durations(&name, &point.labels, &counts, sum),
            }
            point.exemplar.iter().for_each(|exemplar| page.exemplar(exemplar));
        }
    }
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

/// A metric's name in Prometheus, as OpenTelemetry derives it: the unit and `_total` are endings.
pub fn name(metric: &Metric) -> String {
    let unit = match metric.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    let total = if metric.kind == Kind::Counter { "_total" } else { "" };
    format!("{}{unit}{total}", metric.name.replace('.', "_"))
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn family(&mut self, name: &str, metric: &Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::UpDownCounter | Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // OpenMetrics names a counter's family without its samples' ending.
        let name = if self.format == Format::Text { name } else { name.strip_suffix("_total").unwrap_or(name) };
        self.line(format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", metric.description));
    }

    fn sample(&mut self, name: &str, ending: &str, labels: &Labels, value: impl Display) {
        self.line(format_args!("{name}{ending}"));
        for (at, (label, text)) in labels.iter().enumerate() {
            let label = label.replace('.', "_");
            self.line(format_args!("{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(text)));
        }
        self.line(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    fn durations(&mut self, name: &str, labels: &Labels, counts: &[u64], sum: f64) {
        let mut total = 0;
        for (at, count) in counts.iter().enumerate() {
            total += count;
            let bound = DURATION_BOUNDS.get(at).map_or("+Inf".to_owned(), f64::to_string);
            let labels = labels.iter().cloned().chain([("le", bound.into())]).collect();
            self.sample(name, "_bucket", &labels, total);
        }
        self.sample(name, "_sum", labels, sum);
        self.sample(name, "_count", labels, total);
    }

    /// Puts an exemplar behind the last sample.
    fn exemplar(&mut self, exemplar: &Exemplar) {
        if self.format == Format::Text || self.text.pop() != Some('\n') {
            return;
        }
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let trace = hexadecimal(&exemplar.trace_id);
        let span = exemplar.span_id.map(|id| format!(",span_id=\"{}\"", hexadecimal(&id))).unwrap_or_default();
        let (seconds, rest) = (exemplar.time_unix_ns / 1_000_000_000, exemplar.time_unix_ns % 1_000_000_000);
        self.line(format_args!(" # {{trace_id=\"{trace}\"{span}}} 1 {seconds}.{rest:09}\n"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a String cannot fail.
        self.text.write_fmt(line).unwrap_or_default();
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use std::{collections::HashMap, sync::Arc};

    use opentelemetry_proto::tonic::{
        collector::metrics::v1::ExportMetricsServiceRequest,
        common::v1::{AnyValue, KeyValue, any_value},
        metrics::v1::{Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric},
    };
    use probes::{COUNTERS, Cause, Direction, Origin, counter_index};
    use prost::Message;

    use super::*;
    use crate::{
        account::{Account, DropReason},
        event::EventBuilder,
        model::{Reset, Trace, TraceMethod, sample, signal::Signal},
    };

    #[test]
    fn the_law_can_be_checked_from_the_page_alone() {
        let account = Arc::new(Account::new());
        let (id, _) = account.open_queue("http://a\"b:4317", Signal::Logs);
        let mut resets = [0; COUNTERS as usize];
        resets[counter_index(Cause::LingerZero, Origin::Active, Direction::Transmit) as usize] = 50;
        account.ledger.set_kernel_counts(&resets, 0, &[(DropReason::RingBufferFull, 5)]);
        account.ledger.add_captured(40);
        account.ledger.filtered(3);
        account.ledger.sampled_out(2);
        account.ledger.enqueued(id, 30);
        account.ledger.begin_export(id, 20);
        account.ledger.exported(id, 20, 1);
        let page = render(&Sources::new(account), Format::Text);

        let mut sums: HashMap<&str, u64> = HashMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            *sums.entry(name).or_default() += value.parse::<f64>().unwrap() as u64;
        }
        let sum = |term: &str| sums[format!("reset_collector_{term}").as_str()];
        let outcomes = ["exported_resets_total", "filtered_resets_total", "sampled_out_resets_total", "queued_resets"];
        let outcomes = outcomes.iter().map(|term| sum(term)).sum::<u64>() + sum("dropped_resets_total");
        assert_eq!((sum("captured_resets_total") + sum("recovered_resets_total"), outcomes), (50, 50));
        assert_eq!(sums["tcp_resets_total"], 50);
        assert!(page.contains(r#"tcp_resets_total{network_io_direction="transmit",tcp_reset_origin="active",tcp_reset_cause="linger_zero"} 50"#));
        assert!(page.contains(
            r#"reset_collector_dropped_resets_total{destination="http://a\"b:4317",signal="logs",reason="ring_buffer_full"} 5"#
        ));
    }

    #[test]
    fn the_histogram_is_cumulative() {
        let account = Arc::new(Account::new());
        let (id, _) = account.open_queue("http://b:4317", Signal::Traces);
        for milliseconds in [1, 20, 20_000] {
            account.health.update(id, |health| health.request_took(std::time::Duration::from_millis(milliseconds)));
        }
        let page = render(&Sources::new(account), Format::Text);
        for (bound, count) in [("0.005", 1), ("0.025", 2), ("10", 2), ("+Inf", 3)] {
            let line = format!(
                "reset_collector_export_duration_seconds_bucket{{destination=\"http://b:4317\",signal=\"traces\",le=\"{bound}\"}} {count}\n"
            );
            assert!(page.contains(&line), "{line}{page}");
        }
    }

    #[test]
    fn names_are_unique_and_end_as_their_kind_and_unit_ask() {
        let names: Vec<_> = METRICS.iter().map(name).collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), METRICS.len());
        for (metric, name) in METRICS.iter().zip(&names) {
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(name.chars().all(|char| char.is_ascii_lowercase() || char == '_'), "{name}");
            assert!(!metric.description.is_empty() && !metric.description.contains(['\n', '\\']), "{name}");
        }
        for known in [
            "tcp_resets_total",
            "reset_collector_storage_bytes",
            "reset_collector_export_duration_seconds",
            "reset_collector_heartbeat_age_seconds",
            "reset_collector_last_failure_timestamp_seconds",
            "reset_collector_queued_resets",
            "process_memory_usage_bytes",
        ] {
            assert!(names.iter().any(|name| name == known), "{known}: {names:?}");
        }
    }

    #[test]
    fn openmetrics_has_the_exemplars() {
        let account = Arc::new(Account::new());
        let mut counts = [0; COUNTERS as usize];
        let reset = Reset { trace: Some(trace()), ..sample::reset() };
        counts[counter_index(reset.cause, reset.origin, reset.direction) as usize] = 3;
        account.ledger.set_kernel_counts(&counts, 0, &[]);
        let identity = EventBuilder::new(true, 1).build(&reset).contexts;
        account.exemplars.keep(&reset, &identity);
        let sources = Sources::new(account);
        let page = |format| render(&sources, format);
        let (text, open) = (page(Format::Text), page(Format::OpenMetrics));
        assert!(!text.contains(" # {") && !text.contains("# EOF"));
        let line = open.lines().find(|line| line.starts_with("tcp_resets_total")).unwrap();
        let (sample, exemplar) = line.split_once(" # ").unwrap();
        assert!(sample.ends_with("} 3"), "{sample}");
        assert!(exemplar.starts_with(&format!("{{trace_id=\"{}\",span_id=\"", "01".repeat(16))), "{exemplar}");
        assert!(exemplar.ends_with("\"} 1 1795553979.123456789"), "{exemplar}");
        assert!(open.contains("# TYPE tcp_resets counter\n") && open.ends_with("# EOF\n"));
        // Samples of a counter end with _total, and every family stands once.
        let families: Vec<_> = open.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(families.iter().all(|family| !family.contains("_total")), "{families:?}");
    }

    #[test]
    fn the_scraper_says_which_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("text/plain, Application/OpenMetrics-Text; q=0.4", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Text),
            ("text/plain", Format::Text),
            ("*/*", Format::Text),
            ("", Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn otlp_gets_each_exemplar_once() {
        let account = Arc::new(Account::new());
        let reset = Reset { trace: Some(trace()), ..sample::reset() };
        let text = |key: &str, word: &str| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(word.into())) }),
            ..KeyValue::default()
        };
        let attributes = |cause: Cause| {
            let of_reset = text("network.io.direction", reset.direction.word());
            vec![text("tcp.reset.cause", cause.word()), text("tcp.reset.origin", reset.origin.word()), of_reset]
        };
        let point = |cause| NumberDataPoint { attributes: attributes(cause), ..NumberDataPoint::default() };
        let data_points = vec![point(Cause::PortClosed), point(reset.cause)];
        let data = Some(metric::Data::Sum(Sum { data_points, ..Sum::default() }));
        let metrics = vec![Metric { name: "tcp.resets".into(), data, ..Metric::default() }];
        let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }],
        };
        let exemplars = |sent| {
            let (bytes, sent) = account.exemplars.put_into(request.encode_to_vec().into(), sent);
            let read = ExportMetricsServiceRequest::decode(bytes).unwrap();
            let data = read.resource_metrics[0].scope_metrics[0].metrics[0].data.clone();
            let Some(metric::Data::Sum(sum)) = data else { panic!("no sum") };
            (sent, sum.data_points.into_iter().map(|point| point.exemplars).collect::<Vec<_>>())
        };
        assert_eq!(exemplars(0), (0, vec![vec![], vec![]]), "none yet");
        let ambiguous = Trace { method: TraceMethod::Ambiguous, ..trace() };
        for unknown in [None, Some(ambiguous)] {
            let reset = Reset { trace: unknown, ..reset.clone() };
            account.exemplars.keep(&reset, &EventBuilder::new(true, 1).build(&reset).contexts);
        }
        assert_eq!(exemplars(0).0, 0, "no trace of an application's");
        account.exemplars.keep(&reset, &EventBuilder::new(true, 1).build(&reset).contexts);
        let (sent, points) = exemplars(0);
        assert_eq!((sent, points[0].len(), points[1].len()), (1, 0, 1));
        assert_eq!((&points[1][0].trace_id[..], points[1][0].time_unix_nano), (&[1; 16][..], reset.time_unix_ns));
        assert_eq!(exemplars(sent), (1, vec![vec![], vec![]]), "sent already");
    }

    fn trace() -> Trace {
        let (method, on_application_span) = (TraceMethod::Span, true);
        Trace {
            trace_id: [1; 16],
            span_id: Some([2; 8]),
            method,
            on_application_span,
            incoming: false,
            candidates: Vec::new(),
        }
    }
}
