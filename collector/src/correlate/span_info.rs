//! What a span tells of its connection: read from its attributes as each SDK writes them, of every version of the
//! conventions.

use std::net::{IpAddr, SocketAddr};

use crate::{
    correlate::failure::{self, Failure},
    model::Endpoint,
    otlp::splice::{Malformed, Span, Value},
};

/// What a span tells of its connection.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanInfo {
    /// W3C trace id.
    pub trace_id: [u8; 16],
    /// W3C span id.
    pub span_id: [u8; 8],
    /// The parent's span id, zeros for a root.
    pub parent_span_id: [u8; 8],
    /// Start, ns since 1970.
    pub start_unix_ns: u64,
    /// End, ns since 1970; never before the start.
    pub end_unix_ns: u64,
    /// Which end of a connection it describes.
    pub side: SpanSide,
    /// The socket's other end, where the span has it.
    pub peer: Option<Endpoint>,
    /// What the span calls the server: of a client span the other end, of a server span this one.
    pub server: Server,
    /// How it failed.
    pub failure: Failure,
    /// Both ends of the connection, this one first, from the text of the failure.
    pub connection: Option<(Endpoint, Endpoint)>,
    /// Many such calls share one connection (gRPC).
    pub multiplexed: bool,
}

/// Which end of a connection a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanSide {
    /// SERVER
    Server,
    /// CLIENT and PRODUCER
    Client,
    /// INTERNAL and CONSUMER: no connection of its own.
    Neither,
}

/// The server as a span names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its name where that tells addresses apart.
    pub host: Host,
    /// Its port.
    pub port: Option<u16>,
}

/// A server's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// None, or one that has to be resolved.
    #[default]
    Any,
    /// `localhost`
    Loopback,
    /// An address.
    Address(IpAddr),
}

/// Reads a span; `None` where its ids or times are not valid.
pub fn read(span: &Span<'_>) -> Result<Option<SpanInfo>, Malformed> {
    const SERVER: u64 = 2;
    const CLIENT: u64 = 3;
    const PRODUCER: u64 = 4;
    let (Ok(trace_id), Ok(span_id)) = (<[u8; 16]>::try_from(span.trace_id), <[u8; 8]>::try_from(span.span_id)) else {
        return Ok(None);
    };
    if trace_id == [0; 16] || span_id == [0; 8] || span.end_unix_ns < span.start_unix_ns {
        return Ok(None);
    }
    let mut info = SpanInfo {
        trace_id,
        span_id,
        parent_span_id: span.parent_span_id.try_into().unwrap_or_default(),
        start_unix_ns: span.start_unix_ns,
        end_unix_ns: span.end_unix_ns,
        side: match span.kind {
            SERVER => SpanSide::Server,
            CLIENT | PRODUCER => SpanSide::Client,
            _ => SpanSide::Neither,
        },
        peer: None,
        server: Server::default(),
        failure: Failure::None,
        connection: None,
        multiplexed: false,
    };
    if info.side == SpanSide::Neither {
        return Ok(Some(info));
    }
    let mut attributes = Attributes::default();
    span.attributes(|key, value| attributes.take(key, value))?;
    (info.peer, info.server) =
        if info.side == SpanSide::Server { attributes.ends_of_server() } else { attributes.ends_of_client() };
    (info.failure, info.connection) = failure::read(span, &attributes.outcome)?;
    info.multiplexed = attributes.grpc;
    Ok(Some(info))
}

/// The attributes that matter, of the conventions since 1.4 (`net.*`, `http.url`) and the stable ones.
#[derive(Default)]
struct Attributes<'a> {
    network_peer: Named<'a>,
    socket_peer: Named<'a>,
    old_peer_ip: Option<&'a [u8]>,
    old_peer: Named<'a>,
    client: Named<'a>,
    server: Named<'a>,
    old_host_port: Option<u16>,
    url: Option<&'a [u8]>,
    grpc: bool,
    outcome: failure::Outcome<'a>,
}

/// An address or name, and a port.
#[derive(Clone, Copy, Default)]
struct Named<'a> {
    host: Option<&'a [u8]>,
    port: Option<u16>,
}

