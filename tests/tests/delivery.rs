//! The records that a real OpenTelemetry Collector gets are those that were printed, by both protocols.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a skip says why")]

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::{Backend, Log},
    collector::Collector,
    poll::eventually,
    record::Record,
    require_root, suite,
};
use serde_json::{Map, Value};

/// Scenarios that between them have every origin, both directions, and owners of several kinds.
const FILTERS: [&str; 8] = [
    "ack_to_listener",
    "close_with_some_unread",
    "half_open_restarted",
    "linger_zero_client",
    "listener_closed",
    "nginx_444",
    "rejected_by_iptables",
    "reset_in_window",
];
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn records_arrive_by_grpc() -> Result<()> {
    arrive("grpc", |backend| backend.grpc.to_string())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn records_arrive_by_http() -> Result<()> {
    arrive("http/protobuf", |backend| backend.http.to_string())
}

fn arrive(protocol: &str, address: impl Fn(&Backend) -> String) -> Result<()> {
    require_root()?;
    let backend = Backend::start()?;
    let endpoint = format!("http://{}", address(&backend));
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
    let collector = Collector::start(&[], &variables)?;
    let outcomes = suite::run(&FILTERS, Some(&collector))?;
    ensure!(outcomes.iter().all(|outcome| outcome.faults.is_empty()), "{}", suite::table(&outcomes));
    let printed = collector.all_records()?;
    ensure!(printed.len() > 50, "only {} records", printed.len());
    let arrived = awaited(&backend, &printed)?;
    println!("{protocol}: {} records printed, {} arrived", printed.len(), arrived.len());
    compare(&printed, &arrived)?;
    collector.stop()?;
    Ok(())
}

/// The records that arrived and were printed: the host's own resets may go on meanwhile.
fn awaited(backend: &Backend, printed: &[Record]) -> Result<Vec<Log>> {
    let times: HashSet<u64> = printed.iter().map(|record| record.time_ns).collect();
    let look = || {
        let mut logs = backend.logs()?;
        logs.retain(|log| times.contains(&log.time_ns));
        Ok(logs)
    };
    eventually(ARRIVAL_TIMEOUT, "all printed records at the backend", look, |logs| logs.len() >= printed.len())
}

fn compare(printed: &[Record], arrived: &[Log]) -> Result<()> {
    let mut left: Vec<&Log> = arrived.iter().collect();
    for record in printed {
        let attributes: Map<String, Value> =
            record.attributes().map(|(name, value)| (name.clone(), value.clone())).collect();
        let at = left.iter().position(|log| log.time_ns == record.time_ns && log.attributes == attributes);
        let log = left.swap_remove(at.with_context(|| format!("printed and did not arrive: {record:?}"))?);
        let resource: Map<String, Value> =
            record.resource().map(|(name, value)| (name.clone(), value.clone())).collect();
        ensure!(log.resource == resource, "resources differ: {:?}, printed {resource:?}", log.resource);
        ensure!(log.event_name == "tcp.reset", "event name {:?}", log.event_name);
        ensure!(log.body == record.text("body"), "bodies differ: {}, printed {}", log.body, record.text("body"));
        ensure!(log.record["severityNumber"].as_u64().is_some_and(|number| number > 0), "no severity: {}", log.record);
        ensure!(log.record["observedTimeUnixNano"].is_string(), "no observed time: {}", log.record);
    }
    ensure!(left.is_empty(), "{} arrived and were not printed", left.len());
    Ok(())
}
