//! A backend, or a proxy before it, that does not know a signal: 404, 405, 501, UNIMPLEMENTED.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use reset_collector::{
    account::{Account, Degradation, DropReason, QueueSnapshot},
    config::settings::{Destination, Protocol, Signals},
    export::{
        Exporter,
        signal_state::{RefusalLimits, RefusalPolicy},
    },
    otlp::batch::Batch,
};
use tokio::runtime::Handle;

use crate::{
    backend::{Backend, Received, Reply, logs},
    client::{LOGS, destination, to},
    log_lines::Lines,
};

const BOTH: Signals = Signals { logs: true, traces: true, metrics: false };
const TIMEOUT: Duration = Duration::from_secs(20);

/// The default policy, a hundred times as fast.
fn fast() -> RefusalPolicy {
    let ms = Duration::from_millis;
    RefusalPolicy {
        first_pause: ms(10),
        max_pause: ms(200),
        certain: RefusalLimits { refusals: 5, span: ms(100) },
        uncertain: RefusalLimits { refusals: 10, span: ms(1_000) },
    }
}

struct Running {
    account: Arc<Account>,
    exporter: Exporter,
}

impl Running {
    fn start(destination: &Destination, signals: Signals) -> Self {
        let account = Arc::new(Account::new());
        let exporter =
            Exporter::start_with_policy(destination, signals, account.clone(), &Handle::current(), &fast()).unwrap();
        Self { account, exporter }
    }

