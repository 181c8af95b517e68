//! How the queues, the hooks and the process are doing: nothing of it is part of the accounting invariant.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    account::{HookCoverage, QueueHealth, QueueId, Snapshot},
    model::signal::Signal,
};

/// Called for each request, with its destination, its signal and how long it took.
type RequestObserver = Box<dyn Fn(&str, Signal, Duration) + Send + Sync>;

/// Shared by the whole program.
#[derive(Default)]
pub struct HealthBoard {
    state: Mutex<State>,
    request_observers: Mutex<Vec<RequestObserver>>,
}

#[derive(Default)]
struct State {
    /// By the number of the [`QueueId`].
    queues: Vec<Queue>,
    hooks: Vec<HookCoverage>,
    hardening: Vec<(&'static str, bool)>,
}

struct Queue {
    destination: Arc<str>,
    signal: Signal,
    health: QueueHealth,
}

impl HealthBoard {
    /// Sets what the hooks see.
    pub fn set_hooks(&self, hooks: Vec<HookCoverage>) {
        self.lock().hooks = hooks;
    }

    /// Sets the runs that the kernel missed, by hook: totals since the probes were attached, one per program.
    pub fn set_missed_runs(&self, runs: &[(&'static str, u64)]) {
        for hook in &mut self.lock().hooks {
            hook.missed_runs = runs.iter().filter(|(name, _)| *name == hook.hook).map(|(_, runs)| runs).sum();
        }
    }

    /// Sets the steps of the hardening, and whether each was done.
    pub fn set_hardening(&self, steps: Vec<(&'static str, bool)>) {
        self.lock().hardening = steps;
    }

    /// Adds an observer of requests, for as long as the board lives.
    pub(crate) fn on_request(&self, observer: impl Fn(&str, Signal, Duration) + Send + Sync + 'static) {
        self.request_observers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(observer));
    }

    /// Changes what is known of a queue.
    pub(crate) fn update(&self, id: QueueId, change: impl FnOnce(&mut QueueHealth)) {
        if let Some(queue) = self.lock().queues.get_mut(id.0) {
            change(&mut queue.health);
        }
    }

    /// A request ended, with whatever outcome.
    pub(crate) fn request_took(&self, id: QueueId, duration: Duration) {
        let (destination, signal) = {
            let mut state = self.lock();
            let Some(queue) = state.queues.get_mut(id.0) else { return };
            queue.health.request_took(duration);
            (Arc::clone(&queue.destination), queue.signal)
        };
        for observer in &*self.request_observers.lock().unwrap_or_else(PoisonError::into_inner) {
            observer(&destination, signal, duration);
        }
    }

    pub(super) fn open_queue(&self, id: QueueId, destination: Arc<str>, signal: Signal) {
        let mut state = self.lock();
        debug_assert_eq!(id.0, state.queues.len());
        state.queues.push(Queue { destination, signal, health: QueueHealth::default() });
    }

    pub(super) fn add_to(&self, snapshot: &mut Snapshot) {
        let state = self.lock();
        snapshot.hooks.clone_from(&state.hooks);
        snapshot.hardening.clone_from(&state.hardening);
        for (queue, known) in snapshot.queues.iter_mut().zip(&state.queues) {
            queue.health.clone_from(&known.health);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
