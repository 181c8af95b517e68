//! What waits for one lane (destination and signal): bounded, counted in resets, in memory or on disk.
//!
//! A batch is in one place at any time: waiting, taken by a consumer, or settled. A batch that was taken and not
//! settled (its consumer was cut off) goes back to the front. Sends nothing itself ([`crate::export`]).
//!
//! On disk the batches come small, as soon as there are resets, so that a killed process loses none that it has told
//! of; they wait here for more and go out together. OTLP's requests one after the other are one request (protobuf
//! appends repeated fields), so nothing is decoded for that.

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
    account::{Account, DropReason, LaneId},
    config::settings::{self, OnOverflow},
    export::{
        log_throttle::LogThrottle,
        segment::Mark,
        storage::{RecoveredStorage, Slot, Storage, StorageError},
    },
};

/// What became of a batch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchOutcome {
    /// Accepted, all but `rejected` resets of it.
    Exported {
        /// Lost by the backend's own word.
        rejected: u64,
    },
    /// Lost.
    Dropped(DropReason),
}

/// The queue of one lane.
pub(crate) struct Queue {
    account: Arc<Account>,
    lane: LaneId,
    /// Resets, waiting and in flight, at most.
    size: u64,
    on_overflow: OnOverflow,
    /// How batches are put together here; `None` where they come as they go out.
    gather: Option<settings::Batch>,
    state: Mutex<State>,
    /// Set without the lock: a disk that hangs under it must not hold up the shutdown.
    closed: AtomicBool,
    changed: Notify,
    storage_throttle: LogThrottle,
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
    place: Place,
    /// A request was made of it in an earlier run: the backend may have it.
    sent_before: bool,
    /// When it goes out, whatever else waits.
    due: Instant,
}

#[derive(Clone)]
enum Place {
    Memory(Bytes),
    Disk(Slot),
}

/// A request's worth of batches in a consumer's hands; dropped without [`InFlightBatch::settle`], they wait again.
pub(crate) struct InFlightBatch {
    queue: Arc<Queue>,
    items: Vec<Item>,
}

/// What a consumer finds.
enum Next {
    /// To be sent now.
    Items(Vec<Item>),
    /// Nothing before then, unless more comes.
    Wait(Option<Instant>),
    /// Nothing any more.
    End,
}

impl Queue {
    /// A queue as configured. With storage it is in the directory `below` the configured one, with what an earlier run
    /// left there.
    pub(crate) fn open(
        account: Arc<Account>,
        lane: LaneId,
        settings: &settings::Queue,
        batch: &settings::Batch,
        below: &Path,
    ) -> Result<Self, StorageError> {
        let size = settings.size as u64;
        account.health(lane, |health| health.capacity = size);
        let mut state = State::default();
        if let Some(storage) = &settings.storage {
            let opened = Storage::open(&storage.directory, below, storage.max_bytes, storage.fsync)?;
            report(&storage.directory.join(below), &opened);
            let found = opened.found.iter().map(|found| u64::from(found.resets)).sum();
            let lost = [
                (DropReason::StorageCorrupt, opened.corrupt),
                (DropReason::StorageUnsynced, opened.unsynced),
                (DropReason::ProcessKilled, opened.unstored),
            ];
            account.recovered(lane, found, &lost);
            let due = Instant::now();
            for found in opened.found {
                let (resets, sent_before) = (found.resets, found.sent);
                state.push_back(Item { resets, place: Place::Disk(found.slot), sent_before, due });
            }
            account.health(lane, |health| health.storage_bytes = opened.storage.bytes());
            state.storage = Some(opened.storage);
        }
        let (changed, storage_throttle) = (Notify::new(), LogThrottle::default());
        // One permit for what was found; each consumer that takes a batch wakes the next.
        changed.notify_one();
        Ok(Self {
            account,
            lane,
            size,
            on_overflow: settings.on_overflow,
            gather: settings.storage.as_ref().map(|_| batch.clone()),
            state: Mutex::new(state),
            closed: AtomicBool::new(false),
            changed,
            storage_throttle,
        })
    }

