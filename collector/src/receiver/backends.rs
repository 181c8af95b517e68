//! Where requests of applications go: one client for each signal, and a bounded number of requests in flight.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{model::signal::Signal, otlp::client::Client, receiver::body::ClientKey};

/// Requests of one signal in flight. Each may hold a connection to the backend.
pub(crate) const MAX_IN_FLIGHT: usize = 64;
/// Requests of one signal and one client in flight: some places stay for others.
const MAX_IN_FLIGHT_PER_CLIENT: usize = 48;
/// How long a request waits for its place.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);

/// The backends of logs, traces and metrics.
pub struct Backends([Backend; Signal::ALL.len()]);

/// The backend of one signal.
pub(crate) struct Backend {
    pub(crate) client: Client,
    slots: Arc<Semaphore>,
    clients: Mutex<HashMap<ClientKey, Weak<Semaphore>>>,
}

/// A place among the requests in flight, given back when dropped.
pub(crate) struct Slot {
    _of_client: OwnedSemaphorePermit,
    _of_backend: OwnedSemaphorePermit,
}

impl Backends {
    /// The client that forwards each signal.
    pub fn new(client: impl Fn(Signal) -> Client) -> Self {
        let backend = |signal| Backend {
            client: client(signal),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            clients: Mutex::default(),
        };
        Self([Signal::Logs, Signal::Traces, Signal::Metrics].map(backend))
    }

    pub(crate) fn of(&self, signal: Signal) -> &Backend {
        &self.0[signal as usize]
    }
}

impl Backend {
    /// Waits briefly for a place; `None` where too many requests are in flight.
    pub(crate) async fn slot(&self, client: ClientKey) -> Option<Slot> {
        let of_client = self.slots_of(client);
        let waiting = async {
            let of_client = of_client.acquire_owned().await.ok()?;
            let of_backend = Arc::clone(&self.slots).acquire_owned().await.ok()?;
            Some(Slot { _of_client: of_client, _of_backend: of_backend })
        };
        tokio::time::timeout(SLOT_TIMEOUT, waiting).await.ok()?
    }

    /// The places of one client; they go with its last request.
    fn slots_of(&self, client: ClientKey) -> Arc<Semaphore> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = clients.get(&client).and_then(Weak::upgrade) {
            return slots;
        }
        clients.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT_PER_CLIENT));
        clients.insert(client, Arc::downgrade(&slots));
        slots
    }
}
