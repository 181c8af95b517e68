//! A connection to a backend: TCP or a Unix socket, straight or through a proxy, plain or TLS.
//!
//! Knows nothing of OTLP ([`crate::otlp::client`]); pooling and reconnecting are hyper-util's.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    header::HeaderValue,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use crate::otlp::tls::{self, TlsConfig};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// With proxy and TLS; a connection may be made beside the request that asked for it, which has its own timeout.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(15);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Unacknowledged data end a connection after this time, so that a network that parted is noticed.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes connections for hyper-util's pool.
#[derive(Clone)]
pub(crate) struct Connector {
    socket: Option<Arc<Path>>,
    tls: Option<Arc<TlsConfig>>,
    proxies: Option<Arc<Matcher>>,
    /// gRPC needs a tunnel through every proxy; plain HTTP requests go to the proxy itself.
    always_tunnel: bool,
}

impl Connector {
    /// To a host over TCP, `https://` with this TLS.
    pub(crate) fn tcp(tls: Option<Arc<TlsConfig>>, proxies: Option<Arc<Matcher>>, always_tunnel: bool) -> Self {
        Self { socket: None, tls, proxies, always_tunnel }
    }

    /// To a Unix socket.
    pub(crate) fn unix(socket: PathBuf) -> Self {
        Self { socket: Some(socket.into()), tls: None, proxies: None, always_tunnel: false }
    }

    /// `Proxy-Authorization` of requests to this address that go to a proxy itself.
    pub(crate) fn forward_authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let proxy = self.intercept(uri).filter(|_| self.forwards(uri))?;
        proxy.basic_auth().cloned()
    }

    fn forwards(&self, uri: &Uri) -> bool {
        !self.always_tunnel && uri.scheme_str() == Some("http")
    }

    fn intercept(&self, uri: &Uri) -> Option<Intercept> {
        // As Go's programs, the Collector among them: never a proxy to this host itself.
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        if host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback()) {
            return None;
        }
        let proxies = self.proxies.as_ref()?;
        if self.forwards(uri) {
            return proxies.intercept(uri);
        }
        // gRPC takes HTTPS_PROXY for http:// as well, as grpc-go does.
        let secure = Uri::builder().scheme("https").authority(uri.authority()?.clone()).path_and_query("/").build();
        proxies.intercept(&secure.ok()?)
    }

    async fn connect(self, uri: Uri) -> io::Result<Wire> {
        if let Some(path) = &self.socket {
            let stream = tokio::net::UnixStream::connect(path).await?;
            return Ok(Wire { stream: TokioIo::new(Box::pin(stream)), forwarded: false, http2: false });
        }
        let stream = match self.intercept(&uri) {
            None => tcp(tcp_connector(), uri.clone()).await?,
            Some(proxy) if self.forwards(&uri) => {
                let stream = tcp(tcp_connector(), proxy.uri().clone()).await.map_err(|error| via(&proxy, &error))?;
                return Ok(Wire { stream: TokioIo::new(Box::pin(stream)), forwarded: true, http2: false });
            }
            Some(proxy) => tunnel(&proxy, uri.clone()).await.map_err(|error| via(&proxy, &error))?,
        };
        match &self.tls {
            Some(tls) if uri.scheme_str() == Some("https") => {
                handshake(tls, uri.host().unwrap_or_default(), stream).await
            }
            _ => Ok(Wire { stream: TokioIo::new(Box::pin(stream)), forwarded: false, http2: false }),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "connection timed out");
            tokio::time::timeout(WHOLE_TIMEOUT, connecting).await.map_err(timed_out)?
        })
    }
}

fn tcp_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
    connector
}

async fn tcp(mut connector: HttpConnector, uri: Uri) -> io::Result<tokio::net::TcpStream> {
    let stream = connector.call(uri).await.map_err(|error| io::Error::other(chain(&error)))?;
    Ok(stream.into_inner())
}

async fn tunnel(proxy: &Intercept, uri: Uri) -> io::Result<tokio::net::TcpStream> {
    let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp_connector());
    if let Some(authorization) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(authorization.clone());
    }
    let stream = tunnel.call(uri).await.map_err(|error| io::Error::other(chain(&error)))?;
    Ok(stream.into_inner())
}

fn via(proxy: &Intercept, error: &io::Error) -> io::Error {
    // Only host and port: the proxy's address may carry a password.
    let authority = proxy
        .uri()
        .authority()
        .map_or_else(String::new, |authority| authority.as_str().rsplit('@').next().unwrap_or_default().to_owned());
    io::Error::other(format!("through the proxy {authority} (HTTP_PROXY, HTTPS_PROXY, NO_PROXY): {error}"))
}

async fn handshake(tls: &TlsConfig, host: &str, stream: tokio::net::TcpStream) -> io::Result<Wire> {
    let name = tls.server_name(host).map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(tls.current())
        .connect(name, stream)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}{}", tls::handshake_hint(&error))))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Wire { stream: TokioIo::new(Box::pin(stream)), forwarded: false, http2 })
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = error.source();
    }
    line
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

/// A connection, whatever it is made of.
pub(crate) struct Wire {
    stream: TokioIo<Pin<Box<dyn Stream>>>,
    forwarded: bool,
    http2: bool,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.forwarded);
        if self.http2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;

    /// A proxy that answers its first request with this; returns its address, and the request that it received.
    async fn proxy(answers: &'static str) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answers.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (address, asked)
    }

    fn through(proxy: &str, grpc: bool) -> Connector {
        let proxy = format!("http://user:hunter2@{proxy}");
        let proxies = Matcher::builder().http(proxy.clone()).https(proxy).no("spared.example").build();
        Connector::tcp(None, Some(Arc::new(proxies)), grpc)
    }

    #[tokio::test]
    async fn grpc_goes_through_a_tunnel() {
        let (address, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        let uri: Uri = "http://backend.example:4317/x".parse().unwrap();
        let connector = through(&address, true);
        assert_eq!(connector.forward_authorization(&uri), None);
        let wire = connector.connect(uri).await.unwrap();
        assert!(!wire.forwarded);
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("CONNECT backend.example:4317 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpodw50zxiy"), "{asked}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_without_its_password() {
        let (address, _asked) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        let uri = "http://backend.example:4317/x".parse().unwrap();
        let Err(error) = through(&address, true).connect(uri).await else { panic!("connected") };
        let error = error.to_string();
        assert!(error.contains(&format!("through the proxy {address}")) && !error.contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn plain_http_requests_go_to_the_proxy_itself() {
        let (address, _asked) = proxy("").await;
        let uri: Uri = "http://backend.example:4318/v1/logs".parse().unwrap();
        let connector = through(&address, false);
        assert!(connector.forward_authorization(&uri).is_some());
        assert!(connector.connect(uri).await.unwrap().forwarded);
    }

    #[test]
    fn some_hosts_are_never_reached_through_a_proxy() {
        for (host, proxied) in [
            ("backend.example", true),
            ("spared.example", false),
            ("localhost", false),
            ("127.8.9.1", false),
            ("[::1]", false),
        ] {
            for grpc in [true, false] {
                let uri = format!("http://{host}:4317/").parse().unwrap();
                assert_eq!(through("proxy.example:3128", grpc).intercept(&uri).is_some(), proxied, "{host}");
            }
        }
    }
}
