//! The way to the backend: one request goes on, its answer comes back as it is.
//!
//! Sends what it is given once: no queue, no second try; the application's SDK has both.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    header::{self, HeaderName, HeaderValue},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use crate::{
    config::settings::{Destination, Protocol},
    model::signal::Signal,
    otlp::payload::{Coding, Format, Payload},
};

/// Bytes of an answer at most: a partial success is some hundred.
pub(crate) const MOST_ANSWER_BYTES: usize = 4 << 20;
/// Connecting takes no longer; within the destination's timeout.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Where applications' telemetry goes on to.
#[derive(Debug)]
pub struct Backend {
    client: Client<HttpsConnector<HttpConnector>, Pieces>,
    protocol: Protocol,
    /// In the order of [`Signal::ALL`].
    endpoints: Vec<Uri>,
    headers: HeaderMap,
    timeout: Duration,
}

/// What the backend answered, as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP's status, by gRPC as well.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, with gRPC's prefix if it has one.
    pub body: Bytes,
    /// The trailers, where gRPC's status stands.
    pub trailers: Option<HeaderMap>,
}

/// Where applications' requests go on, by signal: logs, traces, metrics.
pub struct Backends([Arc<Backend>; 3]);

/// A destination that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not an address of a server.
    #[error("export.otlp endpoint {endpoint:?} is no URL of a server: {reason}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header that HTTP cannot carry.
    #[error("export.otlp header {0:?} has a name or value that HTTP cannot carry")]
    Header(String),
    /// No trusted certificates on this host.
    #[error("the system's certificate authorities cannot be read: {0}; set tls.ca_file")]
    Certificates(std::io::Error),
}

/// Why there is no answer: the application is told that the backend is away, and tries again.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// No connection, or it broke.
    #[error("the backend cannot be reached: {0}")]
    Unreachable(String),
    /// Nothing came in time.
    #[error("the backend did not answer within {0:?}")]
    TimedOut(Duration),
}

impl Backends {
    /// Where each signal goes.
    pub fn new(of_signal: impl Fn(Signal) -> Arc<Backend>) -> Self {
        Self([Signal::Logs, Signal::Traces, Signal::Metrics].map(of_signal))
    }

    /// Where a signal goes.
    pub fn of(&self, signal: Signal) -> &Backend {
        let [logs, traces, metrics] = &self.0;
        match signal {
            Signal::Logs => logs,
            Signal::Traces => traces,
            Signal::Metrics => metrics,
        }
    }
}

impl Backend {
    /// A backend at this destination. `tls` is used with `https://`; without it the system's authorities are trusted.
    pub fn new(destination: &Destination, tls: Option<rustls::ClientConfig>) -> Result<Self, BackendError> {
        let endpoints = Signal::ALL.iter().map(|signal| endpoint(destination, *signal));
        let builder = HttpsConnectorBuilder::new();
        let builder = match tls {
            Some(tls) => builder.with_tls_config(tls),
            None => builder.with_native_roots().map_err(BackendError::Certificates)?,
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIME));
        let grpc = destination.protocol == Protocol::Grpc;
        let builder = builder.https_or_http();
        let connector = if grpc {
            builder.enable_http2().wrap_connector(connector)
        } else {
            builder.enable_http1().wrap_connector(connector)
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(grpc)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_initial_stream_window_size(1 << 20)
            .http2_initial_connection_window_size(4 << 20)
            .build(connector);
        Ok(Self {
            client,
            protocol: destination.protocol,
            endpoints: endpoints.collect::<Result<_, _>>()?,
            headers: configured_headers(destination)?,
            timeout: destination.timeout,
        })
    }

