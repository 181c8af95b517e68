//! The admin endpoint: `/healthz` (the collector works), `/readyz` (it sees every reset, or what is degraded) and `/metrics`.
//!
//! Clients may be hostile: headers, time and connections are bounded, bodies are never read. A new connection always gets
//! in, in place of an older one if need be, and the host's own clients (probes, `reset-collector health`) have places of
//! their own.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::{
    account::Snapshot,
    telemetry::{
        degraded::degraded,
        metrics::Sources,
        prometheus::{self, Format},
    },
};

/// Connections from other hosts.
const MAX_REMOTE: usize = 64;
/// Connections from this host.
const MAX_LOCAL: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// After a failed accept (mostly: no file descriptors left).
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("admin.endpoint {address}: {error}; choose a free address of this host")]
pub struct AdminError {
    address: SocketAddr,
    error: io::Error,
}

/// The admin endpoint, listening.
pub struct Admin {
    listener: TcpListener,
    sources: Arc<Sources>,
}

impl Admin {
    /// Listens.
    pub async fn bind(address: SocketAddr, sources: Arc<Sources>) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address).await.map_err(|error| AdminError { address, error })?;
        Ok(Self { listener, sources })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = self.accept() => {}
            () = shutdown => {}
        }
    }

    async fn accept(&self) {
        let (mut local, mut remote) = (Connections::new(MAX_LOCAL), Connections::new(MAX_REMOTE));
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let is_local =
                        stream.local_addr().is_ok_and(|own| own.ip() == peer.ip()) || peer.ip().is_loopback();
                    let connections = if is_local { &mut local } else { &mut remote };
                    connections.serve(stream, &self.sources);
                }
                Err(error) => {
                    tracing::debug!(event = "admin_accept_failed", %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_INTERVAL).await;
                }
            }
        }
    }
}

/// Open connections, the oldest first.
struct Connections {
    max: usize,
    open: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

impl Connections {
    const fn new(max: usize) -> Self {
        Self { max, open: VecDeque::new() }
    }

    /// Serves a connection. Where there are too many, the oldest that has sent no request goes, else the oldest.
    fn serve(&mut self, stream: TcpStream, sources: &Arc<Sources>) {
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() >= self.max {
            let silent = self.open.iter().position(|(_, has_asked)| !has_asked.load(Ordering::Relaxed));
            if let Some((displaced, _)) = self.open.remove(silent.unwrap_or(0)) {
                displaced.abort();
            }
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(serve(stream, Arc::clone(sources), Arc::clone(&has_asked)));
        self.open.push_back((task.abort_handle(), has_asked));
    }
}

async fn serve(stream: TcpStream, sources: Arc<Sources>, has_asked: Arc<AtomicBool>) {
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        let sources = Arc::clone(&sources);
        async move { Ok::<_, Infallible>(respond(&request, &sources)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(event = "admin_connection_failed", %error, "a connection failed"),
    }
}

fn respond(request: &Request<Incoming>, sources: &Sources) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            with_type(StatusCode::OK, prometheus::render(sources, format), format.content_type())
        }
        "/healthz" => response(healthy(&sources.account.snapshot())),
        "/readyz" => response(ready(sources)),
        _ => text(StatusCode::NOT_FOUND, "available: /healthz, /readyz, /metrics\n".into()),
    }
}

/// The reader's loop turns, whether resets come or not.
fn healthy(snapshot: &Snapshot) -> Result<String, String> {
    match snapshot.stuck_for() {
        Some(age) => Err(format!("no heartbeat of the reader for {} s: restart the collector\n", age.as_secs())),
        None => Ok(format!("ok\n{}", report(snapshot))),
    }
}

/// Healthy, and every essential probe is attached: resets are seen. What is degraded beside that is named.
fn ready(sources: &Sources) -> Result<String, String> {
    let snapshot = sources.account.snapshot();
    healthy(&snapshot)?;
    if snapshot.heartbeat_age.is_none() || snapshot.hooks.is_empty() {
        return Err("starting: the probes are not attached yet\n".into());
    }
    let reasons = degraded(sources, &snapshot);
    let mut page = if reasons.is_empty() { "ok\n".to_owned() } else { "degraded\n".to_owned() };
    reasons.iter().for_each(|reason| line(&mut page, format_args!("degraded: {}\n", reason.text)));
    page += &report(&snapshot);
    let is_blind = snapshot.hooks.iter().any(|hook| hook.essential && !hook.active);
    if is_blind { Err(page) } else { Ok(page) }
}

/// What is captured and where it goes, a line each.
fn report(snapshot: &Snapshot) -> String {
    let mut lines = format!("captured {} resets\n", snapshot.captured);
    for hook in &snapshot.hooks {
        let state = if hook.active { "attached" } else { "not attached: " };
        line(&mut lines, format_args!("probe {}: {state}{}\n", hook.hook, if hook.active { "" } else { &hook.why }));
    }
    for queue in &snapshot.queues {
        let (destination, signal) = (&queue.destination, queue.signal.word());
        let (exported, queued) = (queue.exported, queue.queued);
        line(&mut lines, format_args!("{signal} to {destination}: {exported} exported, {queued} queued\n"));
    }
    lines
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    text.write_fmt(line).unwrap_or_default();
}

fn response(page: Result<String, String>) -> Response<Full<Bytes>> {
    match page {
        Ok(page) => text(StatusCode::OK, page),
        Err(page) => text(StatusCode::SERVICE_UNAVAILABLE, page),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    with_type(status, body, "text/plain; charset=utf-8")
}

fn with_type(status: StatusCode, body: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
