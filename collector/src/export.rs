//! A destination's way out: batches from the pipeline go into a queue per signal, consumers send them and try again.
//!
//! What is retried and how long stands in [`crate::export::retry`], what waits in `queue`, the wire in
//! [`crate::otlp::client`].

mod checkpoint;
pub mod console;
pub mod line_writer;
mod lock;
pub(crate) mod log_throttle;
mod queue;
pub mod retry;
mod segment;
mod storage;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

use crate::{
    account::{Account, DropReason, LaneId, lane_name},
    config::settings::{self, FsyncPolicy, Signals},
    export::{
        log_throttle::Notice,
        queue::{Fate, Queue, Taken},
        retry::{Backoff, Verdict},
        storage::StorageError,
    },
    model::signal::Signal,
    otlp::{
        batch::Batch,
        client::{Client, ClientError, SendError},
        response::Answer,
    },
};

/// How long a signal that the backend does not take is left alone before one request asks again.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// A destination that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Endpoint, headers or TLS.
    #[error("export.otlp {destination}: {error}")]
    Client {
        /// The endpoint.
        destination: String,
        /// What is wrong.
        error: ClientError,
    },
    /// The queue's directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// One destination at work.
pub struct Exporter {
    lanes: Vec<Arc<Lane>>,
    consumers: Vec<JoinHandle<()>>,
    syncers: Vec<JoinHandle<()>>,
    ending: watch::Sender<bool>,
}

struct Lane {
    destination: Arc<str>,
    signal: Signal,
    account: Arc<Account>,
    id: LaneId,
    queue: Arc<Queue>,
    client: Client,
    retry: settings::Retry,
    outage: Outage,
    refusals: Notice,
    switched_off: SwitchedOff,
}

impl Exporter {
    /// Starts a destination's consumers on this runtime, for those of logs and traces that `signals` has. The lanes of the
    /// account are named after the endpoint. At a reload, shut the old exporters down first: they hold the storage.
    pub fn start(
        destination: &settings::Destination,
        signals: Signals,
        account: Arc<Account>,
        runtime: &Handle,
    ) -> Result<Self, ExportError> {
        let _inside = runtime.enter();
        let name = destination.endpoint.clone();
        let client =
            Client::new(destination).map_err(|error| ExportError::Client { destination: name.clone(), error })?;
        let (ending, _) = watch::channel(false);
        let mut exporter = Self { lanes: Vec::new(), consumers: Vec::new(), syncers: Vec::new(), ending };
        for signal in [Signal::Logs, Signal::Traces].into_iter().filter(|signal| signals.has(*signal)) {
            exporter.start_lane(destination, signal, &account, &client)?;
        }
        Ok(exporter)
    }

    /// Takes a batch from the pipeline. Never waits for the network. Where the batch has nothing for a signal (every
    /// event stands on an application's own span already), its resets count as exported.
    pub fn push(&self, batch: &Batch) {
        if batch.resets == 0 {
            return;
        }
        for lane in &self.lanes {
            let body = match lane.signal {
                Signal::Logs => &batch.logs,
                Signal::Traces | Signal::Metrics => &batch.traces,
            };
            match body {
                Some(body) => lane.queue.push(batch.resets, body.clone()),
                None => lane.account.delivered_elsewhere(lane.id, u64::from(batch.resets)),
            }
        }
    }

    /// Whether what was pushed outlives the process: its batches are to be pushed as soon as there are resets, and wait in
    /// the queue for more.
    pub fn is_stored(&self) -> bool {
        self.lanes.iter().any(|lane| lane.queue.is_stored())
    }

    /// Notes in the storage how many resets the collector holds that are not in it: what a kill would lose. `before` are
    /// those that the account does not know of yet.
    pub fn note_unstored(&self, before: u64) {
        self.lanes.iter().for_each(|lane| lane.queue.note_unstored(before));
    }

    /// Sends what waits until the deadline. What is left then stays in storage, or is counted as dropped
    /// by the shutdown where there is none. The storage is free for another exporter afterwards.
    pub async fn shutdown(mut self, deadline: Instant) {
        self.lanes.iter().for_each(|lane| lane.queue.close());
        self.ending.send_replace(true);
        for mut consumer in std::mem::take(&mut self.consumers) {
            let in_time = tokio::time::timeout_at(deadline.into(), &mut consumer).await;
            if in_time.is_err() {
                consumer.abort();
                // Its batch goes back to the queue when the task is gone.
                if consumer.await.is_err_and(|error| error.is_panic()) {
                    tracing::error!("a consumer of the export queue failed");
                }
            }
        }
        for lane in &self.lanes {
            let (queue, again) = (lane.queue.clone(), lane.queue.clone());
            // The disk may take its time. The runtime gives up such work only when it ends: then it is done here.
            if tokio::task::spawn_blocking(move || queue.abandon()).await.is_err() {
                again.abandon();
            }
        }
    }

