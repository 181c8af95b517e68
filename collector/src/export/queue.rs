//! What waits for one lane (destination and signal): bounded, counted in resets, in memory or on disk.
//!
//! A batch is in one place at any time: waiting, taken by a consumer, or settled. A batch that was taken and not
//! settled (its consumer was cut off) goes back to the front. Sends nothing itself ([`crate::export`]).

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    account::{Account, DropReason, LaneId},
    config::settings::{self, WhenFull},
    export::{
        notice::Notice,
        segment::Mark,
        storage::{Opened, Slot, Storage, StorageError},
    },
};

/// What became of a batch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
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
    when_full: WhenFull,
    state: Mutex<State>,
    changed: Notify,
    storage_troubles: Notice,
}

#[derive(Default)]
struct State {
    storage: Option<Storage>,
    waiting: VecDeque<Item>,
    waiting_resets: u64,
    in_flight_resets: u64,
    closed: bool,
}

#[derive(Clone)]
struct Item {
    resets: u32,
    place: Place,
    /// A request was made of it in an earlier run: the backend may have it.
    handed_out_before: bool,
}

#[derive(Clone)]
enum Place {
    Memory(Bytes),
    Disk(Slot),
}

/// A batch in a consumer's hands; dropped without [`Taken::settle`], it waits again.
pub(crate) struct Taken {
    queue: Arc<Queue>,
    item: Option<Item>,
}

impl Queue {
    /// A queue as configured; on disk in `directory` where there is one, with what an earlier run left there.
    pub(crate) fn open(
        account: Arc<Account>,
        lane: LaneId,
        settings: &settings::Queue,
        directory: Option<&Path>,
    ) -> Result<Self, StorageError> {
        let size = settings.size as u64;
        account.health(lane, |health| health.capacity = size);
        let mut state = State::default();
        if let Some(directory) = directory {
            let opened = Storage::open(directory, settings.max_storage_bytes, settings.fsync)?;
            report(directory, &opened);
            let found = opened.found.iter().map(|found| u64::from(found.resets)).sum();
            let lost = [(DropReason::StorageCorrupt, opened.corrupt), (DropReason::StorageUnsynced, opened.unsynced)];
            account.recovered(lane, found, &lost);
            for found in opened.found {
                let place = Place::Disk(found.slot);
                state.push_back(Item { resets: found.resets, place, handed_out_before: found.handed_out });
            }
            account.health(lane, |health| health.storage_bytes = opened.storage.bytes());
            state.storage = Some(opened.storage);
        }
        let (changed, storage_troubles) = (Notify::new(), Notice::default());
        // One permit for what was found; each consumer that takes a batch wakes the next.
        changed.notify_one();
        Ok(Self {
            account,
            lane,
            size,
            when_full: settings.when_full,
            state: Mutex::new(state),
            changed,
            storage_troubles,
        })
    }

    /// Takes a batch from the pipeline, without waiting for the network; what does not fit is dropped and counted.
    /// With storage it is written before this returns: to the page cache, and to the disk if `fsync` is `always`.
    pub(crate) fn push(&self, resets: u32, body: Bytes) {
        let mut state = self.lock();
        self.account.enqueued(self.lane, u64::from(resets));
        let placed = match state.closed {
            true => Err(DropReason::Shutdown),
            false => self.place(&mut state, resets, body),
        };
        match placed {
            Ok(place) => state.push_back(Item { resets, place, handed_out_before: false }),
            Err(reason) => return self.account.dropped_waiting(self.lane, reason, u64::from(resets)),
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The batch that has waited longest, as soon as there is one; `None` when the queue is closed and empty.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<Taken> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if let Some(item) = state.pop_front() {
                    state.mark(&item, Mark::HandedOut);
                    state.in_flight_resets += u64::from(item.resets);
                    self.account.taken(self.lane, u64::from(item.resets));
                    if !state.waiting.is_empty() || state.closed {
                        self.changed.notify_one();
                    }
                    return Some(Taken { queue: self.clone(), item: Some(item) });
                }
                if state.closed {
                    self.changed.notify_one();
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Takes no more; consumers drain what is there and end.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
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
                    if self.storage_troubles.due(Instant::now()).is_some() {
                        tracing::warn!("{error}; resets are dropped (storage_full)");
                    }
                    return Err(DropReason::StorageFull);
                }
            }
        }
    }

    /// Makes room as configured, or fails: nothing waits, or the newest is to go.
    fn drop_oldest(&self, state: &mut State) -> Result<(), DropReason> {
        if self.when_full == WhenFull::DropNewest {
            return Err(DropReason::QueueFull);
        }
        let oldest = state.pop_front().ok_or(DropReason::QueueFull)?;
        state.mark(&oldest, Mark::Done);
        self.account.dropped_waiting(self.lane, DropReason::QueueFull, u64::from(oldest.resets));
        Ok(())
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
        self.waiting.push_back(item);
    }

    fn pop_front(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        self.waiting_resets -= u64::from(item.resets);
        Some(item)
    }

    fn mark(&mut self, item: &Item, mark: Mark) {
        if let (Some(storage), Place::Disk(slot)) = (&mut self.storage, &item.place) {
            storage.mark(slot, mark);
        }
    }
}

fn report(directory: &Path, opened: &Opened) {
    let directory = directory.display();
    if !opened.found.is_empty() {
        tracing::info!("sending_queue.storage {directory}: {} requests of an earlier run wait", opened.found.len());
    }
    let (corrupt, unsynced) = (opened.corrupt, opened.unsynced);
    if corrupt + unsynced > 0 {
        tracing::warn!(
            "sending_queue.storage {directory}: resets lost: {corrupt} in damaged records, {unsynced} that had not \
             reached the disk when the machine stopped"
        );
    }
}

impl Taken {
    /// How many resets.
    pub(crate) fn resets(&self) -> u32 {
        self.item.as_ref().map_or(0, |item| item.resets)
    }

    /// The backend may have it from an earlier run.
    pub(crate) fn handed_out_before(&self) -> bool {
        self.item.as_ref().is_some_and(|item| item.handed_out_before)
    }

    /// The request's message.
    pub(crate) async fn body(&self) -> Result<Bytes, StorageError> {
        match self.item.as_ref().map(|item| item.place.clone()) {
            None => Ok(Bytes::new()),
            Some(Place::Memory(body)) => Ok(body),
            Some(Place::Disk(slot)) => {
                let again = slot.clone();
                let read = tokio::task::spawn_blocking(move || slot.read()).await;
                // The runtime gives up such work only when it ends: then it is done here.
                read.unwrap_or_else(|_| again.read())
            }
        }
    }

    /// Ends the batch.
    pub(crate) fn settle(mut self, fate: Fate) {
        let Some(item) = self.item.take() else { return };
        let resets = u64::from(item.resets);
        let mut state = self.queue.lock();
        state.in_flight_resets -= resets;
        state.mark(&item, Mark::Done);
        let stored = state.storage.as_ref().map_or(0, Storage::bytes);
        let (account, lane) = (&self.queue.account, self.queue.lane);
        match fate {
            Fate::Exported { rejected } => account.exported(lane, resets, rejected),
            Fate::Dropped(reason) => account.dropped_in_flight(lane, reason, resets),
        }
        account.health(lane, |health| health.storage_bytes = stored);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(item) = self.item.take() else { return };
        let resets = u64::from(item.resets);
        let mut state = self.queue.lock();
        state.in_flight_resets -= resets;
        state.waiting_resets += resets;
        state.waiting.push_front(item);
        self.queue.account.put_back(self.queue.lane, resets);
        self.queue.changed.notify_one();
    }
}