    /// gRPC or HTTP.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Sends one request and waits for its answer. `headers` are the application's; those of the destination win.
    /// By gRPC the payload is protobuf.
    pub async fn send(&self, signal: Signal, headers: &HeaderMap, payload: &Payload) -> Result<Reply, Away> {
        let request = self.request(signal, headers, payload);
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
            read_reply(response).await
        };
        tokio::time::timeout(self.timeout, answer).await.map_err(|_| Away::TimedOut(self.timeout))?
    }

    fn request(&self, signal: Signal, headers: &HeaderMap, payload: &Payload) -> Request<Pieces> {
        let mut pieces: VecDeque<Bytes> = payload.chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect();
        let mut own = HeaderMap::new();
        let coding = match &payload.coding {
            Coding::Identity => None,
            Coding::Gzip => Some(HeaderValue::from_static("gzip")),
            Coding::Zstd => Some(HeaderValue::from_static("zstd")),
            Coding::Other(name) => Some(name.clone()),
        };
        let (content_type, coding_header) = match (self.protocol, payload.format) {
            (Protocol::Grpc, _) => {
                own.insert(header::TE, HeaderValue::from_static("trailers"));
                pieces.push_front(prefix(coding.is_some(), payload.len()));
                ("application/grpc", HeaderName::from_static("grpc-encoding"))
            }
            (Protocol::HttpProtobuf, Format::Protobuf) => ("application/x-protobuf", header::CONTENT_ENCODING),
            (Protocol::HttpProtobuf, Format::Json) => ("application/json", header::CONTENT_ENCODING),
        };
        own.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(coding) = coding {
            own.insert(coding_header, coding);
        }
        let mut request = Request::new(Pieces(pieces));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoints[signal as usize].clone();
        *request.headers_mut() = headers.clone();
        for (name, value) in own.iter().chain(&self.headers) {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        request
    }
}

/// gRPC's five bytes before a message: compressed or not, its length.
fn prefix(compressed: bool, length: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(5);
    prefix.put_u8(u8::from(compressed));
    // A request is far smaller than 4 GiB: `max_request_bytes` has been checked.
    prefix.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    prefix.freeze()
}

fn endpoint(destination: &Destination, signal: Signal) -> Result<Uri, BackendError> {
    let own = match signal {
        Signal::Logs => &destination.signal_endpoints.logs,
        Signal::Traces => &destination.signal_endpoints.traces,
        Signal::Metrics => &destination.signal_endpoints.metrics,
    };
    let base = own.as_ref().unwrap_or(&destination.endpoint);
    let failed = |reason: &str| BackendError::Endpoint { endpoint: base.clone(), reason: reason.into() };
    let uri: Uri = base.parse().map_err(|error: hyper::http::uri::InvalidUri| failed(&error.to_string()))?;
    let authority = uri.authority().ok_or_else(|| failed("no host"))?.clone();
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
    let scheme = scheme.ok_or_else(|| failed("it starts with neither http:// nor https://"))?;
    let path = match (destination.protocol, own) {
        (Protocol::Grpc, _) => signal.grpc_path().to_owned(),
        (Protocol::HttpProtobuf, Some(_)) => uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        (Protocol::HttpProtobuf, None) => uri.path().trim_end_matches('/').to_owned() + signal.http_path(),
    };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    uri.map_err(|error| failed(&error.to_string()))
}

fn configured_headers(destination: &Destination) -> Result<HeaderMap, BackendError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &destination.headers {
        let failed = || BackendError::Header(name.clone());
        let mut value = HeaderValue::from_str(&value.0).map_err(|_| failed())?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| failed())?, value);
    }
    Ok(headers)
}

async fn read_reply(response: hyper::Response<Incoming>) -> Result<Reply, Away> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| Away::Unreachable(format!("its answer broke off: {error}")))?;
    let trailers = body.trailers().cloned();
    Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
}

fn unreachable(error: &hyper_util::client::legacy::Error) -> Away {
    // The innermost error is the one that says what an operator can do.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Away::Unreachable(cause.to_string())
}

/// A body in the pieces in which it came.
#[derive(Debug)]
pub struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}
