//! The admin endpoint: `/healthz`, `/readyz`, `/metrics`. A quiet host and a broken collector can be told apart here.
//!
//! Clients may be hostile: headers, time and connections are bounded, bodies are never read.

use std::{convert::Infallible, fmt::Write, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{
    account::{Account, Snapshot},
    telemetry::prometheus::{self, Format},
};

const CONNECTIONS: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(60);
const HEADER_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// After a failed accept (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    account: Arc<Account>,
}

impl Admin {
    /// Listens.
    pub async fn bind(address: SocketAddr, account: Arc<Account>) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address).await.map_err(|error| AdminError { address, error })?;
        Ok(Self { listener, account })
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
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let account = self.account.clone();
                    tokio::spawn(async move {
                        serve(stream, account).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!("admin endpoint: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, account: Arc<Account>) {
    let service = service_fn(move |request| {
        let account = account.clone();
        async move { Ok::<_, Infallible>(answer(&request, &account)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!("admin endpoint: {error}"),
    }
}

fn answer(request: &Request<Incoming>, account: &Account) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            let page = prometheus::render(&account.snapshot(), &account.exemplars, resident_bytes(), format);
            with_type(StatusCode::OK, page, format.content_type())
        }
        "/healthz" => judged(healthy(&account.snapshot())),
        "/readyz" => judged(ready(&account.snapshot())),
        _ => text(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n".into()),
    }
}

/// Alive: the pipeline's loop turns, whether resets come or not.
fn healthy(snapshot: &Snapshot) -> Result<String, String> {
    match snapshot.stuck_for() {
        Some(silence) => {
            Err(format!("the pipeline has given no sign of life for {} s: restart the collector\n", silence.as_secs()))
        }
        None => Ok(report(snapshot)),
    }
}

/// Sees resets: alive, and every essential hook is attached.
fn ready(snapshot: &Snapshot) -> Result<String, String> {
    healthy(snapshot)?;
    if snapshot.since_beat.is_none() || snapshot.hooks.is_empty() {
        return Err("starting: the probes are not attached yet\n".into());
    }
    let missing = snapshot.hooks.iter().any(|hook| hook.essential && !hook.active);
    if missing { Err(report(snapshot)) } else { Ok(report(snapshot)) }
}

/// What is seen and where it goes, a line each.
fn report(snapshot: &Snapshot) -> String {
    let mut lines = format!("captured {} resets\n", snapshot.captured);
    for hook in &snapshot.hooks {
        let state = if hook.active { "attached" } else { "not attached: " };
        line(&mut lines, format_args!("hook {}: {state}{}\n", hook.hook, if hook.active { "" } else { &hook.why }));
    }
    for lane in &snapshot.lanes {
        let (destination, signal, health) = (&lane.destination, lane.signal.word(), &lane.health);
        let away = health.last_error_unix_s.is_some() && health.last_error_unix_s > health.last_success_unix_s;
        let state = match (health.signal_disabled, away) {
            (true, _) => "not taken by the backend",
            (false, true) => "the last request failed",
            (false, false) => "well",
        };
        line(
            &mut lines,
            format_args!("{signal} to {destination}: {state}, {} exported, {} queued\n", lane.exported, lane.queued),
        );
    }
    lines
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    text.write_fmt(line).unwrap_or_default();
}

fn judged(judgement: Result<String, String>) -> Response<Full<Bytes>> {
    match judgement {
        Ok(body) => text(StatusCode::OK, format!("ok\n{body}")),
        Err(body) => text(StatusCode::SERVICE_UNAVAILABLE, body),
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

/// Second field of /proc/self/statm, in pages.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
