//! The OTLP receivers: applications send here, and their requests are forwarded to the backend.
//!
//! Owns the listeners and connections: how many, how long, whose. What happens to a request is in `handler`.

mod backends;
mod body;
mod connections;
mod frame_limit;
mod handler;
pub mod metrics;
pub mod peer_process;
mod request;
mod response;
mod socket_table;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, header::HeaderName, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    config::settings::Correlation,
    correlate::{Correlator, Sender},
    export::log_throttle::LogThrottle,
    receiver::{
        body::Intake,
        connections::{Connection, Connections},
        frame_limit::FrameLimited,
        metrics::Traffic,
    },
};

pub use crate::receiver::backends::Backends;

/// A client without a request by then is disconnected: the headers of a request fit one packet.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between requests. SDKs send every few seconds, metrics every minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// For the requests in progress when the program ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// For the end of a connection that gives way to another.
const DISPLACE_TIMEOUT: Duration = Duration::from_millis(250);
/// Maximum concurrent searches for a sender: each reads much of /proc.
const MAX_SENDER_SEARCHES: usize = 2;
/// Bytes of all requests at one time, where `max_request_size` is small.
const MIN_BUDGET: usize = 64 << 20;
/// Bytes of HTTP/1 headers, and of HTTP/1 body that is read ahead.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Bytes that HTTP/2 connections may send ahead, shared by those that are open: all of them together hold 132 MiB at
/// most.
const WINDOW_BUDGET: u32 = 32 << 20;
const MIN_WINDOW: u32 = 128 << 10;
const MAX_WINDOW: u32 = 1 << 20;

/// Finds who sends over a connection: (its address, ours).
pub type FindSender = Arc<dyn Fn(SocketAddr, SocketAddr) -> Sender + Send + Sync>;

/// The receivers, listening.
pub struct Receivers {
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) backends: Backends,
    pub(crate) correlator: Arc<Correlator>,
    pub(crate) intake: Intake,
    /// Bytes of one request after decompression: by gRPC, by HTTP.
    pub(crate) limits: [usize; 2],
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) pass_headers: Vec<HeaderName>,
    find_sender: FindSender,
    sender_searches: Semaphore,
}

/// Why there are no receivers.
#[derive(Debug, thiserror::Error)]
#[error("correlation.otlp_receiver cannot listen on {address}: {source}")]
pub struct ListenError {
    /// As configured.
    pub address: SocketAddr,
    /// The system's error.
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
        let limits = [settings.max_grpc_request_bytes(), settings.max_http_request_bytes()];
        let largest = limits[0].max(limits[1]);
        let shared = Shared {
            backends,
            correlator,
            // Room for two of the largest: one arrives while the other is on its way.
            intake: Intake::new(largest.saturating_mul(2).max(MIN_BUDGET)),
            limits,
            traffic: Arc::default(),
            pass_headers: settings.pass_headers.iter().filter_map(|name| name.parse().ok()).collect(),
            find_sender,
            sender_searches: Semaphore::new(MAX_SENDER_SEARCHES),
        };
        Ok(Self { listeners, shared: Arc::new(shared), connections: Arc::default() })
    }

    /// The addresses, gRPC's first: with port 0 configured, the ports that were given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Counters of requests.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.shared.traffic)
    }

    /// Serves until `shutdown`, then lets the requests in progress end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| {
                let (shared, connections) = (Arc::clone(&self.shared), Arc::clone(&self.connections));
                tokio::spawn(accept(listener, shared, connections, stopped.clone()))
            })
            .collect();
        shutdown.await;
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        // Without a connection there is no receiver of this.
        stop.send_replace(true);
        if tokio::time::timeout(DRAIN_TIMEOUT, self.connections.ended()).await.is_err() {
            tracing::warn!(
                event = "receiver_drain_timeout",
                timeout = ?DRAIN_TIMEOUT,
                "requests of applications were still in progress; closing their connections"
            );
        }
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    stopped: watch::Receiver<bool>,
) {
    /// Without descriptors or memory an immediate retry fails as well.
    const RETRY_INTERVAL: Duration = Duration::from_millis(100);
    let throttle = LogThrottle::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(suppressed) = throttle.due("accept_failed", std::time::Instant::now()) {
                    tracing::warn!(event = "accept_failed", %error, suppressed, "cannot accept an OTLP connection");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        let Some((connection, guard)) = connections.add(peer, local).await else { return };
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        let window = (WINDOW_BUDGET / connections.count().max(1)).clamp(MIN_WINDOW, MAX_WINDOW);
        tokio::spawn(async move {
            serve(stream, &connection, shared, stopped, window).await;
            drop(guard);
        });
    }
}

async fn serve(
    stream: TcpStream,
    connection: &Arc<Connection>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    window: u32,
) {
    let peer = connection.peer;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(event = "nodelay_failed", %peer, %error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, connection) = (Arc::clone(&shared), Arc::clone(connection));
        async move {
            let _in_progress = connection.begin_request();
            handler::answer(&shared, &connection, request).await
        }
    });
    let builder = http(window);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(FrameLimited::new(stream)), service));
    let mut ending = false;
    let mut end = connection.idle_deadline();
    loop {
        tokio::select! {
            result = &mut serving => {
                if let Err(error) = result {
                    tracing::debug!(event = "connection_ended", %peer, %error, "an OTLP connection ended");
                }
                return;
            }
            () = tokio::time::sleep_until(end) => {
                if ending {
                    return;
                }
                let deadline = connection.idle_deadline();
                if connection.is_busy() || deadline > Instant::now() {
                    end = deadline.max(Instant::now() + FIRST_REQUEST_TIMEOUT);
                    continue;
                }
                // Without a request it may be in the middle of its headers, for which hyper would wait.
                if connection.is_new() {
                    return;
                }
                (ending, end) = (true, Instant::now() + DRAIN_TIMEOUT);
                serving.as_mut().graceful_shutdown();
            }
            () = connection.displaced(), if !ending => {
                if connection.is_new() {
                    return;
                }
                (ending, end) = (true, Instant::now() + DISPLACE_TIMEOUT);
                serving.as_mut().graceful_shutdown();
            }
            changed = stopped.changed(), if !ending => {
                if changed.is_err() || *stopped.borrow() {
                    (ending, end) = (true, Instant::now() + DRAIN_TIMEOUT);
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn http(window: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .initial_stream_window_size((window / 4).max(64 << 10))
        .initial_connection_window_size(window)
        .max_frame_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(60));
    builder
}

impl Connection {
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
