//! What does not work as it should, though the collector is up: for `/readyz`, the metric `reset_collector.degraded` and the
//! alerts.

use std::{sync::PoisonError, time::SystemTime};

use crate::{
    account::{
        Snapshot,
        snapshot::{Degradation, Degraded, unix_seconds},
    },
    model::signal::Signal,
    telemetry::metrics::{Labels, Sources, queue_labels},
};

/// One reason.
#[derive(Clone, Debug)]
pub struct Reason {
    /// `reason`, and what it concerns.
    pub labels: Labels,
    /// For a person: what is wrong, and since when.
    pub text: String,
}

/// Every reason at this instant; empty where all is well.
pub fn degraded(sources: &Sources, snapshot: &Snapshot) -> Vec<Reason> {
    let (mut reasons, now) = (Vec::new(), unix_seconds(SystemTime::now()));
    let mut add = |reason: &'static str, labels: Labels, text: String| {
        let labels = [("reason", reason.into())].into_iter().chain(labels).collect();
        reasons.push(Reason { labels, text });
    };
    for probe in snapshot.hooks.iter().filter(|probe| !probe.active) {
        let text = format!("probe {} is not attached: {}", probe.hook, probe.why);
        add("probe_not_attached", vec![("probe", probe.hook.into())], text);
    }
    for queue in &snapshot.queues {
        for Degraded { kind, since_unix_s, error } in &queue.health.degraded {
            let (signal, destination, age) = (queue.signal.word(), &queue.destination, now - since_unix_s);
            let text = format!("{signal} to {destination}: {} for {age:.0} s: {error}", kind.as_str());
            add(kind.as_str(), queue_labels(queue), text);
        }
    }
    for (destination, error) in &*sources.failing_exports.lock().unwrap_or_else(PoisonError::into_inner) {
        let labels = vec![("destination", destination.clone().into()), ("signal", Signal::Metrics.word().into())];
        add(Degradation::ExportFailing.as_str(), labels, format!("metrics to {destination}: {error}"));
    }
    for (step, _) in snapshot.hardening.iter().filter(|(_, done)| !done) {
        add("hardening_failed", vec![("step", (*step).into())], format!("hardening step failed: {step}"));
    }
    for stalled in sources.console.iter().filter_map(|console| console.stalled_for()) {
        let text = format!("standard output has not been read for {} s, lines are dropped", stalled.as_secs());
        add("console_stalled", vec![], text);
    }
    for stalled in sources.log.iter().filter_map(|log| log.stalled_for()) {
        let text = format!("standard error has not been read for {} s, log lines are dropped", stalled.as_secs());
        add("log_stalled", vec![], text);
    }
    if sources.pods.as_ref().is_some_and(|pods| pods.is_failing()) {
        add(
            "kubernetes_unavailable",
            vec![],
            "the Kubernetes API does not answer: pod names may be missing or old".into(),
        );
    }
    reasons
}
