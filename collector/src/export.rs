//! Exports batches to one destination: one queue per signal, consumers that send, retries.
//!
//! [`retry`] decides what is retried and for how long, [`signal_state`] whether the backend accepts a signal, `queue`
//! holds what waits, [`crate::otlp::client`] speaks OTLP.

mod checkpoint;
pub mod console;
pub mod line_writer;
mod lock;
pub(crate) mod log_throttle;
mod queue;
pub mod retry;
mod segment;
pub mod signal_state;
mod storage;
mod worker;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

pub use crate::export::storage::StorageError;
use crate::{
    account::{Account, queue_name},
    config::settings::{self, FsyncPolicy, Signals},
    export::{
        queue::Queue,
        signal_state::RefusalPolicy,
        worker::{AcceptedSignals, ExportWorker},
    },
    model::signal::Signal,
    otlp::{
        batch::Batch,
        client::{self, Client, ClientError},
    },
};

/// After the deadline of a shutdown: for aborted requests and for the disk.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(300);

/// A destination that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Endpoint, headers or TLS.
    #[error("export.otlp {destination}: {error}")]
    Client {
        /// The endpoint, without a password.
        destination: String,
        /// What is wrong.
        error: ClientError,
    },
    /// The queue's directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The running export to one destination.
pub struct Exporter {
    workers: Vec<Arc<ExportWorker>>,
    consumers: Vec<JoinHandle<()>>,
    syncers: Vec<JoinHandle<()>>,
    shutting_down: watch::Sender<bool>,
}

impl Exporter {
    /// Starts a destination's consumers on this runtime, for logs and traces as far as `signals` has them.
    ///
    /// # Errors
    /// The endpoint, a header, TLS or the storage directory cannot be used.
    pub fn start(
        destination: &settings::Destination,
        signals: Signals,
        account: Arc<Account>,
        runtime: &Handle,
    ) -> Result<Self, ExportError> {
        let first_pause = destination.retry.initial_interval.max(retry::MIN_INTERVAL);
        let policy = RefusalPolicy { first_pause, ..RefusalPolicy::default() };
        Self::start_with_policy(destination, signals, account, runtime, &policy)
    }

    /// As [`Self::start`], with another policy for signals that the backend refuses.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_policy(
        destination: &settings::Destination,
        signals: Signals,
        account: Arc<Account>,
        runtime: &Handle,
        policy: &RefusalPolicy,
    ) -> Result<Self, ExportError> {
        let _inside = runtime.enter();
        let client = Client::new(destination)
            .map_err(|error| ExportError::Client { destination: client::redacted(&destination.endpoint), error })?;
        let (shutting_down, _) = watch::channel(false);
        let mut exporter = Self { workers: Vec::new(), consumers: Vec::new(), syncers: Vec::new(), shutting_down };
        let accepted_signals = Arc::default();
        for signal in [Signal::Logs, Signal::Traces].into_iter().filter(|signal| signals.has(*signal)) {
            exporter.start_queue(destination, signal, &account, &client, &accepted_signals, policy)?;
        }
        Ok(exporter)
    }

    /// Takes a batch from the pipeline. Never waits for the network. A batch without a body for a signal needs no
    /// request: its events are on applications' own spans, and its resets count as exported.
    pub fn push(&self, batch: &Batch) {
        if batch.resets == 0 {
            return;
        }
        for worker in &self.workers {
            let body = match worker.signal {
                Signal::Logs => &batch.logs,
                Signal::Traces | Signal::Metrics => &batch.traces,
            };
            match body {
                Some(body) => worker.queue.push(batch.resets, body.clone()),
                None => worker.account.ledger.delivered_on_app_span(worker.id, u64::from(batch.resets)),
            }
        }
    }

    /// Whether pushed batches outlive the process: then they are pushed as soon as there are resets, and the queue
    /// gathers them into requests.
    pub fn is_stored(&self) -> bool {
        self.workers.iter().any(|worker| worker.queue.is_stored())
    }

    /// Notes in the storage how many resets the collector holds that are not in it: a kill would lose them. The ledger
    /// does not know `before` of them yet.
    pub fn note_unstored(&self, before: u64) {
        self.workers.iter().for_each(|worker| worker.queue.note_unstored(before));
    }

    /// Sends the queued batches until the deadline. The rest stays in storage, or is counted as dropped by the shutdown.
    /// Returns soon after the deadline, whatever the backend and the disk do. The storage is free for another exporter
    /// afterwards.
    pub async fn shutdown(mut self, deadline: Instant) {
        self.workers.iter().for_each(|worker| worker.queue.close());
        self.shutting_down.send_replace(true);
        for consumer in &mut self.consumers {
            match tokio::time::timeout_at(deadline.into(), &mut *consumer).await {
                Ok(Err(error)) if error.is_panic() => {
                    tracing::error!(event = "consumer_failed", "consumer of the export queue panicked");
                }
                Ok(_) => {}
                Err(_) => consumer.abort(),
            }
        }
        let limit = tokio::time::Instant::from_std(deadline.max(Instant::now()) + SHUTDOWN_GRACE);
        for consumer in self.consumers.iter_mut().filter(|consumer| !consumer.is_finished()) {
            // Its batch goes back to the queue when the task ends.
            drop(tokio::time::timeout_at(limit, consumer).await);
        }
        for worker in &self.workers {
            let (queue, retried) = (worker.queue.clone(), worker.queue.clone());
            match tokio::time::timeout_at(limit, tokio::task::spawn_blocking(move || queue.abandon())).await {
                Ok(Ok(())) => {}
                // The runtime is ending and runs no more blocking work.
                Ok(Err(_)) => retried.abandon(),
                Err(_) => tracing::warn!(
                    event = "storage_close_timeout", destination = %worker.destination, signal = worker.signal.word(),
                    "storage did not close in time, the next start recovers it"
                ),
            }
        }
    }

    fn start_queue(
        &mut self,
        destination: &settings::Destination,
        signal: Signal,
        account: &Arc<Account>,
        client: &Client,
        accepted_signals: &Arc<AcceptedSignals>,
        policy: &RefusalPolicy,
    ) -> Result<(), ExportError> {
        let (id, name) = account.open_queue(&destination.endpoint, signal);
        let below = storage_path(&name, signal);
        let queue = Queue::open(account.clone(), id, &destination.queue, &destination.batch, &below)?;
        let worker = Arc::new(ExportWorker::new(
            name,
            destination,
            signal,
            account.clone(),
            id,
            queue,
            client.clone(),
            accepted_signals.clone(),
            policy.clone(),
        ));
        for _ in 0..destination.queue.consumers.max(1) {
            self.consumers.push(tokio::spawn(worker.clone().consume(self.shutting_down.subscribe())));
        }
        if let Some(settings::Storage { fsync: FsyncPolicy::Interval(interval), .. }) = destination.queue.storage {
            self.syncers.push(tokio::spawn(sync_regularly(worker.queue.clone(), interval)));
        }
        self.workers.push(worker);
        Ok(())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.consumers.iter().chain(&self.syncers).for_each(JoinHandle::abort);
    }
}

