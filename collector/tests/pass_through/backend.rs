//! A backend that records requests and answers as scripted; clients that speak OTLP to a receiver.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use reset_collector::{
    config::settings::{Correlation, Destination, Protocol, Secret, Tls},
    correlate::{Correlator, Sender},
    model::Owner,
    otlp::client::Client as OtlpClient,
    receiver::{Backends, FindSender, Receivers, metrics::Traffic},
};
use tokio::net::TcpListener;

/// What the backend got.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What the backend answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

type Script = Box<dyn Fn(usize, &Got) -> Option<Answer> + Send>;

#[derive(Clone)]
pub(crate) struct FakeBackend {
    pub(crate) address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
}

impl FakeBackend {
    /// Answers each request by the script: `None` is never.
    pub(crate) async fn start(script: impl Fn(usize, &Got) -> Option<Answer> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let backend = Self { address, got: Arc::clone(&got) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (got, script) = (Arc::clone(&got), Arc::clone(&script));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (got, script) = (Arc::clone(&got), Arc::clone(&script));
                    async move { serve(request, &got, &script).await }
                });
                tokio::spawn(async move {
                    let served =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                    drop(served);
                });
            }
        });
        backend
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().expect("not poisoned").clone()
    }

    pub(crate) fn last(&self) -> Got {
        self.got().pop().expect("a request")
    }
}

async fn serve(
    request: Request<Incoming>,
    got: &Mutex<Vec<Got>>,
    script: &Mutex<Script>,
) -> Result<Response<AnswerBody>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let request = Got { path: head.uri.path().into(), headers: head.headers, body };
    let answer = {
        let mut got = got.lock().expect("not poisoned");
        got.push(request.clone());
        script.lock().expect("not poisoned")(got.len() - 1, &request)
    };
    let Some(answer) = answer else { std::future::pending().await };
    let mut response = Response::new(AnswerBody(Some(answer.body).filter(|body| !body.is_empty()), answer.trailers));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

struct AnswerBody(Option<Bytes>, Option<HeaderMap>);

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(data) = self.0.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.1.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none() && self.1.is_none()
    }
}

impl Answer {
    pub(crate) fn http(status: u16, body: impl Into<Bytes>, headers: &[(&'static str, &'static str)]) -> Self {
        let status = StatusCode::from_u16(status).expect("a status");
        Self { status, headers: header_map(headers), body: body.into(), trailers: None }
    }

    pub(crate) fn grpc(message: &[u8], trailers: &[(&'static str, &'static str)]) -> Self {
        let headers = header_map(&[("content-type", "application/grpc")]);
        Self { headers, body: frame(0, message), trailers: Some(header_map(trailers)), ..Self::default() }
    }

    /// gRPC's errors come in headers alone.
    pub(crate) fn grpc_error(headers: &[(&'static str, &'static str)]) -> Self {
        let mut all = header_map(headers);
        all.insert("content-type", "application/grpc".parse().expect("a value"));
        Self { headers: all, ..Self::default() }
    }
}

pub(crate) fn header_map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
}

/// A gRPC message with its prefix.
pub(crate) fn frame(compressed: u8, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(compressed);
    frame.put_u32(u32::try_from(message.len()).expect("a length"));
    frame.extend_from_slice(message);
    frame.freeze()
}

/// A receiver before a backend.
pub(crate) struct Setup {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) correlator: Arc<Correlator>,
    pub(crate) traffic: Arc<Traffic>,
}

pub(crate) struct Options {
    pub(crate) protocol: Protocol,
    pub(crate) limit: Option<usize>,
    pub(crate) pass_headers: Vec<String>,
    pub(crate) tls: Option<Tls>,
    pub(crate) timeout: Duration,
    pub(crate) headers: Vec<(String, Secret)>,
    pub(crate) owner: Option<Owner>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protocol: Protocol::Grpc,
            limit: None,
            pass_headers: Vec::new(),
            tls: None,
            timeout: Duration::from_secs(5),
            headers: Vec::new(),
            owner: None,
        }
    }
}

impl Setup {
    pub(crate) async fn start(backend: SocketAddr, options: Options) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let settings = Correlation {
            grpc: Some(any),
            http: Some(any),
            span_wait: Duration::from_secs(2),
            max_request_bytes: options.limit,
            pass_headers: options.pass_headers,
            ..Correlation::default()
        };
        let endpoint = match options.tls {
            Some(_) => format!("https://localhost:{}", backend.port()),
            None => format!("http://{backend}"),
        };
        let destination = Destination {
            endpoint,
            tls: options.tls.unwrap_or_default(),
            protocol: options.protocol,
            headers: options.headers,
            timeout: options.timeout,
            ..Destination::default()
        };
        let correlator = Correlator::new(&settings, true);
        let sender = options.owner.map_or(Sender::Unattributed, Sender::Process);
        let find: FindSender = Arc::new(move |_, _| sender);
        let client = OtlpClient::for_forwarding(&destination).expect("a client");
        let backend = Backends::new(|_| client.clone());
        let receivers = Receivers::listen(&settings, backend, Arc::clone(&correlator), find).await.expect("ports");
        let addresses = receivers.addresses();
        let traffic = receivers.traffic();
        tokio::spawn(receivers.run(std::future::pending()));
        Self { grpc: addresses[0], http: addresses[1], correlator, traffic }
    }
}

/// What an application got back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Reply {
    /// From the trailers, or the headers of an answer without a body.
    pub(crate) fn grpc_status(&self) -> i32 {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        status.and_then(|status| status.to_str().ok()?.parse().ok()).expect("a gRPC status")
    }
}

pub(crate) async fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: Bytes,
    http2: bool,
) -> Reply {
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
    let mut request = Request::post(format!("http://{address}{path}")).body(Full::new(body)).expect("a request");
    request.headers_mut().extend(header_map(headers));
    let (head, body) = client.request(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("the answer's body");
    let trailers = body.trailers().cloned().unwrap_or_default();
    Reply { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers }
}

pub(crate) async fn grpc(setup: &Setup, path: &str, headers: &[(&'static str, &'static str)], body: Bytes) -> Reply {
    let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
    all.extend_from_slice(headers);
    post(setup.grpc, path, &all, body, true).await
}

pub(crate) async fn http(setup: &Setup, path: &str, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    post(setup.http, path, &[("content-type", content_type)], body.into(), false).await
}
