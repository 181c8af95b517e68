//! The account as Prometheus text (exposition format 0.0.4) or OpenMetrics (1.0.0, which alone has exemplars), names by
//! the Collector's and OpenTelemetry's habits.

use std::fmt::{Display, Write};

use crate::{
    account::{
        DURATION_BOUNDS, DropReason, Dropped, Health, LaneSnapshot, Snapshot,
        exemplar::{Exemplar, Exemplars},
    },
    telemetry::PASSED_OVER,
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

/// Renders a snapshot; `resident_bytes` is the process's memory where it is known.
pub fn render(snapshot: &Snapshot, exemplars: &Exemplars, resident_bytes: Option<u64>, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(8 << 10), format };
    resets(&mut page, snapshot, exemplars);
    law(&mut page, snapshot);
    export_health(&mut page, &snapshot.lanes);
    own_health(&mut page, snapshot, resident_bytes);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

fn resets(page: &mut Page, snapshot: &Snapshot, exemplars: &Exemplars) {
    page.family("tcp_resets_total", "counter", "TCP resets that the kernel counted, before filters and sampling");
    for (direction, origin, cause, count) in &snapshot.resets {
        let labels = [("direction", direction.word()), ("origin", origin.word()), ("cause", cause.word())];
        page.sample("tcp_resets_total", &labels, count);
        if let Some(exemplar) = exemplars.of(*cause, *origin, *direction) {
            page.exemplar(&exemplar);
        }
    }
}

/// For each destination and signal: captured + recovered = exported + filtered + sampled_out + dropped + queued.
fn law(page: &mut Page, snapshot: &Snapshot) {
    let common = [
        ("captured", snapshot.captured, "Resets that the kernel counted"),
        ("filtered", snapshot.filtered, "Resets that the filters dropped"),
        ("sampled_out", snapshot.sampled_out, "Resets that sampling did not choose"),
    ];
    for (term, count, meaning) in common {
        let name = format!("reset_collector_{term}_resets_total");
        page.family(&name, "counter", meaning);
        page.sample(&name, &[], count);
    }
    let name = "reset_collector_dropped_resets_total";
    page.family(name, "counter", "Resets that were lost, by reason");
    if snapshot.lanes.is_empty() {
        dropped(page, name, &[], &snapshot.dropped_before_lanes);
    }
    for lane in &snapshot.lanes {
        dropped(page, name, &labels(lane), &lane.dropped);
    }
    let lanes = &snapshot.lanes;
    page.per_lane("exported_resets_total", "counter", "Resets that the backend accepted", lanes, |lane| lane.exported);
    let meaning = "Resets of an earlier run that storage held at the start";
    page.per_lane("recovered_resets_total", "counter", meaning, lanes, |lane| lane.recovered);
    let meaning = "Resets without a fate: in the ring buffer, in the pipeline, waiting and in flight";
    page.per_lane("queued_resets", "gauge", meaning, lanes, |lane| lane.queued);
}

fn dropped<'a>(page: &mut Page, name: &str, labels: &[(&'a str, &'a str)], counts: &Dropped) {
    for reason in DropReason::ALL {
        let labels: Vec<_> = labels.iter().copied().chain([("reason", reason.word())]).collect();
        page.sample(name, &labels, counts[*reason as usize]);
    }
}