impl<'a> Attributes<'a> {
    fn take(&mut self, key: &[u8], value: Value<'a>) {
        match (key, value) {
            (b"network.peer.address", Value::Text(text)) => self.network_peer.host = Some(text),
            (b"network.peer.port", value) => self.network_peer.port = port(value),
            (b"net.sock.peer.addr", Value::Text(text)) => self.socket_peer.host = Some(text),
            (b"net.sock.peer.port", value) => self.socket_peer.port = port(value),
            (b"net.peer.ip", Value::Text(text)) => self.old_peer_ip = Some(text),
            (b"net.peer.name", Value::Text(text)) => self.old_peer.host = Some(text),
            (b"net.peer.port", value) => self.old_peer.port = port(value),
            (b"client.address", Value::Text(text)) => self.client.host = Some(text),
            (b"client.port", value) => self.client.port = port(value),
            (b"server.address", Value::Text(text)) => self.server.host = Some(text),
            (b"server.port", value) => self.server.port = port(value),
            (b"net.host.port", value) => self.old_host_port = port(value),
            (b"url.full" | b"http.url", Value::Text(text)) => self.url = Some(text),
            // `rpc.system` until 1.38, `rpc.system.name` since.
            (b"rpc.system" | b"rpc.system.name", Value::Text(text)) => self.grpc = text == b"grpc",
            (key, value) => self.outcome.take(key, value),
        }
    }

    /// `client.address` may come from X-Forwarded-For: it counts only in want of better, and with its port, which no
    /// such header brings.
    fn ends_of_server(&self) -> (Option<Endpoint>, Server) {
        let own = self.network_peer.host.or(self.socket_peer.host).or(self.old_peer_ip).is_some();
        let peer = if own { self.socket() } else { self.client.endpoint() };
        let port = self.old_host_port.or(self.server.port);
        (peer, Server { host: Host::Any, port })
    }

    fn ends_of_client(&self) -> (Option<Endpoint>, Server) {
        let of_url = self.url.map(host_and_port_of_url).unwrap_or_default();
        let host = self.server.host.or(of_url.host).or(self.old_peer.host).or(self.old_peer_ip);
        let port = self.server.port.or(of_url.port).or(self.old_peer.port);
        (self.socket(), Server { host: host.map(Host::read).unwrap_or_default(), port })
    }

    /// The socket's other end by the attributes that are about sockets.
    fn socket(&self) -> Option<Endpoint> {
        let of_socket = Named { port: self.socket_peer.port.or(self.old_peer.port), ..self.socket_peer };
        let old = Named { host: self.old_peer_ip, port: self.old_peer.port };
        [self.network_peer, of_socket, old].iter().find_map(Named::endpoint)
    }
}

impl Named<'_> {
    fn endpoint(&self) -> Option<Endpoint> {
        let address = address(self.host?)?;
        Some(Endpoint { address, port: self.port.filter(|port| *port != 0)? })
    }
}

impl Host {
    fn read(name: &[u8]) -> Self {
        if name.eq_ignore_ascii_case(b"localhost") {
            return Self::Loopback;
        }
        address(name).map_or(Self::Any, Self::Address)
    }
}

/// An address as spans write it: IPv6 perhaps in brackets; IPv4-mapped is IPv4.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text);
    let address: IpAddr = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

fn port(value: Value<'_>) -> Option<u16> {
    match value {
        Value::Integer(port) => u16::try_from(port).ok(),
        // Some SDKs write ports as text.
        Value::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
    }
}

/// Host and port of `scheme://user@host:port/…`, with the scheme's own port where none stands.
fn host_and_port_of_url(url: &[u8]) -> Named<'_> {
    let Some(at) = url.windows(3).position(|window| window == b"://") else { return Named::default() };
    let (scheme, rest) = (&url[..at], &url[at + 3..]);
    let authority = rest.split(|byte| matches!(byte, b'/' | b'?' | b'#')).next().unwrap_or_default();
    let authority = authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    let own_port = match scheme {
        b"http" | b"ws" => Some(80),
        b"https" | b"wss" => Some(443),
        _ => None,
    };
    let colon = authority.iter().rposition(|byte| *byte == b':');
    match colon.filter(|at| !authority[*at..].contains(&b']')) {
        Some(at) => Named { host: Some(&authority[..at]), port: port(Value::Text(&authority[at + 1..])) },
        None => Named { host: Some(authority), port: own_port },
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address: address.ip().to_canonical(), port: address.port() }
    }
}