    fn start_lane(
        &mut self,
        destination: &settings::Destination,
        signal: Signal,
        account: &Arc<Account>,
        client: &Client,
    ) -> Result<(), ExportError> {
        let (id, name) = account.open_lane(&destination.endpoint, signal);
        let directory = storage_directory(&destination.queue, &name, signal);
        let queue = Queue::open(account.clone(), id, &destination.queue, &destination.batch, directory.as_deref())
            .inspect_err(|_| account.release_lane(id))?;
        let lane = Arc::new(Lane {
            destination: name,
            signal,
            account: account.clone(),
            id,
            queue: Arc::new(queue),
            client: client.clone(),
            retry: destination.retry.clone(),
            outage: Outage::default(),
            refusals: Notice::default(),
            switched_off: SwitchedOff::default(),
        });
        for _ in 0..destination.queue.consumers.max(1) {
            self.consumers.push(tokio::spawn(lane.clone().consume(self.ending.subscribe())));
        }
        if let Some(settings::Storage { fsync: FsyncPolicy::Interval(interval), .. }) = destination.queue.storage {
            self.syncers.push(tokio::spawn(sync_regularly(lane.queue.clone(), interval)));
        }
        self.lanes.push(lane);
        Ok(())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.consumers.iter().chain(&self.syncers).for_each(JoinHandle::abort);
        self.lanes.iter().for_each(|lane| lane.account.release_lane(lane.id));
    }
}

/// Directories below the configured storage that hold resets for none of these destinations: an endpoint was changed,
/// and what waited for the old one waits for ever. To be said at the start.
pub fn forgotten_storage(destinations: &[settings::Destination]) -> Vec<PathBuf> {
    let mut ours = Vec::new();
    for (at, destination) in destinations.iter().enumerate() {
        let same = destinations[..at].iter().filter(|earlier| earlier.endpoint == destination.endpoint).count();
        for number in 1..=same + 1 {
            let name = lane_name(&destination.endpoint, number);
            ours.extend(Signal::ALL.iter().filter_map(|signal| storage_directory(&destination.queue, &name, *signal)));
        }
    }
    let parents: BTreeSet<_> =
        destinations.iter().filter_map(|destination| Some(&destination.queue.storage.as_ref()?.directory)).collect();
    let below = |path: &PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let lanes = parents.into_iter().flat_map(below).flat_map(|path| below(&path).collect::<Vec<_>>());
    let mut forgotten: Vec<_> = lanes
        .filter(|path| !ours.contains(path))
        .filter(|path| below(path).any(|file| file.extension().is_some_and(|extension| extension == "log")))
        .collect();
    forgotten.sort();
    forgotten
}

/// Every destination and signal has a directory of its own below the configured one.
fn storage_directory(queue: &settings::Queue, name: &str, signal: Signal) -> Option<PathBuf> {
    let storage = queue.storage.as_ref()?;
    let readable: String = name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect();
    // Names that read alike stay apart.
    let directory = format!("{readable:.80}-{:08x}", crc32fast::hash(name.as_bytes()));
    Some(storage.directory.join(directory).join(signal.word()))
}

async fn sync_regularly(queue: Arc<Queue>, interval: Duration) {
    loop {
        tokio::time::sleep(interval.max(retry::SHORTEST_WAIT)).await;
        let queue = queue.clone();
        if tokio::task::spawn_blocking(move || queue.sync()).await.is_err() {
            return;
        }
    }
}

impl Lane {
    async fn consume(self: Arc<Self>, mut ending: watch::Receiver<bool>) {
        while let Some(mut batch) = self.queue.take().await {
            let fate = match self.switched_off.asks_now(Instant::now()) {
                true => self.deliver(&mut batch, &mut ending).await,
                false => Fate::Dropped(DropReason::SignalUnsupported),
            };
            batch.settle(fate);
        }
    }

    /// Tries until the batch has a fate.
    async fn deliver(&self, batch: &mut Taken, ending: &mut watch::Receiver<bool>) -> Fate {
        let first_try = Instant::now();
        let mut backoff = Backoff::new(&self.retry);
        let mut fate_unknown = false;
        let request = match batch.body().await {
            Ok(body) => self.client.prepare(self.signal, body).await,
            Err(error) => return self.refused(batch, DropReason::StorageCorrupt, &error.to_string()),
        };
        loop {
            let started = Instant::now();
            let answer = self.client.send_prepared(&request).await;
            self.account.request_took(self.id, started.elapsed());
            let verdict = self.judge(&answer);
            fate_unknown |= answer.is_err_and(|error| !error.never_sent());
            let (after, reason) = match verdict {
                Verdict::Accepted { rejected, message } => {
                    return self.accepted(batch, rejected, &message, fate_unknown);
                }
                Verdict::Permanent { dropped, reason } => return self.refused(batch, dropped, &reason),
                Verdict::Unsupported { reason } => return self.unsupported(&reason),
                Verdict::Retry { after, reason } => (after, reason),
            };
            self.account.health(self.id, |health| health.request_failed());
            self.outage.failed(self, &reason);
            let Some(wait) = backoff.next(first_try.elapsed(), after, rand::random()) else {
                return self.refused(batch, DropReason::RetriesExhausted, &reason);
            };
            self.account.health(self.id, |health| health.retries += 1);
            self.wait(wait, ending).await;
        }
    }

