//! What a span tells of its connection, and whether it fits a reset: pure, with every rule in one place.
//!
//! A wrong trace is worse than none. A span is taken without a doubt only when it names the connection itself: its peer
//! address and port (server spans: the client's port is the connection's own), or both ends in the text of its error
//! (Go). All else must be shown by the span's own failure, near the reset:
//!
//! - A call that says "connection reset" or "refused" had a reset of its own, and every reset is seen: where only one
//!   came to its process from its server in its time, that one is the call's ([`Fit::Failed`]).
//! - A call that failed otherwise (the end of a stream, a timeout) may have had none. It counts only where the
//!   connection began and ended with it, and once every call that ended by then has passed ([`Fit::Likely`]); else it
//!   is one that may be meant ([`Fit::Suspect`]).
//!
//! Which spans there are is [`crate::correlate`]'s business.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    correlate::failure::{self, Failure},
    receive::splice::{Malformed, Span, Value},
    reset::{Cause, Direction, Endpoint, OwnerSource, Reset, State, Trace},
};

/// Server spans of Flask, FastAPI and Node end up to 3 ms before the reset of the request that they are about.
const LATE: Duration = Duration::from_millis(5);
/// Clocks of one host, read in two places.
const SKEW: Duration = Duration::from_millis(2);
/// A call fails this soon after the reset of its connection, on a machine that has much else to do; what fails later has
/// another reason.
const NEAR: Duration = Duration::from_secs(1);
/// The same for a call that does not say that it was reset: a connection may have ended otherwise.
const VERY_NEAR: Duration = Duration::from_millis(100);

/// A server that ends a request with its body unread sends the end of the stream first and closes later (Go: half a
/// second); a client that gave up resets when the answer comes.
const CLOSED: Duration = Duration::from_secs(1);

/// What a span tells of its connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
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
    pub role: Role,
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
pub enum Role {
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

/// How well a span fits a reset; each is stronger than those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It is not this span's reset, or nothing says so.
    No,
    /// A connection attempt in a call that went well: its own, if no other call could have made it.
    Attempt,
    /// The span failed at that time, and need not have had a reset at all: one that may be meant, never the one.
    Suspect,
    /// The same, and the connection began and ended with it, or (a server's call) lived when it began and was cancelled
    /// just after: its own, if no other span is even suspect.
    Likely,
    /// The span says that it was reset or refused, so that it had such a reset: its own, if no other says so.
    Failed,
    /// The very connection, just after the span's end, in a way that shows its request was open: its own, if no other
    /// span of the connection holds the reset.
    Late,
    /// The very connection, at a time within the span.
    Certain,
}

/// Whether a span could ever fit: not where nobody holds the connection, or where it lives on.
pub fn may_have_span(reset: &Reset) -> bool {
    let accepted = reset.owner.is_some_and(|owner| !matches!(owner.source, OwnerSource::None | OwnerSource::Listener));
    let connection =
        !matches!(reset.cause, Cause::PortClosed | Cause::ListenerClosed | Cause::AcceptQueueOverflow | Cause::Unowned);
    accepted && connection && !reset.not_accepted && reset.state != Some(State::Listen)
}

/// How well a span of the process that holds the connection fits its reset.
pub fn fit(seen: &Seen, reset: &Reset) -> Fit {
    if reset.not_accepted {
        return Fit::No;
    }
    if let Some(trace) = &reset.trace {
        return fit_of_context(seen, reset, trace);
    }
    // A server span may tell of a call that it made itself: that call's own span has the reset.
    let own = |(local, _): &(Endpoint, Endpoint)| seen.role == Role::Client || seen.server.port == Some(local.port);
    if let Some(connection) = seen.connection.filter(own) {
        let named = connection == (reset.local, reset.peer) && holds(seen, reset.time_unix_ns);
        return if named { Fit::Certain } else { Fit::No };
    }
    match (seen.role, seen.peer) {
        (Role::Neither, _) => Fit::No,
        (Role::Server, Some(peer)) if peer == reset.peer => fit_of_own_connection(seen, reset),
        (Role::Server, Some(_)) => Fit::No,
        (Role::Server, None) if seen.server.port.is_some_and(|port| port != reset.local.port) => Fit::No,
        (Role::Server, None) => fit_of_failure(seen, reset),
        (Role::Client, _) if !is_server(seen, reset) => Fit::No,
        (Role::Client, _) => fit_of_failure(seen, reset).max(fit_of_attempt(seen, reset)),
    }
}

