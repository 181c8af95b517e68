//! The OTLP client: sends one request, given as bytes, and returns the backend's response.
//!
//! The export queue and the receivers share it. Both have encoded bytes: batches that are compressed once and may be
//! sent several times, and requests of applications, which are forwarded byte for byte. A tonic codec would decompress
//! and compress each of them again, so gRPC is spoken on hyper directly (one length prefix and three trailers). The
//! client neither queues nor retries ([`crate::export`]), nor classifies responses ([`crate::export::retry`]).

use std::{
    io::Read,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::{
    client::{
        legacy::{self, connect::capture_connection},
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};

use crate::{
    config::{
        endpoint::{Endpoint, EndpointError},
        settings::{Compression, Destination, Protocol},
    },
    model::signal::Signal,
    otlp::{
        connect::{Connector, chain},
        payload::{Format, Payload},
        request::{ChunkedBody, GRPC_PREFIX},
        response::{Answer, BODY_LIMIT, GrpcStatus},
        tls::{self, TlsConfig, TlsError},
    },
};

pub use crate::otlp::request::PreparedRequest;

/// `User-Agent` of the collector's own requests.
pub const USER_AGENT: &str = concat!("reset-collector/", env!("CARGO_PKG_VERSION"));

/// Maximum response size of an export; a longer response aborts the connection.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Maximum response size that is returned to an application. A partial success has a few hundred bytes.
pub const MAX_FORWARDED_ANSWER_BYTES: usize = 4 << 20;
/// Idle connections that are kept for forwarded requests.
const FORWARD_MAX_IDLE: usize = 16;
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Bodies from this size on are compressed on a blocking thread.
const LARGE_BODY: usize = 64 << 10;
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);

/// A destination that cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is not an address.
    #[error("endpoint `{endpoint}` {why}")]
    Endpoint {
        /// As configured, without a password.
        endpoint: String,
        /// What is wrong, and what helps.
        why: EndpointError,
    },
    /// A header's name or value cannot stand in a request.
    #[error("header `{name}`: {why}")]
    Header {
        /// The header's name; its value is a secret.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A request without an answer. All of these may pass: a later try may go through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection: the request was not sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// No whole answer in time: the backend may have the request.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke, or what came is no HTTP: the backend may have the request.
    #[error("{0}")]
    Broken(String),
}

/// A backend's whole response, for the application that sent the request.
#[derive(Clone, Debug)]
pub struct BackendResponse {
    /// The HTTP status, of gRPC as well.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, with gRPC's prefix if it has one.
    pub body: Bytes,
    /// The trailers, which carry gRPC's status.
    pub trailers: Option<HeaderMap>,
}

/// Sends requests to one destination. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    routes: Vec<Route>,
    protocol: Protocol,
    compression: Compression,
    headers: HeaderMap,
    timeout: Duration,
    answered: AtomicBool,
}

struct Route {
    signal: Signal,
    uri: Uri,
    http: legacy::Client<Connector, ChunkedBody>,
    proxy_authorization: Option<HeaderValue>,
}

impl Client {
    /// A client of this destination for the collector's own requests. Must be called inside of a tokio runtime;
    /// connects at the first request.
    pub fn new(destination: &Destination) -> Result<Self, ClientError> {
        Self::with_pool(destination, destination.queue.consumers.max(1))
    }

    /// A client of this destination for requests of applications ([`Self::forward`]), with connections of its own.
    pub fn for_forwarding(destination: &Destination) -> Result<Self, ClientError> {
        Self::with_pool(destination, FORWARD_MAX_IDLE)
    }

