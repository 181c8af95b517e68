//! Sends the batches of one signal queue, and retries them until each has an outcome.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, watch};

use crate::{
    account::{Account, Degradation, DropReason, QueueId},
    config::settings,
    export::{
        log_throttle::LogThrottle,
        queue::{BatchOutcome, InFlightBatch, Queue},
        retry::{self, Backoff, RetryDecision},
        signal_state::{Permission, Refusal, RefusalPolicy, SignalState},
    },
    model::signal::Signal,
    otlp::{
        client::{Client, PreparedRequest, SendError},
        response::Answer,
    },
};

/// The signals that a destination has accepted, shared by its workers.
#[derive(Debug, Default)]
pub(super) struct AcceptedSignals(AtomicU8);

impl AcceptedSignals {
    fn add(&self, signal: Signal) {
        self.0.fetch_or(Self::bit(signal), Ordering::Relaxed);
    }

    fn has_other_than(&self, signal: Signal) -> bool {
        self.0.load(Ordering::Relaxed) & !Self::bit(signal) != 0
    }

    fn bit(signal: Signal) -> u8 {
        match signal {
            Signal::Logs => 1,
            Signal::Traces => 2,
            Signal::Metrics => 4,
        }
    }
}

/// Delivers one signal to one destination; shared by the consumers of its queue.
pub(super) struct ExportWorker {
    pub(super) destination: Arc<str>,
    /// The base URL as configured; `None` where the signal has an endpoint of its own.
    pub(super) base_endpoint: Option<String>,
    pub(super) signal: Signal,
    pub(super) account: Arc<Account>,
    pub(super) id: QueueId,
    pub(super) queue: Arc<Queue>,
    pub(super) client: Client,
    pub(super) retry: settings::Retry,
    pub(super) accepted_signals: Arc<AcceptedSignals>,
    signal_state: SignalState,
    /// Wakes the workers that wait for the signal to be accepted or disabled.
    signal_changed: Notify,
    throttle: LogThrottle,
    /// The log has an `export_failed` line: only then it gets an `export_recovered` line.
    outage_logged: AtomicBool,
}

/// What the shutdown does to a pause.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Over,
    /// The shutdown began during the pause, or before it.
    Shutdown,
}

impl ExportWorker {
    #[expect(clippy::too_many_arguments, reason = "the parts of one queue, given once")]
    pub(super) fn new(
        destination: Arc<str>,
        settings: &settings::Destination,
        signal: Signal,
        account: Arc<Account>,
        id: QueueId,
        queue: Queue,
        client: Client,
        accepted_signals: Arc<AcceptedSignals>,
        policy: RefusalPolicy,
    ) -> Self {
        let own = &settings.signal_endpoints;
        let own_endpoint = match signal {
            Signal::Logs => &own.logs,
            Signal::Traces => &own.traces,
            Signal::Metrics => &own.metrics,
        };
        Self {
            destination,
            base_endpoint: own_endpoint.is_none().then(|| settings.endpoint.clone()),
            signal,
            account,
            id,
            queue: Arc::new(queue),
            client,
            retry: settings.retry.clone(),
            accepted_signals,
            signal_state: SignalState::new(policy),
            signal_changed: Notify::new(),
            throttle: LogThrottle::default(),
            outage_logged: AtomicBool::new(false),
        }
    }

    /// One consumer: takes batches until the queue is closed and empty.
    pub(super) async fn consume(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        while let Some(mut batch) = self.queue.take().await {
            match self.deliver(&mut batch, &mut shutdown).await {
                Some(outcome) => batch.settle(outcome),
                None => return,
            }
        }
    }

