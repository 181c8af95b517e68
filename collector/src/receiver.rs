//! The OTLP receivers: applications send here, and what they send goes on to the backend as it came.
//!
//! Owns the listeners and connections: how many, how long, who is behind them. What happens to a request is written in
//! `exchange`.

mod body;
pub mod forward;
mod grpc;
mod handler;
mod http;
pub mod metrics;
pub mod peer_process;
mod response;
mod socket_table;

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OnceCell, Semaphore, watch},
    time::Instant,
};

use crate::{
    config::settings::Correlation,
    correlate::{Correlator, Sender},
    receiver::{body::Budget, forward::Backends, metrics::Traffic},
};

/// Connections at one time, of both receivers; the next takes the place of the one that has been silent for longest.
const MOST_CONNECTIONS: usize = 512;
/// A client that has not asked for anything by then is sent away: a whole request's headers are one packet.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Between requests; SDKs send every few seconds, metrics every minute.
const IDLE: Duration = Duration::from_secs(600);
/// For the requests that are under way when the program ends.
const DRAIN: Duration = Duration::from_secs(5);
/// Maximum concurrent searches for a sender: each reads much of /proc.
const SENDER_SEARCHES: usize = 2;
/// Bytes of all requests at one time, where `max_request_bytes` is small.
const LEAST_BUDGET: usize = 64 << 20;
/// Bytes of HTTP/1's headers at most.
const MOST_HEADER_BYTES: usize = 64 << 10;

/// Finds who sends over a connection: (its address, ours).
pub type FindSender = Arc<dyn Fn(SocketAddr, SocketAddr) -> Sender + Send + Sync>;

/// The receivers, listening.
pub struct Receivers {
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) backends: Backends,
    pub(crate) correlator: Arc<Correlator>,
    pub(crate) budget: Budget,
    /// Bytes of one request at most, after decompression.
    pub(crate) limit: usize,
    pub(crate) traffic: Arc<Traffic>,
    find_sender: FindSender,
    sender_searches: Semaphore,
}

/// One accepted connection.
pub(crate) struct Connection {
    peer: SocketAddr,
    local: SocketAddr,
    sender: OnceCell<Sender>,
    requests: AtomicUsize,
    heard: watch::Sender<Option<Instant>>,
    displaced: Notify,
}

/// Connections that may not have asked for anything, the oldest first.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<VecDeque<Weak<Connection>>>>);

/// Why there are no receivers.
#[derive(Debug, thiserror::Error)]
#[error("correlation.otlp_receiver cannot listen on {address}: {source}")]
pub struct ListenError {
    /// As configured.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

impl Receivers {
    /// Listens where the settings say. Requests are answered once [`Self::run`] runs.
    pub async fn listen(
        settings: &Correlation,
        backends: Backends,
        correlator: Arc<Correlator>,
        find_sender: FindSender,
    ) -> Result<Self, ListenError> {
        let mut listeners = Vec::new();
        for address in [settings.grpc, settings.http].into_iter().flatten() {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| ListenError { address, source })?);
        }
        let limit = settings.max_request_bytes;
        let shared = Shared {
            backends,
            correlator,
            // Room for two of the largest: one being read while the other is on its way.
            budget: Budget::new(limit.saturating_mul(2).max(LEAST_BUDGET)),
            limit,
            traffic: Arc::default(),
            find_sender,
            sender_searches: Semaphore::new(SENDER_SEARCHES),
        };
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        Ok(Self { listeners, shared: Arc::new(shared), connections })
    }

    /// The addresses, gRPC's first: with port 0 configured, the ports that were given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// What passes, counted.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.shared.traffic)
    }

    /// Serves until `shutdown`, then lets the requests that are under way end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let silent = Silent::default();
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| {
                let (shared, connections) = (Arc::clone(&self.shared), Arc::clone(&self.connections));
                tokio::spawn(accept(listener, shared, connections, silent.clone(), stopped.clone()))
            })
            .collect();
        shutdown.await;
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        // Nobody left to tell is as good as told.
        stop.send_replace(true);
        let all = u32::try_from(MOST_CONNECTIONS).unwrap_or(u32::MAX);
        if tokio::time::timeout(DRAIN, self.connections.acquire_many(all)).await.is_err() {
            tracing::warn!("requests of applications were still under way after {DRAIN:?}; they are cut off");
        }
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    silent: Silent,
    stopped: watch::Receiver<bool>,
) {
    /// Out of descriptors or memory: not cured by asking again at once.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("an application's connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if connections.available_permits() == 0 {
            silent.displace_oldest();
        }
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok(local) = stream.local_addr() else { continue };
        let connection = Arc::new(Connection::new(peer, local));
        silent.add(&connection);
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        tokio::spawn(async move {
            serve(stream, &connection, shared, stopped).await;
            drop(permit);
        });
    }
}