/// Recovers a storage directory and reads every batch: for fuzzing and tests.
///
/// # Errors
/// The directory cannot be used.
#[doc(hidden)]
pub fn recover(root: &Path, max_bytes: u64) -> Result<Recovered, StorageError> {
    let opened = storage::Storage::open(root, Path::new(""), max_bytes, FsyncPolicy::Never)?;
    let messages = opened.found.iter().filter_map(|found| Some((found.resets, found.slot.read().ok()?)));
    Ok(Recovered { messages: messages.collect(), lost: opened.corrupt + opened.unsynced, unstored: opened.unstored })
}

/// What [`recover`] found.
#[doc(hidden)]
#[derive(Debug, PartialEq)]
pub struct Recovered {
    /// The stored batches, with their resets.
    pub messages: Vec<(u32, bytes::Bytes)>,
    /// Resets that are missing.
    pub lost: u64,
    /// Resets that were never stored.
    pub unstored: u64,
}

/// Storage directories with batches for none of these destinations: an endpoint was changed or removed, and what is
/// stored for it is not sent.
pub fn orphaned_storage(destinations: &[settings::Destination]) -> Vec<PathBuf> {
    let mut used = BTreeSet::new();
    for (at, destination) in destinations.iter().enumerate() {
        let Some(storage) = &destination.queue.storage else { continue };
        let same = destinations[..at].iter().filter(|earlier| earlier.endpoint == destination.endpoint).count();
        for number in 1..=same + 1 {
            let name = queue_name(&destination.endpoint, number);
            used.extend(Signal::ALL.iter().map(|signal| storage.directory.join(storage_path(&name, *signal))));
        }
    }
    let roots: BTreeSet<_> =
        destinations.iter().filter_map(|destination| Some(&destination.queue.storage.as_ref()?.directory)).collect();
    let below = |path: &PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let has_segments = |path: &PathBuf| below(path).any(|file| file.extension().is_some_and(|ending| ending == "log"));
    let stored = roots.into_iter().flat_map(below).flat_map(|path| below(&path).collect::<Vec<_>>());
    let mut orphaned: Vec<_> = stored.filter(|path| !used.contains(path) && has_segments(path)).collect();
    orphaned.sort();
    orphaned
}

/// The directory of a queue below the configured one.
fn storage_path(name: &str, signal: Signal) -> PathBuf {
    let readable: String = name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect();
    // The checksum keeps names apart that read alike.
    PathBuf::from(format!("{readable:.80}-{:08x}", crc32fast::hash(name.as_bytes()))).join(signal.word())
}

async fn sync_regularly(queue: Arc<Queue>, interval: Duration) {
    loop {
        tokio::time::sleep(interval.max(retry::MIN_INTERVAL)).await;
        let queue = queue.clone();
        if tokio::task::spawn_blocking(move || queue.sync()).await.is_err() {
            return;
        }
    }
}
