//! The connections of both receivers: a bounded number, of which the longest idle one gives way to a new one.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    correlate::Sender,
    receiver::{
        FIRST_REQUEST_TIMEOUT, IDLE_TIMEOUT,
        body::{ClientKey, largest},
    },
};

/// Connections at one time, of both receivers.
pub(crate) const MAX_CONNECTIONS: usize = 512;
/// Places that are kept free, so that a new connection need not wait for the end of another.
const SPARE_CONNECTIONS: usize = 16;

/// All connections.
#[derive(Debug)]
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: Mutex<u64>,
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) sender: OnceCell<Sender>,
    requests: AtomicUsize,
    /// When it was accepted, or a request last began or ended.
    active: Mutex<Instant>,
    had_request: AtomicBool,
    displaced: Notify,
    is_displaced: AtomicBool,
}

/// Keeps a connection's place.
#[derive(Debug)]
pub(crate) struct ConnectionGuard {
    connections: Arc<Connections>,
    id: u64,
    _place: OwnedSemaphorePermit,
}

/// A request in progress.
pub(crate) struct InProgress<'a>(&'a Connection);

impl Default for Connections {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), open: Mutex::default(), next: Mutex::default() }
    }
}

impl Connections {
    /// Takes a connection in, for which another one may have to end.
    pub(crate) async fn add(
        self: &Arc<Self>,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Option<(Arc<Connection>, ConnectionGuard)> {
        if self.places.available_permits() < SPARE_CONNECTIONS {
            self.displace_one();
        }
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let connection = Arc::new(Connection::new(peer, local));
        self.open().insert(id, Arc::clone(&connection));
        Some((connection, ConnectionGuard { connections: Arc::clone(self), id, _place: place }))
    }

    /// How many are open.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.open().len()).unwrap_or(u32::MAX)
    }

    /// Waits for the end of all.
    pub(crate) async fn ended(&self) {
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        // Only a closed semaphore fails, and nothing closes it.
        drop(self.places.acquire_many(all).await);
    }

    /// Of the client with the most connections, the one that has been idle for longest; where none is idle, the one
    /// whose request has taken longest.
    fn displace_one(&self) {
        let open = self.open();
        let all: Vec<&Arc<Connection>> =
            open.values().filter(|connection| !connection.is_displaced.load(Relaxed)).collect();
        let Some((crowded, _)) = largest(all.iter().map(|connection| (connection.client(), 1))) else { return };
        let of_client = all.iter().filter(|connection| connection.client() == crowded);
        let Some(connection) = of_client.min_by_key(|connection| (connection.is_busy(), connection.active())) else {
            return;
        };
        connection.is_displaced.store(true, Relaxed);
        connection.displaced.notify_one();
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            peer,
            local,
            sender: OnceCell::new(),
            requests: AtomicUsize::new(0),
            active: Mutex::new(Instant::now()),
            had_request: AtomicBool::new(false),
            displaced: Notify::new(),
            is_displaced: AtomicBool::new(false),
        }
    }

    /// Who it belongs to; by process once that is known.
    pub(crate) fn client(&self) -> ClientKey {
        let process = self.sender.get().and_then(Sender::process);
        ClientKey::new(self.peer.ip(), process.map(|process| process.pid))
    }

    pub(crate) fn begin_request(&self) -> InProgress<'_> {
        self.requests.fetch_add(1, Relaxed);
        self.had_request.store(true, Relaxed);
        self.touch();
        InProgress(self)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.requests.load(Relaxed) > 0
    }

    /// There was no request yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.had_request.load(Relaxed)
    }

    /// When it has been idle for too long.
    pub(crate) fn idle_deadline(&self) -> Instant {
        self.active() + if self.is_new() { FIRST_REQUEST_TIMEOUT } else { IDLE_TIMEOUT }
    }

    /// Waits until it has to give way.
    pub(crate) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    fn active(&self) -> Instant {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
        self.0.touch();
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}