    /// Sends a batch until it has an outcome. `None` at the shutdown, where the backend refuses the signal: the batch
    /// goes back to the queue.
    async fn deliver(&self, batch: &mut InFlightBatch, shutdown: &mut watch::Receiver<bool>) -> Option<BatchOutcome> {
        let first_attempt = Instant::now();
        let mut backoff = Backoff::new(&self.retry);
        let mut outcome_unknown = false;
        let mut prepared = None;
        let mut sends = 0;
        loop {
            // Created before the check: else a change in between would be missed.
            let changed = self.signal_changed.notified();
            match self.signal_state.permission(Instant::now()) {
                Permission::Send => {}
                Permission::Disabled => return Some(BatchOutcome::Dropped(DropReason::SignalUnsupported)),
                Permission::Wait(_) if *shutdown.borrow_and_update() => return None,
                Permission::Wait(pause) => {
                    tokio::select! {
                        () = changed => continue,
                        // A last attempt at the shutdown.
                        over = pause_for(pause, shutdown) => if over == Pause::Over { continue },
                    }
                }
            }
            if prepared.is_none() {
                prepared = match self.prepare(batch).await {
                    Ok(request) => Some(request),
                    Err(outcome) => return Some(outcome),
                };
            }
            let Some(request) = &prepared else { continue };
            if sends > 0 {
                self.account.health.update(self.id, |health| health.retries += 1);
            }
            sends += 1;
            let sent = Instant::now();
            let answer = self.client.send_prepared(request).await;
            self.account.health.request_took(self.id, sent.elapsed());
            let decision = self.decide(&answer);
            outcome_unknown |= answer.is_err_and(|error| !error.never_sent());
            let (after, reason) = match decision {
                RetryDecision::Accepted { rejected, message } => {
                    return Some(self.accepted(batch, rejected, &message, outcome_unknown));
                }
                RetryDecision::NonRetryable { dropped, reason } => return Some(self.refused(batch, dropped, &reason)),
                RetryDecision::Unsupported { certain, reason } => match self.signal_refused(sent, certain, &reason) {
                    Refusal::Outage => (None, reason),
                    Refusal::Hold => continue,
                    Refusal::Disabled | Refusal::StillDisabled => {
                        return Some(BatchOutcome::Dropped(DropReason::SignalUnsupported));
                    }
                },
                RetryDecision::Retry { after, reason } => {
                    let attempts = self.signal_state.failed();
                    self.attempt_failed(attempts, &reason);
                    (after, reason)
                }
            };
            let Some(wait) = backoff.next(first_attempt.elapsed(), after, rand::random()) else {
                return Some(self.refused(batch, DropReason::RetriesExhausted, &reason));
            };
            pause_for(wait, shutdown).await;
        }
    }

    async fn prepare(&self, batch: &mut InFlightBatch) -> Result<PreparedRequest, BatchOutcome> {
        match batch.body().await {
            Ok(body) => Ok(self.client.prepare(self.signal, body).await),
            Err(error) => Err(self.refused(batch, DropReason::StorageCorrupt, &error.to_string())),
        }
    }