fn export_health(page: &mut Page, lanes: &[LaneSnapshot]) {
    page.per_lane("queue_size", "gauge", "Resets that wait to be sent", lanes, |lane| lane.waiting);
    page.per_lane("in_flight_resets", "gauge", "Resets in requests", lanes, |lane| lane.in_flight);
    page.per_lane("queue_capacity", "gauge", "Resets that the queue takes", lanes, |lane| lane.health.capacity);
    page.per_lane("storage_bytes", "gauge", "Bytes of the queue on disk", lanes, |lane| lane.health.storage_bytes);
    page.per_lane("retries_total", "counter", "Requests sent again", lanes, |lane| lane.health.retries);
    let meaning = "Requests that the backend did not accept";
    page.per_lane("failed_requests_total", "counter", meaning, lanes, |lane| lane.health.failed_requests);
    let meaning = "Resets accepted after a try whose fate is not known: the backend may have them twice";
    page.per_lane("possibly_duplicated_resets_total", "counter", meaning, lanes, |lane| lane.health.resent);
    let meaning = "1 where the backend does not take the signal";
    page.per_lane("signal_switched_off", "gauge", meaning, lanes, |lane| u8::from(lane.health.signal_disabled));
    let meaning = "When a request failed last, 0 for never";
    page.per_lane("last_error_timestamp_seconds", "gauge", meaning, lanes, |lane| {
        lane.health.last_error_unix_s.unwrap_or(0.0)
    });
    let meaning = "When a request was accepted last, 0 for never";
    page.per_lane("last_success_timestamp_seconds", "gauge", meaning, lanes, |lane| {
        lane.health.last_success_unix_s.unwrap_or(0.0)
    });
    page.family("reset_collector_export_duration_seconds", "histogram", "How long requests take");
    lanes.iter().for_each(|lane| durations(page, &labels(lane), &lane.health));
}

fn durations(page: &mut Page, labels: &[(&str, &str)], health: &Health) {
    let name = "reset_collector_export_duration_seconds";
    let mut sum = 0;
    for (at, count) in health.durations.iter().enumerate() {
        sum += count;
        let bound = DURATION_BOUNDS.get(at).map_or("+Inf".to_owned(), f64::to_string);
        let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
        page.sample(&format!("{name}_bucket"), &labels, sum);
    }
    page.sample(&format!("{name}_sum"), labels, health.duration_sum.as_secs_f64());
    page.sample(&format!("{name}_count"), labels, sum);
}