    /// Takes a batch from the pipeline, without waiting for the network; what does not fit is dropped and counted.
    /// With storage it is written before this returns: to the page cache, and to the disk if `fsync` is `always`.
    pub(crate) fn push(&self, resets: u32, body: Bytes) {
        let mut state = self.lock();
        self.account.enqueued(self.lane, u64::from(resets));
        let placed = match self.is_closed() {
            true => Err(DropReason::Shutdown),
            false => self.place(&mut state, resets, body),
        };
        match placed {
            Ok(place) => {
                let due = self.due(Instant::now());
                state.push_back(Item { resets, place, sent_before: false, due });
            }
            Err(reason) => return self.account.dropped_waiting(self.lane, reason, u64::from(resets)),
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether what was pushed outlives the process.
    pub(crate) fn is_stored(&self) -> bool {
        self.gather.is_some()
    }

    /// Notes in the storage how many resets have no fate and are not in it: they are what a kill would lose, and the next
    /// start counts them. `before` are those that the account does not know of yet.
    pub(crate) fn note_unstored(&self, before: u64) {
        if self.is_stored() {
            let unstored = self.account.in_pipeline(self.lane) + before;
            if let Some(storage) = &mut self.lock().storage {
                storage.note_unstored(unstored);
            }
        }
    }

    /// The batches that have waited longest, as soon as they fill a request or have waited enough; `None` when the queue
    /// is closed and empty.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<InFlightBatch> {
        loop {
            let changed = self.changed.notified();
            match self.next() {
                Next::Items(items) => return Some(InFlightBatch { queue: self.clone(), items }),
                Next::End => return None,
                Next::Wait(None) => changed.await,
                // Over or changed: either way there is a look.
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

    /// One batch, and of those behind it as many as a request takes.
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
        self.account.taken(self.lane, resets);
        items
    }

    fn due(&self, now: Instant) -> Instant {
        // A flush_timeout beyond what the clock can count is no wait for company.
        self.gather.as_ref().and_then(|gather| now.checked_add(gather.flush_timeout)).unwrap_or(now)
    }

    /// Takes no more; consumers drain what is there and end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Ends the queue: what still waits is kept on disk, or dropped where it is in memory.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        if let Some(mut storage) = state.storage.take() {
            return storage.close();
        }
        while let Some(item) = state.pop_front() {
            self.account.dropped_waiting(self.lane, DropReason::Shutdown, u64::from(item.resets));
        }
    }

    /// Tells the disk to keep what was written since the last call. Blocks.
    pub(crate) fn sync(&self) {
        let files = self.lock().storage.as_mut().map(Storage::take_unsynced).unwrap_or_default();
        let synced = files.iter().try_for_each(|file| file.sync_data());
        if let Some(storage) = &self.lock().storage {
            storage.trouble(synced);
        }
    }

    /// Finds a place for so many resets. A batch above the whole size is taken by an empty queue: else it could never
    /// go out.
    fn place(&self, state: &mut State, resets: u32, body: Bytes) -> Result<Place, DropReason> {
        while state.occupied() > 0 && state.occupied() + u64::from(resets) > self.size {
            self.drop_oldest(state)?;
        }
        loop {
            let Some(storage) = &mut state.storage else { return Ok(Place::Memory(body)) };
            let stored = storage.append(resets, &body);
            let bytes = storage.bytes();
            self.account.health(self.lane, |health| health.storage_bytes = bytes);
            match stored {
                Ok(slot) => return Ok(Place::Disk(slot)),
                Err(StorageError::Limit { .. }) if self.drop_oldest(state).is_ok() => {}
                Err(error) => {
                    if self.storage_throttle.due("storage_full", Instant::now()).is_some() {
                        tracing::warn!("{error}; resets are dropped (storage_full)");
                    }
                    return Err(DropReason::StorageFull);
                }
            }
        }
    }

    fn settle(&self, items: &[Item], outcome: BatchOutcome) {
        let resets = items.iter().map(|item| u64::from(item.resets)).sum();
        let mut state = self.lock();
        state.in_flight_resets -= resets;
        items.iter().for_each(|item| state.mark(item, Mark::Done));
        let stored = state.storage.as_ref().map_or(0, Storage::bytes);
        match outcome {
            BatchOutcome::Exported { rejected } => self.account.exported(self.lane, resets, rejected),
            BatchOutcome::Dropped(reason) => self.account.dropped_in_flight(self.lane, reason, resets),
        }
        self.account.health(self.lane, |health| health.storage_bytes = stored);
    }

    /// Makes room as configured, or fails: nothing waits, or the newest is to go.
    fn drop_oldest(&self, state: &mut State) -> Result<(), DropReason> {
        if self.on_overflow == OnOverflow::DropNewest {
            return Err(DropReason::QueueFull);
        }
        let oldest = state.pop_front().ok_or(DropReason::QueueFull)?;
        state.mark(&oldest, Mark::Done);
        self.account.dropped_waiting(self.lane, DropReason::QueueFull, u64::from(oldest.resets));
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
        if let (Some(storage), Place::Disk(slot)) = (&mut self.storage, &item.place) {
            storage.mark(slot, mark);
        }
    }
}

impl Item {
    /// Bytes of its message.
    fn length(&self) -> usize {
        match &self.place {
            Place::Memory(body) => body.len(),
            Place::Disk(slot) => slot.length(),
        }
    }
}

fn report(directory: &Path, opened: &RecoveredStorage) {
    let directory = directory.display();
    if !opened.found.is_empty() {
        tracing::info!("sending_queue.storage {directory}: {} requests of an earlier run wait", opened.found.len());
    }
    let (corrupt, unsynced, unstored) = (opened.corrupt, opened.unsynced, opened.unstored);
    if corrupt + unsynced + unstored > 0 {
        tracing::warn!(
            "sending_queue.storage {directory}: resets lost: {corrupt} in damaged records, {unsynced} that had not \
             reached the disk when the machine stopped, {unstored} that waited for the storage when the collector was killed"
        );
    }
}

impl InFlightBatch {
    /// How many resets.
    pub(crate) fn resets(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.resets)).sum()
    }

    /// How many of them the backend may have from an earlier run.
    pub(crate) fn sent_before(&self) -> u64 {
        self.items.iter().filter(|item| item.sent_before).map(|item| u64::from(item.resets)).sum()
    }

    /// The request's message. Batches that cannot be read any more are lost by it, and counted; the error is that of the
    /// last of them, where none is left.
    pub(crate) async fn body(&mut self) -> Result<Bytes, StorageError> {
        let mut reads = Vec::with_capacity(self.items.len());
        // The batches stay in `self` meanwhile: a consumer that is cut off here puts them back.
        for item in &self.items {
            reads.push(item.place.read().await);
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

    /// Ends the batches.
    pub(crate) fn settle(mut self, outcome: BatchOutcome) {
        self.queue.settle(&std::mem::take(&mut self.items), outcome);
    }
}

impl Place {
    async fn read(&self) -> Result<Bytes, StorageError> {
        match self.clone() {
            Self::Memory(body) => Ok(body),
            Self::Disk(slot) => {
                let again = slot.clone();
                let read = tokio::task::spawn_blocking(move || slot.read()).await;
                // The runtime gives up such work only when it ends: then it is done here.
                read.unwrap_or_else(|_| again.read())
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
        self.queue.account.put_back(self.queue.lane, resets);
        self.queue.changed.notify_one();
    }
}