    /// The wait between two tries; the end of the program cuts it short once.
    async fn wait(&self, wait: Duration, ending: &mut watch::Receiver<bool>) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = ending.changed() => {
                if changed.is_err() {
                    // The exporter is gone without a shutdown: there is nobody to cut the wait short.
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn judge(&self, answer: &Result<Answer, SendError>) -> Verdict {
        match answer {
            Ok(answer) => retry::classify(answer, SystemTime::now()),
            Err(error) => Verdict::Retry { after: None, reason: error.to_string() },
        }
    }

    fn accepted(&self, batch: &Taken, rejected: u64, message: &str, fate_unknown: bool) -> Fate {
        self.outage.over(self);
        if self.switched_off.back() {
            tracing::info!("{}: takes {} now", self.destination, self.signal.word());
            self.account.health(self.id, |health| health.switched_off = false);
        }
        let perhaps_twice = if fate_unknown { batch.resets() } else { batch.handed_out_before() };
        self.account.health(self.id, |health| health.possibly_duplicated += perhaps_twice);
        if rejected > 0 || !message.is_empty() {
            self.warn(&format!(
                "accepted {} and rejected {rejected} of {}: {message}",
                self.signal.word(),
                batch.resets()
            ));
        }
        Fate::Exported { rejected }
    }

    fn refused(&self, batch: &Taken, reason: DropReason, words: &str) -> Fate {
        self.account.health(self.id, |health| health.request_failed());
        let (resets, signal, why) = (batch.resets(), self.signal.word(), reason.word());
        self.warn(&format!("{resets} resets lost as {signal} ({why}): {words}"));
        Fate::Dropped(reason)
    }

    fn unsupported(&self, words: &str) -> Fate {
        let signal = self.signal.word();
        if self.switched_off.off(Instant::now()) {
            tracing::warn!(
                "{}: does not take {signal} ({words}); {signal} stop here, the other signals go on; \
                 take {signal} out of export.signals to be rid of this line",
                self.destination
            );
        }
        self.account.health(self.id, |health| {
            health.request_failed();
            health.switched_off = true;
        });
        Fate::Dropped(DropReason::SignalUnsupported)
    }

    fn warn(&self, words: &str) {
        match self.refusals.due(Instant::now()) {
            Some(0) => tracing::warn!("{}: {words}", self.destination),
            Some(more) => tracing::warn!("{}: {words} (and {more} more like this)", self.destination),
            None => {}
        }
    }
}

/// Whether the backend is away, so that it is said once, and once when it is back.
#[derive(Default)]
struct Outage {
    /// Failed tries since the backend answered last.
    failures: AtomicU64,
    /// Whether the log has said so: only then it says the end, so that a backend that comes and goes fills no log.
    announced: AtomicBool,
    reminders: Notice,
}

impl Outage {
    fn failed(&self, lane: &Lane, reason: &str) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if self.reminders.due(Instant::now()).is_some() {
            self.announced.store(true, Ordering::Relaxed);
            let (destination, signal) = (&lane.destination, lane.signal.word());
            tracing::warn!(
                "{destination}: {signal} do not go out ({failures} tries): {reason}; they wait in the queue"
            );
        }
    }

    fn over(&self, lane: &Lane) {
        let failures = self.failures.swap(0, Ordering::Relaxed);
        if failures > 0 && self.announced.swap(false, Ordering::Relaxed) {
            tracing::info!("{}: {} go out again after {failures} failed tries", lane.destination, lane.signal.word());
        }
    }
}

/// Whether the backend takes the signal: once it says no, one request per while asks again.
#[derive(Default)]
struct SwitchedOff {
    next_question: std::sync::Mutex<Option<Instant>>,
}

impl SwitchedOff {
    /// Whether a request may go out now.
    fn asks_now(&self, now: Instant) -> bool {
        match &mut *self.lock() {
            None => true,
            Some(next) if *next <= now => {
                *next = now + ASK_AGAIN;
                true
            }
            Some(_) => false,
        }
    }

    /// The backend said no; whether it is news.
    fn off(&self, now: Instant) -> bool {
        self.lock().replace(now + ASK_AGAIN).is_none()
    }

    /// The backend took one; whether it is news.
    fn back(&self) -> bool {
        self.lock().take().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.next_question.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
