//! The queue of one destination and signal: bounded, counted in resets, in memory or on disk.
//!
//! A batch is in one place at any time: waiting, in flight, or settled. A batch in flight that is not settled (its
//! consumer was cut off) returns to the front. Sends nothing itself ([`crate::export`]).
//!
//! With storage the batches are small, one for each turn of the pipeline, so that a killed process loses no reset that it
//! has printed; the queue gathers them into requests. Concatenated OTLP requests are one request (protobuf appends
//! repeated fields), so nothing is decoded for that.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout_at};

use crate::{
    account::{Account, Degradation, DropReason, QueueId},
    config::settings::{self, OnOverflow},
    export::{
        log_throttle::LogThrottle,
        segment::Mark,
        storage::{RecoveredStorage, Slot, Storage, StorageError},
    },
};

/// The outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchOutcome {
    /// Accepted, except `rejected` resets.
    Exported {
        /// Rejected by the backend, as its response says.
        rejected: u64,
    },
    /// Lost.
    Dropped(DropReason),
}

/// The queue of one destination and signal.
pub(crate) struct Queue {
    account: Arc<Account>,
    id: QueueId,
    /// Maximum number of resets, waiting and in flight.
    size: u64,
    on_overflow: OnOverflow,
    /// How batches are gathered into requests; `None` without storage, where each is a request.
    gather: Option<settings::Batch>,
    state: Mutex<State>,
    /// Set without the lock: a disk that hangs under it must not hold up the shutdown.
    closed: AtomicBool,
    changed: Notify,
    throttle: LogThrottle,
}

#[derive(Default)]
struct State {
    storage: Option<Storage>,
    waiting: VecDeque<Item>,
    waiting_resets: u64,
    waiting_bytes: usize,
    in_flight_resets: u64,
}

#[derive(Clone)]
struct Item {
    resets: u32,
    body: Body,
    /// It was in a request of an earlier run: the backend may have it.
    sent_before: bool,
    /// When it is sent, whatever else waits.
    due: Instant,
}

#[derive(Clone)]
enum Body {
    Memory(Bytes),
    Disk(Slot),
}

/// The batches of one request. Dropped without [`InFlightBatch::settle`], they return to the queue.
pub(crate) struct InFlightBatch {
    queue: Arc<Queue>,
    items: Vec<Item>,
}

/// What a consumer does next.
enum Next {
    /// Send these.
    Items(Vec<Item>),
    /// Wait until then, or for a change.
    Wait(Option<Instant>),
    /// End: the queue is closed and empty.
    End,
}

impl Queue {
    /// A queue as configured. With storage it is in the directory `below` the configured one, with what an earlier run
    /// left there.
    pub(crate) fn open(
        account: Arc<Account>,
        id: QueueId,
        settings: &settings::Queue,
        batch: &settings::Batch,
        below: &Path,
    ) -> Result<Self, StorageError> {
        let size = settings.size as u64;
        account.health.update(id, |health| health.capacity = size);
        let mut state = State::default();
        if let Some(storage) = &settings.storage {
            let recovered = Storage::open(&storage.directory, below, storage.max_bytes, storage.fsync)?;
            log_recovery(&storage.directory.join(below), &recovered);
            let found = recovered.found.iter().map(|found| u64::from(found.resets)).sum();
            let lost = [
                (DropReason::StorageCorrupt, recovered.corrupt),
                (DropReason::StorageUnsynced, recovered.unsynced),
                (DropReason::ProcessKilled, recovered.unstored),
            ];
            account.ledger.recovered(id, found, &lost);
            let due = Instant::now();
            for found in recovered.found {
                let (resets, sent_before) = (found.resets, found.sent);
                state.push_back(Item { resets, body: Body::Disk(found.slot), sent_before, due });
            }
            account.health.update(id, |health| health.storage_bytes = recovered.storage.bytes());
            state.storage = Some(recovered.storage);
        }
        let (changed, throttle) = (Notify::new(), LogThrottle::default());
        // One permit for the recovered batches; each consumer that takes one wakes the next.
        changed.notify_one();
        Ok(Self {
            account,
            id,
            size,
            on_overflow: settings.on_overflow,
            gather: settings.storage.as_ref().map(|_| batch.clone()),
            state: Mutex::new(state),
            closed: AtomicBool::new(false),
            changed,
            throttle,
        })
    }