fn own_health(page: &mut Page, snapshot: &Snapshot, resident_bytes: Option<u64>) {
    let name = "reset_collector_in_ring_buffer_resets";
    page.family(name, "gauge", "Resets that the kernel counted and the collector has not read");
    page.sample(name, &[], snapshot.in_ring_buffer);
    let name = "reset_collector_hook_active";
    page.family(name, "gauge", "1 where the hook is attached");
    for hook in &snapshot.hooks {
        page.sample(name, &[("hook", hook.hook)], u8::from(hook.active));
    }
    let name = "reset_collector_hook_passed_over_runs_total";
    page.family(name, "counter", PASSED_OVER);
    for hook in snapshot.hooks.iter().filter(|hook| hook.essential) {
        page.sample(name, &[("hook", hook.hook)], hook.passed_over);
    }
    let name = "reset_collector_confinement_active";
    page.family(name, "gauge", "1 where the process has given up what it does not need, by step");
    for (step, done) in &snapshot.confinement {
        page.sample(name, &[("step", step)], u8::from(*done));
    }
    if let Some(since_beat) = snapshot.since_beat {
        let name = "reset_collector_pipeline_idle_seconds";
        page.family(name, "gauge", "Since the pipeline's last sign of life, with resets or without");
        page.sample(name, &[], since_beat.as_secs_f64());
    }
    if let Some(bytes) = resident_bytes {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory of the collector");
        page.sample("process_resident_memory_bytes", &[], bytes);
    }
    page.family("process_start_time_seconds", "gauge", "When the collector started, seconds since 1970");
    page.sample("process_start_time_seconds", &[], snapshot.started_unix_s);
    page.family("reset_collector_build_info", "gauge", "The version, always 1");
    page.sample("reset_collector_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

fn labels(lane: &LaneSnapshot) -> [(&str, &str); 2] {
    [("destination", &lane.destination), ("signal", lane.signal.word())]
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, meaning: &str) {
        // OpenMetrics names a counter's family without its samples' ending.
        let plain = self.format == Format::Text || kind != "counter";
        let name = if plain { name } else { name.strip_suffix("_total").unwrap_or(name) };
        self.line(format_args!("# HELP {name} {meaning}\n# TYPE {name} {kind}\n"));
    }

    fn per_lane<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        meaning: &str,
        lanes: &[LaneSnapshot],
        value: impl Fn(&LaneSnapshot) -> V,
    ) {
        let name = format!("reset_collector_{name}");
        self.family(&name, kind, meaning);
        for lane in lanes {
            self.sample(&name, &labels(lane), value(lane));
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.line(format_args!("{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(text)));
        }
        self.line(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
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
    use std::collections::HashMap;

    use opentelemetry_proto::tonic::{
        collector::metrics::v1::ExportMetricsServiceRequest,
        common::v1::{AnyValue, KeyValue, any_value},
        metrics::v1::{Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric},
    };
    use probes::{COUNTERS, Cause, Direction, Origin, counter_index};
    use prost::Message;

    use super::*;
    use crate::{
        account::Account,
        event::EventBuilder,
        model::{Reset, Trace, TraceMethod, sample, signal::Signal},
    };

    #[test]
    fn the_law_can_be_checked_from_the_page_alone() {
        let account = Account::new();
        let (id, _) = account.open_lane("http://a\"b:4317", Signal::Logs);
        let mut resets = [0; COUNTERS as usize];
        resets[counter_index(Cause::LingerZero, Origin::Active, Direction::Transmit) as usize] = 50;
        account.kernel_counted(&resets, 0, &[(DropReason::RingBufferFull, 5)]);
        account.read(40);
        account.filtered(3);
        account.sampled_out(2);
        account.enqueued(id, 30);
        account.taken(id, 20);
        account.exported(id, 20, 1);
        let page = render(&account.snapshot(), &account.exemplars, Some(1 << 20), Format::Text);

        let mut sums: HashMap<&str, u64> = HashMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            *sums.entry(name).or_default() += value.parse::<f64>().unwrap() as u64;
        }
        let sum = |term: &str| sums[format!("reset_collector_{term}").as_str()];
        let fates = ["exported_resets_total", "filtered_resets_total", "sampled_out_resets_total", "queued_resets"];
        let fates = fates.iter().map(|term| sum(term)).sum::<u64>() + sum("dropped_resets_total");
        assert_eq!((sum("captured_resets_total") + sum("recovered_resets_total"), fates), (50, 50));
        assert_eq!(sums["tcp_resets_total"], 50);
        assert!(page.contains(r#"tcp_resets_total{direction="transmit",origin="active",cause="linger_zero"} 50"#));
        assert!(page.contains(
            r#"reset_collector_dropped_resets_total{destination="http://a\"b:4317",signal="logs",reason="ring_buffer_full"} 5"#
        ));
    }

    #[test]
    fn the_histogram_is_cumulative() {
        let account = Account::new();
        let (id, _) = account.open_lane("http://b:4317", Signal::Traces);
        for milliseconds in [1, 20, 20_000] {
            account.health(id, |health| health.request_took(std::time::Duration::from_millis(milliseconds)));
        }
        let page = render(&account.snapshot(), &account.exemplars, None, Format::Text);
        for (bound, count) in [("0.005", 1), ("0.025", 2), ("10", 2), ("+Inf", 3)] {
            let line = format!(
                "reset_collector_export_duration_seconds_bucket{{destination=\"http://b:4317\",signal=\"traces\",le=\"{bound}\"}} {count}\n"
            );
            assert!(page.contains(&line), "{line}{page}");
        }
    }

    #[test]
    fn openmetrics_has_the_exemplars() {
        let account = Account::new();
        let mut counts = [0; COUNTERS as usize];
        let reset = Reset { trace: Some(trace()), ..sample::reset() };
        counts[counter_index(reset.cause, reset.origin, reset.direction) as usize] = 3;
        account.kernel_counted(&counts, 0, &[]);
        let identity = EventBuilder::new(true, 1).build(&reset).contexts;
        account.exemplars.keep(&reset, &identity);
        let page = |format| render(&account.snapshot(), &account.exemplars, None, format);
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
        let account = Account::new();
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
            let mut bytes = request.encode_to_vec();
            let sent = account.exemplars.put_into(&mut bytes, sent);
            let read = ExportMetricsServiceRequest::decode(&bytes[..]).unwrap();
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