    fn with_pool(destination: &Destination, max_idle: usize) -> Result<Self, ClientError> {
        let headers = headers(destination)?;
        let shared = Shared {
            routes: routes(destination, max_idle)?,
            protocol: destination.protocol,
            compression: destination.compression,
            headers,
            timeout: destination.timeout,
            answered: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The protocol of the destination.
    pub fn protocol(&self) -> Protocol {
        self.shared.protocol
    }

    /// Sends a request message of this signal and returns what the backend answered, whatever it is.
    pub async fn send(&self, signal: Signal, message: Bytes) -> Result<Answer, SendError> {
        let prepared = self.prepare(signal, message).await;
        self.send_prepared(&prepared).await
    }

    /// Compresses and frames a request message once, for [`Self::send_prepared`].
    pub async fn prepare(&self, signal: Signal, message: Bytes) -> PreparedRequest {
        let (protocol, compression) = (self.shared.protocol, self.shared.compression);
        if compression == Compression::None || message.len() < LARGE_BODY {
            return PreparedRequest::new(signal, protocol, compression, message);
        }
        let copy = message.clone();
        let compressing =
            tokio::task::spawn_blocking(move || PreparedRequest::new(signal, protocol, compression, copy));
        // The runtime cancels blocking work only at its own end; then it is done here.
        compressing.await.unwrap_or_else(|_| PreparedRequest::new(signal, protocol, compression, message))
    }

    /// Sends a prepared request.
    pub async fn send_prepared(&self, prepared: &PreparedRequest) -> Result<Answer, SendError> {
        let route = self.shared.route(prepared.signal)?;
        let request = self.shared.export_request(route, prepared);
        self.exchange(route, request, |response| read_answer(response, self.shared.protocol)).await
    }

    /// Forwards a request of an application once and returns the backend's response unchanged. `headers` are the
    /// application's; those of the destination replace them. A gRPC backend takes protobuf only.
    pub async fn forward(
        &self,
        signal: Signal,
        headers: HeaderMap,
        payload: &Payload,
    ) -> Result<BackendResponse, SendError> {
        let route = self.shared.route(signal)?;
        let request = self.shared.forwarded_request(route, headers, payload);
        self.exchange(route, request, read_response).await
    }

    async fn exchange<T, F: Future<Output = Result<T, SendError>>>(
        &self,
        route: &Route,
        mut request: Request<ChunkedBody>,
        read: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T, SendError> {
        let shared = &*self.shared;
        let connection = capture_connection(&mut request);
        let exchange = async {
            let response = route.http.request(request).await.map_err(|error| {
                send_error(&error, shared.protocol, &route.uri, shared.answered.load(Ordering::Relaxed))
            })?;
            shared.answered.store(true, Ordering::Relaxed);
            read(response).await
        };
        match tokio::time::timeout(shared.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                // A connection without an answer may be dead: the next request takes a new one.
                if let Some(connected) = connection.connection_metadata().as_ref() {
                    connected.poison();
                }
                Err(SendError::Timeout(shared.timeout))
            }
        }
    }
}

impl SendError {
    /// The request cannot have reached the backend.
    pub fn never_sent(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

impl Shared {
    fn route(&self, signal: Signal) -> Result<&Route, SendError> {
        let route = self.routes.iter().find(|route| route.signal == signal);
        route.ok_or_else(|| SendError::Connect("no endpoint for this signal".into()))
    }

    fn export_request(&self, route: &Route, prepared: &PreparedRequest) -> Request<ChunkedBody> {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if self.protocol == Protocol::Grpc {
            headers.insert("grpc-timeout", grpc_timeout(self.timeout));
        }
        let encoding = prepared.encoding.map(HeaderValue::from_static);
        self.request(route, headers, prepared.body.clone(), Format::Protobuf, encoding)
    }

    fn forwarded_request(&self, route: &Route, headers: HeaderMap, payload: &Payload) -> Request<ChunkedBody> {
        let encoding = payload.encoding.name();
        let body = ChunkedBody::of_payload(payload, self.protocol);
        self.request(route, headers, body, payload.format, encoding)
    }

    /// A request with these headers, replaced by those that the body and the destination ask for.
    fn request(
        &self,
        route: &Route,
        mut headers: HeaderMap,
        body: ChunkedBody,
        format: Format,
        encoding: Option<HeaderValue>,
    ) -> Request<ChunkedBody> {
        let (content_type, encoding_header) = match (self.protocol, format) {
            (Protocol::Grpc, _) => ("application/grpc", GRPC_ENCODING),
            (Protocol::HttpProtobuf, Format::Protobuf) => ("application/x-protobuf", header::CONTENT_ENCODING),
            (Protocol::HttpProtobuf, Format::Json) => ("application/json", header::CONTENT_ENCODING),
        };
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if self.protocol == Protocol::Grpc {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some(encoding) = encoding {
            headers.insert(encoding_header, encoding);
        }
        if let Some(authorization) = &route.proxy_authorization {
            headers.insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        let mut request = Request::new(body);
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = route.uri.clone();
        *request.headers_mut() = headers;
        request
    }
}

async fn read_response(response: Response<Incoming>) -> Result<BackendResponse, SendError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_FORWARDED_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| SendError::Broken(format!("the response broke off: {}", chain(&*error))))?;
    let trailers = body.trailers().cloned();
    Ok(BackendResponse { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
}

/// Eight digits (gRPC, PROTOCOL-HTTP2).
fn grpc_timeout(timeout: Duration) -> HeaderValue {
    const MAX_DIGITS: u128 = 99_999_999;
    let text = match timeout.as_millis() {
        milliseconds @ ..=MAX_DIGITS => format!("{milliseconds}m"),
        milliseconds => format!("{}S", (milliseconds / 1000).min(MAX_DIGITS)),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("10S"))
}

async fn read_answer(response: Response<Incoming>, protocol: Protocol) -> Result<Answer, SendError> {
    let (head, mut incoming) = response.into_parts();
    let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    let mut answer = Answer {
        http_status: head.status.as_u16(),
        asked_by_grpc: protocol == Protocol::Grpc,
        content_type: text(header::CONTENT_TYPE),
        retry_after: text(header::RETRY_AFTER),
        location: text(header::LOCATION),
        ..Answer::default()
    };
    let (mut kept, mut length) = (BytesMut::new(), 0);
    let mut trailers = None;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| broken_off(answer.http_status, &error))?;
        match frame.into_data() {
            Ok(data) => {
                length += data.len();
                kept.put_slice(&data[..data.len().min(BODY_LIMIT - kept.len())]);
                answer.truncated = length > BODY_LIMIT;
                if length > MAX_ANSWER_BYTES {
                    break;
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok().or(trailers),
        }
    }
    answer.body = kept.freeze();
    if protocol == Protocol::Grpc {
        answer.grpc =
            trailers.as_ref().and_then(GrpcStatus::from_headers).or_else(|| GrpcStatus::from_headers(&head.headers));
        // Without the prefix; a body that is no gRPC frame stays as it is, for the explanation.
        if answer.grpc.is_some() && answer.body.len() >= GRPC_PREFIX {
            let compressed = answer.body.first() == Some(&1);
            answer.body = answer.body.slice(GRPC_PREFIX..);
            if compressed && let Some(opened) = decompress(text(GRPC_ENCODING).as_deref(), &answer.body) {
                answer.body = opened;
            }
        }
    }
    Ok(answer)
}

fn broken_off(http_status: u16, error: &hyper::Error) -> SendError {
    // Go's servers with TLS say so to plain HTTP, and close before it is read.
    let hint = if http_status == 400 { "; take https:// if the endpoint wants TLS" } else { "" };
    SendError::Broken(format!("the answer (HTTP {http_status}) broke off: {}{hint}", chain(error)))
}

/// An answer's message as it was before the server compressed it: grpc-go answers in the encoding of the request.
fn decompress(encoding: Option<&str>, message: &[u8]) -> Option<Bytes> {
    let mut opened = Vec::new();
    let limit = BODY_LIMIT as u64;
    let read = match encoding? {
        "gzip" => flate2::read::MultiGzDecoder::new(message).take(limit).read_to_end(&mut opened),
        "zstd" => zstd::Decoder::new(message).and_then(|decoder| decoder.take(limit).read_to_end(&mut opened)),
        _ => return None,
    };
    read.ok().map(|_| opened.into())
}

/// `answered`: this destination has answered before, so that it is what it should be.
fn send_error(error: &legacy::Error, protocol: Protocol, uri: &Uri, answered: bool) -> SendError {
    let text = chain(error);
    if error.is_connect() {
        return SendError::Connect(text.trim_start_matches("client error (Connect): ").to_owned());
    }
    let secure = uri.scheme_str() == Some("https");
    let hint = match (tls::late_refusal_hint(&text), protocol) {
        (Some(refused), _) => refused,
        _ if answered => "",
        // A server that wants another certificate of us may close before its refusal is read.
        (None, Protocol::Grpc) if secure => {
            "; does the server want tls.cert_file and tls.key_file, or others? or is it no gRPC server: set protocol: \
             http/protobuf, or take the backend's gRPC port (4317)"
        }
        (None, Protocol::HttpProtobuf) if secure => {
            "; does the server want tls.cert_file and tls.key_file, or others? or is it no OTLP/HTTP server: set \
             protocol: grpc, or take the backend's HTTP port (4318)"
        }
        (None, Protocol::Grpc) => {
            "; no gRPC server at this endpoint? set protocol: http/protobuf, take the backend's gRPC port (4317), \
             or https:// if it wants TLS"
        }
        (None, Protocol::HttpProtobuf) => {
            "; no OTLP/HTTP server at this endpoint? set protocol: grpc, take the backend's HTTP port (4318), \
             or https:// if it wants TLS"
        }
    };
    SendError::Broken(format!("the connection broke: {text}{hint}"))
}

fn headers(destination: &Destination) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &destination.headers {
        let wrong = |why| ClientError::Header { name: name.clone(), why };
        let key = HeaderName::from_str(name).map_err(|_| wrong("invalid header name"))?;
        let mut value = HeaderValue::from_str(&value.0)
            .map_err(|_| wrong("the value has a control character, perhaps a line end"))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

fn routes(destination: &Destination, max_idle: usize) -> Result<Vec<Route>, ClientError> {
    let grpc = destination.protocol == Protocol::Grpc;
    let own = &destination.signal_endpoints;
    let endpoints = [(Signal::Logs, &own.logs), (Signal::Traces, &own.traces), (Signal::Metrics, &own.metrics)];
    let endpoints = endpoints.map(|(signal, own)| match own {
        Some(endpoint) => (signal, endpoint.as_str(), if grpc { signal.grpc_path() } else { "" }),
        None if grpc => (signal, destination.endpoint.as_str(), signal.grpc_path()),
        None => (signal, destination.endpoint.as_str(), signal.http_path()),
    });
    let tls = match endpoints.iter().any(|(_, endpoint, _)| endpoint.starts_with("https://")) {
        true => Some(Arc::new(TlsConfig::new(&destination.tls, if grpc { &["h2"] } else { &["h2", "http/1.1"] })?)),
        false => None,
    };
    let connector = Connector::tcp(tls, Some(Arc::new(Matcher::from_env())), grpc);
    let over_tcp = pool(connector.clone(), destination, max_idle);
    let mut routes = Vec::new();
    for (signal, endpoint, path) in endpoints {
        let wrong = |why| ClientError::Endpoint { endpoint: redacted(endpoint), why };
        let address = Endpoint::parse(endpoint).map_err(wrong)?;
        let uri = address.join(path).map_err(wrong)?;
        let http = match address {
            Endpoint::Tcp(_) => over_tcp.clone(),
            Endpoint::Unix(socket) => pool(Connector::unix(socket), destination, max_idle),
        };
        let proxy_authorization = connector.forward_authorization(&uri);
        routes.push(Route { signal, uri, http, proxy_authorization });
    }
    Ok(routes)
}

fn pool(connector: Connector, destination: &Destination, max_idle: usize) -> legacy::Client<Connector, ChunkedBody> {
    legacy::Client::builder(TokioExecutor::new())
        .http2_only(destination.protocol == Protocol::Grpc)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(max_idle)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
        .build(connector)
}

/// An endpoint as it may be printed: without a user and password, even where it is malformed.
pub(crate) fn redacted(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").map_or(("", endpoint), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@').filter(|_| scheme != "unix") {
        Some((_, host)) if scheme.is_empty() => format!("…@{host}"),
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => endpoint.to_owned(),
    }
}
