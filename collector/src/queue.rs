//! What waits for one lane (destination and signal): bounded, counted in resets, in memory or on disk.
//!
//! A batch is in one place at any time: waiting, taken by a consumer, or settled. A batch that was taken and not
//! settled (its consumer was cut off) goes back to the front. Sends nothing itself ([`crate::export`]).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    account::{Account, DropReason, LaneId},
    settings::WhenFull,
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
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Item>,
    waiting_resets: u64,
    in_flight_resets: u64,
    closed: bool,
}

#[derive(Clone)]
struct Item {
    resets: u32,
    body: Bytes,
}

/// A batch in a consumer's hands; dropped without [`Taken::settle`], it waits again.
pub(crate) struct Taken {
    queue: Arc<Queue>,
    item: Option<Item>,
}

impl Queue {
    /// A queue in memory.
    pub(crate) fn new(account: Arc<Account>, lane: LaneId, size: usize, when_full: WhenFull) -> Self {
        let size = size as u64;
        account.health(lane, |health| health.capacity = size);
        Self { account, lane, size, when_full, state: Mutex::default(), changed: Notify::new() }
    }

    /// Takes a batch from the pipeline. Never waits; what does not fit is dropped and counted.
    pub(crate) fn push(&self, resets: u32, body: Bytes) {
        let mut state = self.lock();
        self.account.enqueued(self.lane, u64::from(resets));
        if state.closed {
            self.account.dropped_waiting(self.lane, DropReason::Shutdown, u64::from(resets));
            return;
        }
        if !self.make_room(&mut state, u64::from(resets)) {
            self.account.dropped_waiting(self.lane, DropReason::QueueFull, u64::from(resets));
            return;
        }
        state.push_back(Item { resets, body });
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

    /// Drops what still waits when the program ends.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        while let Some(item) = state.pop_front() {
            self.account.dropped_waiting(self.lane, DropReason::Shutdown, u64::from(item.resets));
        }
    }

    /// Whether there is room for so many resets, made if the settings say so. A batch above the whole size is taken
    /// by an empty queue: else it could never go out.
    fn make_room(&self, state: &mut State, resets: u64) -> bool {
        while state.occupied() > 0 && state.occupied() + resets > self.size {
            match self.when_full {
                WhenFull::DropNewest => return false,
                WhenFull::DropOldest => match state.pop_front() {
                    Some(oldest) => {
                        self.account.dropped_waiting(self.lane, DropReason::QueueFull, u64::from(oldest.resets));
                    }
                    None => return false,
                },
            }
        }
        true
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
}

impl Taken {
    /// How many resets.
    pub(crate) fn resets(&self) -> u32 {
        self.item.as_ref().map_or(0, |item| item.resets)
    }

    /// The request's message.
    pub(crate) fn body(&self) -> Bytes {
        self.item.as_ref().map(|item| item.body.clone()).unwrap_or_default()
    }

    /// Ends the batch.
    pub(crate) fn settle(mut self, fate: Fate) {
        let Some(item) = self.item.take() else { return };
        let resets = u64::from(item.resets);
        self.queue.lock().in_flight_resets -= resets;
        let (account, lane) = (&self.queue.account, self.queue.lane);
        match fate {
            Fate::Exported { rejected } => account.exported(lane, resets, rejected),
            Fate::Dropped(reason) => account.dropped_in_flight(lane, reason, resets),
        }
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