    /// Takes a batch from the pipeline. Never waits for the network; what does not fit is dropped and counted. With
    /// storage the batch is written before this returns: to the page cache, and to the disk if `fsync` is `always`.
    pub(crate) fn push(&self, resets: u32, body: Bytes) {
        let mut state = self.lock();
        self.account.ledger.enqueued(self.id, u64::from(resets));
        let stored = match self.is_closed() {
            true => Err(DropReason::Shutdown),
            false => self.store(&mut state, resets, body),
        };
        match stored {
            Ok(body) => {
                let due = self.due(Instant::now());
                state.push_back(Item { resets, body, sent_before: false, due });
            }
            Err(reason) => return self.account.ledger.dropped_waiting(self.id, reason, u64::from(resets)),
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether pushed batches outlive the process.
    pub(crate) fn is_stored(&self) -> bool {
        self.gather.is_some()
    }

    /// Notes in the storage how many resets have no outcome and are not stored: a kill would lose them, and the next start
    /// counts them. The ledger does not know `before` of them yet.
    pub(crate) fn note_unstored(&self, before: u64) {
        if self.is_stored() {
            let unstored = self.account.ledger.in_pipeline(self.id) + before;
            if let Some(storage) = &mut self.lock().storage {
                storage.note_unstored(unstored);
            }
        }
    }

    /// The oldest batches, as soon as they fill a request or are due; `None` when the queue is closed and empty.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<InFlightBatch> {
        loop {
            let changed = self.changed.notified();
            match self.next() {
                Next::Items(items) => return Some(InFlightBatch { queue: self.clone(), items }),
                Next::End => return None,
                Next::Wait(None) => changed.await,
                // Due or changed: either way the queue is checked again.
                Next::Wait(Some(due)) => drop(timeout_at(due.into(), changed).await),
            }
        }
    }

    fn next(&self) -> Next {
        let mut state = self.lock();
        let Some(oldest) = state.waiting.front() else {
            if self.is_closed() {
                self.changed.notify_one();
                return Next::End;
            }
            return Next::Wait(None);
        };
        let full = self.gather.as_ref().is_none_or(|gather| {
            state.waiting_resets >= gather.max_resets as u64 || state.waiting_bytes >= gather.max_bytes
        });
        if !full && !self.is_closed() && oldest.due > Instant::now() {
            return Next::Wait(Some(oldest.due));
        }
        let items = self.pop_request(&mut state);
        if !state.waiting.is_empty() || self.is_closed() {
            self.changed.notify_one();
        }
        Next::Items(items)
    }

    /// The oldest batch, and as many of the following as fit into its request.
    fn pop_request(&self, state: &mut State) -> Vec<Item> {
        let (mut items, mut resets, mut bytes) = (Vec::new(), 0, 0);
        while let Some(next) = state.waiting.front() {
            let fits = self.gather.as_ref().is_some_and(|gather| {
                resets + u64::from(next.resets) <= gather.max_resets as u64 && bytes + next.length() <= gather.max_bytes
            });
            if !items.is_empty() && !fits {
                break;
            }
            let Some(item) = state.pop_front() else { break };
            state.mark(&item, Mark::Sent);
            resets += u64::from(item.resets);
            bytes += item.length();
            items.push(item);
        }
        state.in_flight_resets += resets;
        self.account.ledger.begin_export(self.id, resets);
        items
    }

    fn due(&self, now: Instant) -> Instant {
        // A flush_timeout beyond the range of the clock counts as none.
        self.gather.as_ref().and_then(|gather| now.checked_add(gather.flush_timeout)).unwrap_or(now)
    }

    /// Refuses further batches; consumers drain the queue and end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Ends the queue: waiting batches stay on disk, or are dropped where they are in memory.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        if let Some(mut storage) = state.storage.take() {
            return storage.close();
        }
        while let Some(item) = state.pop_front() {
            self.account.ledger.dropped_waiting(self.id, DropReason::Shutdown, u64::from(item.resets));
        }
    }

    /// Syncs what was written since the last call. Blocks.
    pub(crate) fn sync(&self) {
        let files = self.lock().storage.as_mut().map(Storage::take_unsynced).unwrap_or_default();
        let synced = files.iter().try_for_each(|file| file.sync_data());
        if let Some(storage) = &self.lock().storage {
            storage.log_failure(synced);
        }
    }

    /// Stores a batch, and drops others for it as configured. An empty queue takes a batch of any size: else it could
    /// never be sent.
    fn store(&self, state: &mut State, resets: u32, body: Bytes) -> Result<Body, DropReason> {
        while state.occupied() > 0 && state.occupied() + u64::from(resets) > self.size {
            self.drop_oldest(state)?;
        }
        loop {
            let Some(storage) = &mut state.storage else { return Ok(Body::Memory(body)) };
            let stored = storage.append(resets, &body);
            let bytes = storage.bytes();
            self.account.health.update(self.id, |health| {
                health.storage_bytes = bytes;
                health.recovered_from(if stored.is_ok() { &[Degradation::StorageFailing] } else { &[] });
            });
            match stored {
                Ok(slot) => return Ok(Body::Disk(slot)),
                Err(StorageError::Limit { .. }) if self.drop_oldest(state).is_ok() => {}
                Err(error) => {
                    self.storage_failed(&error);
                    return Err(DropReason::StorageFull);
                }
            }
        }
    }

    fn storage_failed(&self, error: &StorageError) {
        let error = error.to_string();
        self.account.health.update(self.id, |health| health.degrade(Degradation::StorageFailing, &error));
        if self.throttle.due("storage_full", Instant::now()).is_some() {
            tracing::warn!(event = "storage_full", error, "cannot store a batch, dropping it");
        }
    }

    fn settle(&self, items: &[Item], outcome: BatchOutcome) {
        let resets = items.iter().map(|item| u64::from(item.resets)).sum();
        let mut state = self.lock();
        state.in_flight_resets -= resets;
        items.iter().for_each(|item| state.mark(item, Mark::Done));
        let stored = state.storage.as_ref().map_or(0, Storage::bytes);
        match outcome {
            BatchOutcome::Exported { rejected } => self.account.ledger.exported(self.id, resets, rejected),
            BatchOutcome::Dropped(reason) => self.account.ledger.dropped_in_flight(self.id, reason, resets),
        }
        self.account.health.update(self.id, |health| health.storage_bytes = stored);
    }

    /// Drops the oldest batch, or fails: none waits, or the newest is to be dropped.
    fn drop_oldest(&self, state: &mut State) -> Result<(), DropReason> {
        if self.on_overflow == OnOverflow::DropNewest {
            return Err(DropReason::QueueFull);
        }
        let oldest = state.pop_front().ok_or(DropReason::QueueFull)?;
        state.mark(&oldest, Mark::Done);
        self.account.ledger.dropped_waiting(self.id, DropReason::QueueFull, u64::from(oldest.resets));
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn occupied(&self) -> u64 {
        self.waiting_resets + self.in_flight_resets
    }

    fn push_back(&mut self, item: Item) {
        self.waiting_resets += u64::from(item.resets);
        self.waiting_bytes += item.length();
        self.waiting.push_back(item);
    }

    fn push_front(&mut self, item: Item) {
        self.waiting_resets += u64::from(item.resets);
        self.waiting_bytes += item.length();
        self.waiting.push_front(item);
    }

    fn pop_front(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        self.waiting_resets -= u64::from(item.resets);
        self.waiting_bytes -= item.length();
        Some(item)
    }

    fn mark(&mut self, item: &Item, mark: Mark) {
        if let (Some(storage), Body::Disk(slot)) = (&mut self.storage, &item.body) {
            storage.mark(slot, mark);
        }
    }
}

