//! A scripted OTLP backend on loopback: answers gRPC and HTTP as scripted and records what it receives.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Read,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{HeaderMap, Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    /// Which of the backend's connections it came on, from 0.
    pub(crate) connection: usize,
    pub(crate) headers: HeaderMap,
    /// Without gRPC's prefix, decompressed.
    pub(crate) message: Bytes,
}

/// What the backend answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A gRPC status in the trailers; code 0 with this message body.
    Grpc { code: u32, headers: Vec<(&'static str, String)>, body: Bytes },
    /// By HTTP.
    Http { status: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// After a while, the other one.
    Late(Duration, Box<Reply>),
    /// Never.
    Hang,
    /// The connection (by HTTP/2 the stream) breaks.
    Abort,
}

impl Reply {
    pub(crate) fn grpc(code: u32) -> Self {
        Self::Grpc { code, headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn http(status: u16) -> Self {
        Self::Http { status, headers: Vec::new(), body: Bytes::new() }
    }
}

/// Decides what a request is answered, by its number from 0.
type Script = Arc<dyn Fn(usize, &Received) -> Reply + Send + Sync>;

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Answers each request by this rule.
    pub(crate) async fn with(script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0", None, script).await
    }

    /// Answers with these in order, then with the last for ever.
    pub(crate) async fn answering(replies: Vec<Reply>) -> Self {
        let replies = Mutex::new(VecDeque::from(replies));
        Self::with(move |_, _| {
            let mut replies = replies.lock().unwrap();
            if replies.len() > 1 { replies.pop_front().unwrap() } else { replies[0].clone() }
        })
        .await
    }

    /// On this address, with TLS where given.
    pub(crate) async fn on(
        address: &str,
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(listener, tls, received.clone(), Arc::new(script)));
        Self { address, received, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    received: Arc<Mutex<Vec<Received>>>,
    script: Script,
) {
    let mut connections = tokio::task::JoinSet::new();
    for connection in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        let (received, script, tls) = (received.clone(), script.clone(), tls.clone());
        connections.spawn(async move {
            let service = service_fn(|request| answer(connection, request, received.clone(), script.clone()));
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is no failure of the backend.
            let _ended = match tls {
                None => builder.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                    Ok(stream) => builder.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => return,
                },
            };
        });
    }
}

async fn answer(
    connection: usize,
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<Received>>>,
    script: Script,
) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let request = Received {
        path: head.uri.path().into(),
        connection,
        message: unpack(&head.headers, body),
        headers: head.headers,
    };
    let mut reply = {
        let mut received = received.lock().unwrap();
        let reply = script(received.len(), &request);
        received.push(request);
        reply
    };
    loop {
        match reply {
            Reply::Hang => std::future::pending().await,
            Reply::Abort => return Err(std::io::Error::other("aborted as the script says")),
            Reply::Late(wait, next) => {
                tokio::time::sleep(wait).await;
                reply = *next;
            }
            Reply::Http { status, headers, body } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                return Ok(response.body(Full::new(body).boxed()).unwrap());
            }
            Reply::Grpc { code, headers, body } => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.into());
                for (name, value) in headers {
                    trailers.insert(name, value.parse().unwrap());
                }
                let mut framed = vec![0];
                framed.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
                framed.extend(body);
                let body = Full::new(if code == 0 { framed.into() } else { Bytes::new() });
                let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
                let response = Response::builder().header("content-type", "application/grpc");
                return Ok(response.body(body.boxed()).unwrap());
            }
        }
    }
}

fn unpack(headers: &HeaderMap, body: Bytes) -> Bytes {
    let grpc = headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let (encoding, packed) = match grpc {
        true => (headers.get("grpc-encoding").filter(|_| body[0] == 1), body.slice(5..)),
        false => (headers.get("content-encoding"), body),
    };
    match encoding.map(|encoding| encoding.to_str().unwrap()) {
        None => packed,
        Some("gzip") => {
            let mut message = Vec::new();
            flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut message).unwrap();
            message.into()
        }
        Some("zstd") => zstd::stream::decode_all(&packed[..]).unwrap().into(),
        Some(other) => panic!("{other} is no encoding of ours"),
    }
}

/// A request with so many log records, each with a body of its own.
pub(crate) fn logs(first: u32, count: u32) -> Bytes {
    let record = |number: u32| LogRecord { severity_text: format!("record {number}"), ..LogRecord::default() };
    let scope_logs =
        vec![ScopeLogs { log_records: (first..first + count).map(record).collect(), ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec().into()
}

/// The numbers of the records in a request made by [`logs`].
pub(crate) fn numbers(message: &Bytes) -> Vec<u32> {
    let request = ExportLogsServiceRequest::decode(message.clone()).unwrap();
    let records = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs).flat_map(|s| &s.log_records);
    records.map(|record| record.severity_text.strip_prefix("record ").unwrap().parse().unwrap()).collect()
}