    fn decide(&self, answer: &Result<Answer, SendError>) -> RetryDecision {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return RetryDecision::Retry { after: None, reason: error.to_string() },
        };
        match retry::classify(answer, SystemTime::now()) {
            RetryDecision::Unsupported { certain, reason } if answer.http_status == 404 => {
                let hint =
                    self.base_endpoint.as_deref().and_then(|endpoint| retry::base_url_hint(endpoint, self.signal));
                RetryDecision::Unsupported { certain, reason: reason + &hint.unwrap_or_default() }
            }
            decision => decision,
        }
    }

    fn accepted(&self, batch: &InFlightBatch, rejected: u64, message: &str, outcome_unknown: bool) -> BatchOutcome {
        let (destination, signal) = (&self.destination, self.signal.word());
        self.accepted_signals.add(self.signal);
        let recovery = self.signal_state.accepted();
        if recovery.attempts > 0 {
            self.signal_changed.notify_waiters();
        }
        if recovery.was_disabled {
            tracing::info!(event = "signal_enabled", %destination, signal, "backend accepts the signal again");
        }
        if recovery.attempts > 0 && self.outage_logged.swap(false, Ordering::Relaxed) {
            let attempts = recovery.attempts;
            tracing::info!(event = "export_recovered", %destination, signal, attempts, "export recovered");
        }
        let resent = if outcome_unknown { batch.resets() } else { batch.sent_before() };
        self.account.health.update(self.id, |health| {
            health.request_succeeded();
            health.resent += resent;
            health.signal_disabled = false;
            health.recovered_from(&[
                Degradation::ExportFailing,
                Degradation::SignalRefused,
                Degradation::SignalDisabled,
            ]);
        });
        if (rejected > 0 || !message.is_empty())
            && let Some(suppressed) = self.throttle.due("partial_success", Instant::now())
        {
            let resets = batch.resets();
            tracing::warn!(
                event = "partial_success", %destination, signal, resets, rejected, message, suppressed,
                "backend accepted a request with a complaint"
            );
        }
        BatchOutcome::Exported { rejected }
    }

    fn refused(&self, batch: &InFlightBatch, reason: DropReason, error: &str) -> BatchOutcome {
        self.account.health.update(self.id, |health| {
            health.request_failed();
            health.degrade(Degradation::ExportFailing, error);
        });
        if let Some(suppressed) = self.throttle.due("batch_dropped", Instant::now()) {
            tracing::warn!(
                event = "batch_dropped", destination = %self.destination, signal = self.signal.word(),
                resets = batch.resets(), reason = reason.name(), error, suppressed,
                "batch dropped"
            );
        }
        BatchOutcome::Dropped(reason)
    }

    fn attempt_failed(&self, attempts: u64, error: &str) {
        self.account.health.update(self.id, |health| {
            health.request_failed();
            health.degrade(Degradation::ExportFailing, error);
        });
        self.log_outage(attempts, error);
    }

    fn log_outage(&self, attempts: u64, error: &str) {
        if self.throttle.due("export_failed", Instant::now()).is_some() {
            self.outage_logged.store(true, Ordering::Relaxed);
            tracing::warn!(
                event = "export_failed", destination = %self.destination, signal = self.signal.word(), attempts, error,
                "export failed, queueing"
            );
        }
    }

    fn signal_refused(&self, sent: Instant, unimplemented: bool, error: &str) -> Refusal {
        let (destination, signal) = (&self.destination, self.signal.word());
        let other_accepted = self.accepted_signals.has_other_than(self.signal);
        let certain = unimplemented && other_accepted;
        let (refusal, attempts) = self.signal_state.refused(sent, Instant::now(), certain);
        let (degradation, disabled) = match refusal {
            Refusal::Outage => (Degradation::ExportFailing, false),
            Refusal::Hold => (Degradation::SignalRefused, false),
            Refusal::Disabled | Refusal::StillDisabled => (Degradation::SignalDisabled, true),
        };
        self.account.health.update(self.id, |health| {
            health.request_failed();
            health.signal_disabled = disabled;
            if disabled {
                health.recovered_from(&[Degradation::SignalRefused]);
            }
            health.degrade(degradation, error);
        });
        match refusal {
            // A backend without the signal: logged once, when it is disabled.
            Refusal::Hold if unimplemented && (attempts == 1 || other_accepted) => {}
            Refusal::Outage | Refusal::Hold => self.log_outage(attempts, error),
            Refusal::Disabled => {
                self.signal_changed.notify_waiters();
                tracing::warn!(
                    event = "signal_disabled", %destination, signal, attempts, error,
                    "backend does not support this signal, disabling it; the other signals are not affected; \
                     remove it from export.signals to silence this"
                );
            }
            Refusal::StillDisabled => {}
        }
        refusal
    }
}

/// Waits; the shutdown cuts it short once.
async fn pause_for(pause: Duration, shutdown: &mut watch::Receiver<bool>) -> Pause {
    tokio::select! {
        () = tokio::time::sleep(pause) => Pause::Over,
        changed = shutdown.changed() => match changed {
            Ok(()) => Pause::Shutdown,
            Err(_) => {
                // The exporter was dropped without a shutdown.
                tokio::time::sleep(pause).await;
                Pause::Over
            }
        }
    }
}