impl Item {
    /// Bytes of its message.
    fn length(&self) -> usize {
        match &self.body {
            Body::Memory(body) => body.len(),
            Body::Disk(slot) => slot.length(),
        }
    }
}

fn log_recovery(path: &Path, recovered: &RecoveredStorage) {
    let path = path.display();
    if !recovered.found.is_empty() {
        let batches = recovered.found.len();
        tracing::info!(event = "storage_recovered", %path, batches, "batches of an earlier run are queued");
    }
    let (corrupt, unsynced, unstored) = (recovered.corrupt, recovered.unsynced, recovered.unstored);
    if corrupt + unsynced + unstored > 0 {
        tracing::warn!(
            event = "storage_lost_resets", %path, corrupt, unsynced, unstored,
            "resets of an earlier run are lost: in damaged records, not synced before the machine stopped, or not stored \
             before the collector was killed"
        );
    }
}

impl InFlightBatch {
    /// The number of resets.
    pub(crate) fn resets(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.resets)).sum()
    }

    /// The number of resets that the backend may have from an earlier run.
    pub(crate) fn sent_before(&self) -> u64 {
        self.items.iter().filter(|item| item.sent_before).map(|item| u64::from(item.resets)).sum()
    }

    /// The request's message. Batches that cannot be read from disk are dropped; the error is returned where none is left.
    pub(crate) async fn body(&mut self) -> Result<Bytes, StorageError> {
        let mut reads = Vec::with_capacity(self.items.len());
        // The batches stay in `self` meanwhile: a consumer that is cut off here returns them.
        for item in &self.items {
            reads.push(item.body.read().await);
        }
        let (mut parts, mut damaged) = (Vec::with_capacity(reads.len()), Ok(()));
        for (item, read) in std::mem::take(&mut self.items).into_iter().zip(reads) {
            match read {
                Ok(part) => {
                    parts.push(part);
                    self.items.push(item);
                }
                Err(error) => {
                    self.queue.settle(&[item], BatchOutcome::Dropped(DropReason::StorageCorrupt));
                    damaged = Err(error);
                }
            }
        }
        match &parts[..] {
            [] => damaged.map(|()| Bytes::new()),
            [part] => Ok(part.clone()),
            parts => Ok(parts.concat().into()),
        }
    }

    /// Gives the batches their outcome.
    pub(crate) fn settle(mut self, outcome: BatchOutcome) {
        self.queue.settle(&std::mem::take(&mut self.items), outcome);
    }
}

impl Body {
    async fn read(&self) -> Result<Bytes, StorageError> {
        match self.clone() {
            Self::Memory(body) => Ok(body),
            Self::Disk(slot) => {
                let retried = slot.clone();
                let read = tokio::task::spawn_blocking(move || slot.read()).await;
                // The runtime is ending and runs no more blocking work.
                read.unwrap_or_else(|_| retried.read())
            }
        }
    }
}

impl Drop for InFlightBatch {
    fn drop(&mut self) {
        let resets = self.resets();
        let mut state = self.queue.lock();
        state.in_flight_resets -= resets;
        std::mem::take(&mut self.items).into_iter().rev().for_each(|item| state.push_front(item));
        self.queue.account.ledger.requeue(self.queue.id, resets);
        self.queue.changed.notify_one();
    }
}