/// How well a span fits a reset when nobody knows which process sent the span: only where the two ends are named.
pub fn fit_of_unknown_sender(seen: &Seen, reset: &Reset) -> Fit {
    let port = seen.role == Role::Server && seen.server.port == Some(reset.local.port);
    let named = port || seen.connection.is_some() || reset.trace.is_some();
    if named && fit(seen, reset) == Fit::Certain { Fit::Certain } else { Fit::No }
}

/// The context was read from the connection: the client's own span, or the parent of the server's.
fn fit_of_context(seen: &Seen, reset: &Reset, trace: &Trace) -> Fit {
    let differs = |port: Option<u16>, own: u16| port.is_some_and(|port| port != own);
    // One process may be both ends: what it served is no reset of its own call, nor the other way round.
    let found = seen.trace_id == trace.trace_id
        && trace.incoming == (seen.role == Role::Server)
        && if trace.incoming {
            trace.span_id == Some(seen.parent_span_id) && !differs(seen.peer.map(|peer| peer.port), reset.peer.port)
        } else {
            let port = if seen.role == Role::Client { seen.server.port } else { None };
            trace.span_id == Some(seen.span_id) && !differs(port, reset.peer.port)
        };
    if found { Fit::Certain } else { Fit::No }
}

/// A server span whose peer is the reset's: the connection is its own, only the time is to be judged.
fn fit_of_own_connection(seen: &Seen, reset: &Reset) -> Fit {
    let time = reset.time_unix_ns;
    // The same port, an earlier connection: a request is on one that has been established.
    let earlier = established(reset)
        .is_some_and(|established| established > seen.start_unix_ns.saturating_add(nanoseconds(SKEW)));
    if earlier || time < seen.start_unix_ns {
        return Fit::No;
    }
    if time <= seen.end_unix_ns {
        return Fit::Certain;
    }
    let after = time - seen.end_unix_ns;
    let sent = reset.direction == Direction::Transmit;
    let left_unread = sent && reset.cause == Cause::ClosedWithUnreadData;
    // Node's spans start at a whole millisecond, up to one early, and end as much too early.
    let coarse = seen.start_unix_ns.is_multiple_of(1_000_000) && after < 1_000_000;
    let cut_short = sent && coarse && reset.connection.unsent_bytes.is_some_and(|unsent| unsent > 0);
    // The answer to the last request that came had not begun.
    let asked = coarse && reset.connection.last_data == Some(Direction::Receive);
    let unanswered = reset.connection.bytes_sent == Some(0) && reset.connection.bytes_received.is_some_and(|n| n > 0);
    let unacked = reset.connection.unacked_bytes.is_some_and(|unacked| unacked > 0);
    // The client had left before the answer was written.
    let unwanted = !sent && reset.state == Some(State::CloseWait) && unacked;
    let open = left_unread || cut_short || asked || unanswered || unwanted || failure_fits(seen, reset);
    // With the end of the stream sent, no other request can have begun: the rest of this one's body lies there.
    let ended = matches!(reset.state, Some(State::FinWait1 | State::FinWait2));
    let rest_came = sent && ended && reset.cause == Cause::DataAfterClose;
    let late = match (left_unread, rest_came) {
        (true, _) if ended => CLOSED,
        (_, true) => VERY_NEAR,
        _ => LATE,
    };
    if after <= nanoseconds(late) && (open || rest_came) { Fit::Late } else { Fit::No }
}