async fn serve(
    stream: TcpStream,
    connection: &Arc<Connection>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let peer = connection.peer;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY is refused for {peer}: {error}");
    }
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, connection) = (Arc::clone(&shared), Arc::clone(connection));
        async move {
            let _under_way = UnderWay::begin(&connection);
            handler::answer(&shared, &connection, request).await
        }
    });
    let builder = http();
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let accepted = Instant::now();
    let mut ending = false;
    let mut end = accepted + FIRST_REQUEST;
    loop {
        tokio::select! {
            result = &mut serving => {
                if let Err(error) = result {
                    tracing::debug!("the connection from {peer} ended: {error}");
                }
                return;
            }
            () = tokio::time::sleep_until(end) => {
                if ending {
                    return;
                }
                let heard = *connection.heard.borrow();
                let quiet = heard.map_or(accepted + FIRST_REQUEST, |heard| heard + IDLE);
                if connection.requests.load(Relaxed) > 0 || quiet > Instant::now() {
                    end = quiet.max(Instant::now() + FIRST_REQUEST);
                    continue;
                }
                // One that never asked may be in the middle of its headers, for which hyper would wait.
                if heard.is_none() {
                    return;
                }
                (ending, end) = (true, Instant::now() + DRAIN);
                serving.as_mut().graceful_shutdown();
            }
            () = connection.displaced.notified(), if !ending => return,
            changed = stopped.changed(), if !ending => {
                if changed.is_err() || *stopped.borrow() {
                    (ending, end) = (true, Instant::now() + DRAIN);
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MOST_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_frame_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(60));
    builder
}

/// A request that is being answered.
struct UnderWay<'a>(&'a Connection);

impl<'a> UnderWay<'a> {
    fn begin(connection: &'a Connection) -> Self {
        connection.requests.fetch_add(1, Relaxed);
        Self(connection)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
        self.0.heard.send_replace(Some(Instant::now()));
    }
}

impl Silent {
    fn add(&self, connection: &Arc<Connection>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= 2 * MOST_CONNECTIONS {
            all.retain(|connection| connection.upgrade().is_some_and(|connection| connection.is_silent()));
        }
        all.push_back(Arc::downgrade(connection));
    }

    fn displace_oldest(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = all.pop_front() {
            if let Some(oldest) = oldest.upgrade().filter(|oldest| oldest.is_silent()) {
                return oldest.displaced.notify_one();
            }
        }
    }
}

impl Connection {
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            peer,
            local,
            sender: OnceCell::new(),
            requests: AtomicUsize::new(0),
            heard: watch::Sender::new(None),
            displaced: Notify::new(),
        }
    }

    fn is_silent(&self) -> bool {
        self.requests.load(Relaxed) == 0 && self.heard.borrow().is_none()
    }

    /// Who is behind the connection, searched once.
    pub(crate) async fn sender(&self, shared: &Shared) -> Sender {
        let search = || async {
            let Ok(_permit) = shared.sender_searches.acquire().await else { return Sender::Unattributed };
            let (find, peer, local) = (Arc::clone(&shared.find_sender), self.peer, self.local);
            tokio::task::spawn_blocking(move || find(peer, local)).await.unwrap_or(Sender::Unattributed)
        };
        *self.sender.get_or_init(search).await
    }
}