    fn push(&self) {
        self.account.ledger.add_captured(10);
        self.exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: Some(logs(0, 10)) });
    }

    fn queue(&self, number: usize) -> QueueSnapshot {
        let snapshot = self.account.snapshot();
        let queue = snapshot.queues[number].clone();
        assert_eq!(snapshot.imbalance(&queue), 0);
        queue
    }

    /// Pushes a batch every few milliseconds until the queue is as wanted.
    async fn push_until(&self, number: usize, wanted: impl Fn(&QueueSnapshot) -> bool) {
        self.wait(number, true, wanted).await;
    }

    async fn until(&self, number: usize, wanted: impl Fn(&QueueSnapshot) -> bool) {
        self.wait(number, false, wanted).await;
    }

    async fn wait(&self, number: usize, push: bool, wanted: impl Fn(&QueueSnapshot) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !wanted(&self.queue(number)) {
            assert!(Instant::now() < deadline, "{:?}", self.queue(number));
            if push {
                self.push();
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

fn dropped(queue: &QueueSnapshot) -> u64 {
    queue.dropped.iter().sum()
}

fn is_logs(request: &Received) -> bool {
    request.path.contains("ogs")
}

fn kinds(queue: &QueueSnapshot) -> Vec<Degradation> {
    queue.health.degraded.iter().map(|degraded| degraded.kind).collect()
}

/// Ingresses answer so while the backend behind them restarts.
#[tokio::test]
async fn a_few_refusals_lose_nothing() {
    let refused = |protocol, status: u32| match protocol {
        Protocol::Grpc => Reply::grpc(status),
        Protocol::HttpProtobuf => Reply::http(u16::try_from(status).unwrap()),
    };
    for (protocol, status) in [
        (Protocol::HttpProtobuf, 404),
        (Protocol::HttpProtobuf, 405),
        (Protocol::HttpProtobuf, 501),
        (Protocol::Grpc, 12),
    ] {
        for refusals in [1, 4] {
            let accepted = if protocol == Protocol::Grpc { Reply::grpc(0) } else { Reply::http(200) };
            let mut replies = vec![refused(protocol, status); refusals];
            replies.push(accepted);
            let backend = Backend::answering(replies).await;
            let mut destination = destination(&backend, protocol);
            destination.queue.consumers = 1;
            let running = Running::start(&destination, LOGS);
            for _ in 0..20 {
                running.push();
            }
            running.until(0, |queue| queue.exported == 200).await;
            let queue = running.queue(0);
            assert_eq!((dropped(&queue), queue.health.retries), (0, refusals as u64), "{status} {refusals}");
            assert!(queue.health.degraded.is_empty() && !queue.health.signal_disabled);
        }
    }
}

/// By gRPC such a proxy answers without a gRPC status.
#[tokio::test]
async fn a_404_without_a_grpc_status_loses_nothing() {
    let backend = Backend::answering(vec![Reply::http(404), Reply::http(404), Reply::grpc(0)]).await;
    let running = Running::start(&destination(&backend, Protocol::Grpc), LOGS);
    running.push();
    running.until(0, |queue| queue.exported == 10).await;
    assert_eq!(dropped(&running.queue(0)), 0);
}

#[tokio::test]
async fn a_signal_that_was_accepted_before_is_in_an_outage() {
    let refuses = Arc::new(AtomicBool::new(false));
    let script = refuses.clone();
    let backend = Backend::with(move |_, request| {
        Reply::grpc(if script.load(Ordering::Relaxed) && is_logs(request) { 12 } else { 0 })
    })
    .await;
    let mut destination = destination(&backend, Protocol::Grpc);
    destination.retry.max_elapsed_time = Duration::from_secs(60);
    let running = Running::start(&destination, BOTH);
    running.push();
    running.until(0, |queue| queue.exported == 10).await;
    refuses.store(true, Ordering::Relaxed);
    // Far more refusals than would disable a signal.
    running.push_until(0, |queue| queue.health.failed_requests > 50).await;
    let queue = running.queue(0);
    assert_eq!((dropped(&queue), kinds(&queue)), (0, vec![Degradation::ExportFailing]));
    refuses.store(false, Ordering::Relaxed);
    running.until(0, |queue| queue.queued == 0).await;
    let queue = running.queue(0);
    assert_eq!((dropped(&queue), kinds(&queue)), (0, vec![]));
}

/// As Jaeger, which takes traces and answers logs with UNIMPLEMENTED.
#[tokio::test]
async fn a_backend_without_a_signal_gets_the_others() {
    let caught = Lines::default();
    let _caught_here = caught.catch();
    let backend = Backend::with(|_, request| Reply::grpc(if is_logs(request) { 12 } else { 0 })).await;
    let running = Running::start(&destination(&backend, Protocol::Grpc), BOTH);
    running.push_until(0, |queue| queue.health.signal_disabled).await;
    running.until(0, |queue| queue.queued == 0).await;
    running.until(1, |queue| queue.queued == 0).await;
    let (logs, traces) = (running.queue(0), running.queue(1));
    assert_eq!(logs.dropped[DropReason::SignalUnsupported as usize], dropped(&logs));
    assert_eq!((logs.exported, dropped(&traces)), (0, 0));
    assert_eq!((kinds(&logs), kinds(&traces)), (vec![Degradation::SignalDisabled], vec![]));
    assert!(logs.health.degraded[0].error.contains("UNIMPLEMENTED"), "{:?}", logs.health.degraded);
    running.exporter.shutdown(Instant::now() + TIMEOUT).await;
    let lines = caught.all();
    assert!(lines.len() == 1 && lines[0].contains("event=\"signal_disabled\""), "{lines:#?}");
    assert!(lines[0].contains("export.signals"), "{lines:#?}");
}

#[tokio::test]
async fn a_disabled_signal_is_probed_and_enabled_again() {
    let refuses = Arc::new(AtomicBool::new(true));
    let script = refuses.clone();
    let backend = Backend::with(move |_, request| {
        Reply::grpc(if script.load(Ordering::Relaxed) && is_logs(request) { 12 } else { 0 })
    })
    .await;
    let running = Running::start(&destination(&backend, Protocol::Grpc), BOTH);
    running.push_until(0, |queue| queue.health.signal_disabled).await;
    let requests = || backend.requests().iter().filter(|request| is_logs(request)).count();
    let before = requests();
    running.push_until(0, |_| requests() > before).await;
    assert!(running.queue(0).health.signal_disabled, "one probe was refused");
    refuses.store(false, Ordering::Relaxed);
    running.push_until(0, |queue| queue.exported > 0).await;
    let queue = running.queue(0);
    assert!(!queue.health.signal_disabled && queue.health.degraded.is_empty(), "{queue:?}");
}

/// Nothing is accepted and nothing is sure: it takes longer, and in between the queue holds.
#[tokio::test]
async fn a_refusal_without_another_signal_takes_longer() {
    let backend = Backend::answering(vec![Reply::http(404)]).await;
    let running = Running::start(&destination(&backend, Protocol::HttpProtobuf), LOGS);
    running.push();
    running.until(0, |queue| queue.health.failed_requests >= 6).await;
    let queue = running.queue(0);
    assert_eq!((dropped(&queue), kinds(&queue)), (0, vec![Degradation::SignalRefused]));
    running.until(0, |queue| queue.health.signal_disabled).await;
    let refusals = backend.requests().len();
    assert!((10..16).contains(&refusals), "{refusals} requests");
}

#[tokio::test]
async fn an_endpoint_with_a_signals_path_is_reported() {
    let caught = Lines::default();
    let _caught_here = caught.catch();
    let backend = Backend::with(|_, request| Reply::http(if request.path == "/v1/traces" { 200 } else { 404 })).await;
    let endpoint = format!("{}/v1/traces", backend.endpoint());
    let running = Running::start(&to(&endpoint, Protocol::HttpProtobuf), LOGS);
    running.push();
    running.until(0, |queue| queue.health.failed_requests > 0).await;
    let lines = caught.all();
    let hint = "export.otlp.endpoint must be the base URL, /v1/logs is appended to it: remove /v1/traces";
    assert!(lines.len() == 1 && lines[0].contains("HTTP 404") && lines[0].contains(hint), "{lines:#?}");
    assert!(running.queue(0).health.degraded[0].error.contains(hint));
}

/// A backend that asks for more time than there is: the last attempt is at the end of max_elapsed_time.
#[tokio::test]
async fn a_pause_beyond_the_limit_gets_one_last_attempt() {
    for asked in ["600", "18446744073709551615", "99999999999999999999999"] {
        let headers = vec![("retry-after", asked.to_owned())];
        let busy = Reply::Http { status: 429, headers, body: Bytes::new() };
        let backend = Backend::answering(vec![busy, Reply::http(200)]).await;
        let mut destination = destination(&backend, Protocol::HttpProtobuf);
        destination.retry.max_elapsed_time = Duration::from_millis(300);
        let running = Running::start(&destination, LOGS);
        let started = Instant::now();
        running.push();
        running.until(0, |queue| queue.queued == 0).await;
        assert_eq!(running.queue(0).exported, 10, "asked for {asked}");
        assert!(started.elapsed() >= Duration::from_millis(250), "{:?}", started.elapsed());
    }
}