/// A span that does not name its connection: its failure must be such as the reset makes, and at its time.
fn fit_of_failure(seen: &Seen, reset: &Reset) -> Fit {
    let near = match seen.failure {
        // A refused attempt may be tried again for long within one call.
        Failure::Refused => Duration::MAX,
        Failure::Reset => NEAR,
        _ => VERY_NEAR,
    };
    let near = u128::from(seen.end_unix_ns.saturating_sub(reset.time_unix_ns)) <= near.as_nanos();
    let in_time = holds(seen, reset.time_unix_ns) || seen.failure == Failure::GivenUp && has_left(seen, reset);
    if !(in_time && near && failure_fits(seen, reset)) {
        return Fit::No;
    }
    // A server's call may tell of a call that it made itself.
    if seen.role == Role::Client && matches!(seen.failure, Failure::Refused | Failure::Reset) {
        Fit::Failed
    } else if is_likely(seen, reset) {
        Fit::Likely
    } else {
        Fit::Suspect
    }
}

/// Whether more than the moment ties a failure that need not be a reset to the connection.
fn is_likely(seen: &Seen, reset: &Reset) -> bool {
    let established = established(reset);
    match seen.role {
        // The connection was made for this call, and reset while the call still sent: then the error is spent on a
        // write, and the read that follows meets the end of the stream. Or this end gave up and closed.
        Role::Client => {
            let began = |at| holds(seen, at) && at <= seen.start_unix_ns.saturating_add(nanoseconds(VERY_NEAR));
            let sending = [reset.connection.unsent_bytes, reset.connection.unacked_bytes];
            let broke = seen.failure == Failure::Broken && sending.iter().any(|bytes| bytes.is_some_and(|n| n > 0));
            let closed = seen.failure == Failure::GivenUp && reset.direction == Direction::Transmit;
            established.is_some_and(began) && (broke || closed)
        }
        Role::Server => {
            seen.failure == Failure::GivenUp
                && reset.direction == Direction::Receive
                && established
                    .is_none_or(|established| established <= seen.start_unix_ns.saturating_add(nanoseconds(SKEW)))
                && reset.time_unix_ns <= seen.end_unix_ns.saturating_add(nanoseconds(SKEW))
        }
        Role::Neither => false,
    }
}

/// When the connection was established, ns since 1970.
fn established(reset: &Reset) -> Option<u64> {
    reset.connection.duration_ns.map(|duration| reset.time_unix_ns.saturating_sub(duration))
}

/// Whether a span that has passed ended so long after the reset that every span which ended near the reset has been
/// exported before it: SDKs export spans in the order of their ends.
pub fn ends_long_after(seen: &Seen, reset: &Reset) -> bool {
    const BEYOND_ANY_RANGE: Duration = Duration::from_secs(3600);
    let after = seen.end_unix_ns.saturating_sub(reset.time_unix_ns);
    (2 * nanoseconds(VERY_NEAR)..nanoseconds(BEYOND_ANY_RANGE)).contains(&after)
}

/// Whether a call that went well may have left its answer half read, so that the reset could be its own as well as
/// that of a call which gave up: neither can be said to be the one.
pub fn may_have_left(seen: &Seen, reset: &Reset) -> bool {
    seen.role == Role::Client && seen.failure == Failure::None && is_server(seen, reset) && has_left(seen, reset)
}

/// The client closed, and the answer that came afterwards was reset: the call had ended.
fn has_left(seen: &Seen, reset: &Reset) -> bool {
    let after = reset.time_unix_ns.checked_sub(seen.end_unix_ns);
    seen.role == Role::Client
        && reset.cause == Cause::DataAfterClose
        && after.is_some_and(|after| after <= nanoseconds(CLOSED))
        && established(reset).is_some_and(|established| established <= seen.end_unix_ns)
}

