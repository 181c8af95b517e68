//! Sends through an exporter and returns the outcome.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use reset_collector::{
    account::{Account, DropReason, QueueSnapshot},
    config::settings::{Destination, Protocol, Retry, Signals},
    export::{
        Exporter,
        retry::{RetryDecision, classify},
    },
    model::signal::Signal,
    otlp::{batch::Batch, client::Client},
};
use tokio::runtime::Handle;

use crate::backend::{Backend, logs};

pub(crate) const LOGS: Signals = Signals { logs: true, traces: false, metrics: false };

pub(crate) fn destination(backend: &Backend, protocol: Protocol) -> Destination {
    to(&backend.endpoint(), protocol)
}

/// A destination that gives up soon.
pub(crate) fn to(endpoint: &str, protocol: Protocol) -> Destination {
    let retry = Retry {
        initial_interval: Duration::from_millis(10),
        max_interval: Duration::from_millis(20),
        max_elapsed_time: Duration::from_millis(300),
        ..Retry::default()
    };
    let timeout = Duration::from_secs(2);
    Destination { endpoint: endpoint.into(), protocol, retry, timeout, ..Destination::default() }
}

/// Sends one batch of ten records and waits for its outcome.
pub(crate) async fn outcome_of_one(destination: &Destination) -> QueueSnapshot {
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(destination, LOGS, account.clone(), &Handle::current()).unwrap();
    account.ledger.add_captured(10);
    exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: None });
    exporter.shutdown(Instant::now() + Duration::from_secs(10)).await;
    let snapshot = account.snapshot();
    let queue = snapshot.queues[0].clone();
    assert_eq!(snapshot.imbalance(&queue), 0);
    assert_eq!(queue.queued, 0);
    queue
}

pub(crate) fn dropped(queue: &QueueSnapshot) -> Option<DropReason> {
    DropReason::ALL.iter().copied().find(|reason| queue.dropped[*reason as usize] > 0)
}

/// The message of one attempt: the reason of the decision, or the error of a request without a response.
pub(crate) async fn words_of_one_try(destination: &Destination) -> String {
    let client = match Client::new(destination) {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    match client.send(Signal::Logs, logs(0, 10)).await {
        Err(error) => error.to_string(),
        Ok(answer) => match classify(&answer, SystemTime::now()) {
            RetryDecision::Accepted { rejected, message } => format!("accepted, {rejected} rejected, {message}"),
            RetryDecision::Retry { reason, .. }
            | RetryDecision::NonRetryable { reason, .. }
            | RetryDecision::Unsupported { reason, .. } => reason,
        },
    }
}