/// `localhost` is tried at `::1` first: refused, and all is well at 127.0.0.1. That is at the call's beginning, and not
/// at the address that answered. Of any other name it is not known which addresses it has.
fn fit_of_attempt(seen: &Seen, reset: &Reset) -> Fit {
    let named = seen.server.port.is_some() && seen.server.host == Host::Loopback;
    let attempt = reset.cause == Cause::RefusedByPeer && seen.failure == Failure::None;
    let other = seen.peer.is_none_or(|peer| peer.address != reset.peer.address);
    let begins = reset.time_unix_ns.saturating_sub(seen.start_unix_ns) <= nanoseconds(VERY_NEAR);
    if named && attempt && other && begins && holds(seen, reset.time_unix_ns) { Fit::Attempt } else { Fit::No }
}

/// Whether a client span may have called the reset's other end.
fn is_server(seen: &Seen, reset: &Reset) -> bool {
    match seen.peer {
        Some(peer) if peer == reset.peer => return true,
        // The span names the address that worked in the end, not those that were refused before.
        Some(_) if reset.cause != Cause::RefusedByPeer => return false,
        _ => {}
    }
    let host = match seen.server.host {
        Host::Any => true,
        Host::Loopback => reset.peer.address.is_loopback(),
        Host::Address(address) => address == reset.peer.address,
    };
    host && seen.server.port.is_none_or(|port| port == reset.peer.port)
}

fn failure_fits(seen: &Seen, reset: &Reset) -> bool {
    let refused = reset.cause == Cause::RefusedByPeer;
    let timed_out = matches!(reset.cause, Cause::KeepaliveTimeout | Cause::UserTimeout | Cause::RetransmitTimeout);
    match seen.failure {
        Failure::None | Failure::Answered => false,
        Failure::Refused => refused,
        Failure::Reset => !refused && (seen.role == Role::Server || reset.direction == Direction::Receive),
        Failure::Broken => !refused,
        // A server's call is cancelled by the reset; a client gives up and resets.
        Failure::GivenUp => seen.role == Role::Server || reset.direction == Direction::Transmit || timed_out,
        Failure::Other => true,
    }
}

/// The time is the span's, but for the clocks.
fn holds(seen: &Seen, time: u64) -> bool {
    let earliest = seen.start_unix_ns.saturating_sub(nanoseconds(SKEW));
    let latest = seen.end_unix_ns.saturating_add(nanoseconds(LATE));
    (earliest..=latest).contains(&time)
}

const fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// Reads a span; `None` where its ids or times are not valid.
pub fn read(span: &Span<'_>) -> Result<Option<Seen>, Malformed> {
    const SERVER: u64 = 2;
    const CLIENT: u64 = 3;
    const PRODUCER: u64 = 4;
    let (Ok(trace_id), Ok(span_id)) = (<[u8; 16]>::try_from(span.trace_id), <[u8; 8]>::try_from(span.span_id)) else {
        return Ok(None);
    };
    if trace_id == [0; 16] || span_id == [0; 8] || span.end_unix_ns < span.start_unix_ns {
        return Ok(None);
    }
    let mut seen = Seen {
        trace_id,
        span_id,
        parent_span_id: span.parent_span_id.try_into().unwrap_or_default(),
        start_unix_ns: span.start_unix_ns,
        end_unix_ns: span.end_unix_ns,
        role: match span.kind {
            SERVER => Role::Server,
            CLIENT | PRODUCER => Role::Client,
            _ => Role::Neither,
        },
        peer: None,
        server: Server::default(),
        failure: Failure::None,
        connection: None,
        multiplexed: false,
    };
    if seen.role == Role::Neither {
        return Ok(Some(seen));
    }
    let mut attributes = Attributes::default();
    span.attributes(|key, value| attributes.take(key, value))?;
    (seen.peer, seen.server) =
        if seen.role == Role::Server { attributes.ends_of_server() } else { attributes.ends_of_client() };
    (seen.failure, seen.connection) = failure::read(span, &attributes.outcome)?;
    seen.multiplexed = attributes.grpc;
    Ok(Some(seen))
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
