//! The self-test: resets made on the loopback of a network namespace of its own must come out as they were made.
//!
//! It guards against kernel types that fit well enough to be loaded and are another kernel's all the same: without it
//! their records would be misread in silence.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    host::namespace::{self, Namespace},
    kernel::clock,
    kernel::{Kernel, vintage},
    model::{Cause, Decoder, Direction, Reset, State, read_record},
    procfs::has_foreign_pids,
};

/// Longest that the records may take: the kernel writes them before the acts return.
const TIMEOUT: Duration = Duration::from_millis(300);
/// Between two looks at the ring buffer.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// What the client sends and what the server answers, before the client resets the connection.
const QUESTION: &[u8] = b"seventeen letters";
const ANSWER: &[u8] = b"five!";

/// How the self-test ended, where it ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every reset came out as it was made.
    Passed {
        /// How many: captured by the kernel's count, and handed on to nobody.
        resets: u64,
    },
    /// It could not be run here, and why.
    Skipped(String),
}

/// What came out other than it was made.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// Records came, and say what is not so.
    #[error("the self-test's resets are misread: {}{}", some(.misread), because(.difference))]
    Misread {
        /// Each reset, and what of it was misread.
        misread: Vec<String>,
        /// Both kernels, where the types may be another's.
        difference: Option<String>,
    },
    /// No records came.
    #[error("the self-test's resets are not seen: {}{}", some(.unseen), because(.difference))]
    Unseen {
        /// Each reset.
        unseen: Vec<String>,
        /// Both kernels, where the types may be another's.
        difference: Option<String>,
    },
    /// The thread that makes them could not be started.
    #[error("cannot run the self-test: {0}")]
    Thread(io::Error),
}

/// The first few: they tell enough.
fn some(resets: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = resets.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match resets.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

fn because(difference: &Option<String>) -> String {
    difference.as_ref().map_or_else(String::new, |difference| format!(". {difference}"))
}

/// Makes resets, and reads them back. Records of others that come meanwhile go to `others`, so that none is lost.
///
/// `btf`: the file of types that the programs were loaded with, for the message. `proc`: a procfs, to know whether its
/// process numbers are the kernel's.
///
/// # Errors
/// What was misread, or not seen: then nothing that these programs say can be trusted.
pub fn run(
    kernel: &mut Kernel,
    decoder: &Decoder,
    btf: &Path,
    proc: &Path,
    mut others: impl FnMut(&[u8]),
) -> Result<Outcome, SelfTestError> {
    let mut made = match make_on_own_thread().map_err(SelfTestError::Thread)? {
        Ok(made) => made,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let pid = (!has_foreign_pids(proc)).then(std::process::id);
    let runs = |hook: &str| kernel.coverage().iter().any(|other| other.hook == hook && other.missing.is_none());
    let has_reasons = !kernel.reasons().reset.is_empty();
    // What a socket that resets its own connection had for a state is gone by then, but for this hook.
    if !runs("inet_sock_set_state") {
        let sent = made.facts.iter_mut().filter(|fact| fact.direction == Direction::Transmit);
        sent.for_each(|fact| fact.state = None);
    }
    let mut open: Vec<&Fact> =
        made.facts.iter().filter(|fact| fact.is_traced(has_reasons) && runs(fact.hook())).collect();
    let resets = open.len() as u64;
    if resets == 0 {
        return Ok(Outcome::Skipped("no hook runs that sees what TCP sends, or what a socket receives".to_owned()));
    }
    let mut strangers = Vec::new();
    let deadline = Instant::now() + TIMEOUT;
    loop {
        kernel.drain(usize::MAX, |bytes| {
            let now = clock::now();
            let decoded = read_record(bytes).and_then(|record| decoder.decode(&record, now.clock, now.unix_ns));
            let Ok(reset) = decoded else { return others(bytes) };
            let place = open.iter().position(|fact| fact.differences(&reset, made.namespace.inode, pid).is_empty());
            match place {
                Some(place) => drop(open.remove(place)),
                // Of our own making, and not what was made.
                None if reset.network_namespace == Some(made.namespace.inode) => strangers.push(reset),
                None => {
                    others(bytes);
                    strangers.push(reset);
                }
            }
        });
        if open.is_empty() {
            return Ok(Outcome::Passed { resets });
        }
        if Instant::now() >= deadline {
            return Err(complain(&open, &strangers, made.namespace.inode, pid, vintage::difference(btf)));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// A reset as it was made.
#[derive(Clone, Debug)]
struct Fact {
    direction: Direction,
    cause: Cause,
    /// The state before, where it is to be known.
    state: Option<State>,
    local: SocketAddr,
    peer: SocketAddr,
    /// Whether a socket of ours was reset.
    owned: bool,
    /// Bytes sent and received on the connection.
    bytes: Option<(u64, u64)>,
}

impl Fact {
    /// What a record says otherwise, a text each.
    fn differences(&self, reset: &Reset, namespace: u32, pid: Option<u32>) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, made: String, read: String| {
            if made != read {
                found.push(format!("{what} {read} instead of {made}"));
            }
        };
        let number = |known: Option<u64>| known.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
        compare("direction", self.direction.word().into(), reset.direction.word().into());
        compare("local address", self.local.ip().to_string(), reset.local.address.to_string());
        compare("local port", self.local.port().to_string(), reset.local.port.to_string());
        compare("peer address", self.peer.ip().to_string(), reset.peer.address.to_string());
        compare("peer port", self.peer.port().to_string(), reset.peer.port.to_string());
        compare("network namespace", namespace.to_string(), number(reset.network_namespace.map(u64::from)));
        compare("cause", self.cause.word().into(), reset.cause.word().into());
        let state = |state: Option<State>| state.map_or("unknown", State::word).to_owned();
        if self.state.is_some() {
            compare("state", state(self.state), state(reset.state));
        }
        if let Some((sent, received)) = self.bytes {
            compare("bytes sent", sent.to_string(), number(reset.connection.bytes_sent));
            compare("bytes received", received.to_string(), number(reset.connection.bytes_received));
        }
        if let Some(pid) = pid.filter(|_| self.owned) {
            compare("owner", pid.to_string(), number(reset.owner.map(|owner| owner.pid.into())));
        }
        found
    }

    /// The hook that sees it.
    fn hook(&self) -> &'static str {
        match self.direction {
            Direction::Transmit => "tcp_send_reset",
            Direction::Receive => "tcp_receive_reset",
        }
    }

    /// Whether the kernel traces it: one that gives no reasons (before 6.10) traces none sent without a socket.
    fn is_traced(&self, has_reasons: bool) -> bool {
        self.cause != Cause::PortClosed || has_reasons
    }

    fn name(&self) -> String {
        let Self { direction, cause, local, peer, .. } = self;
        format!("{} {} at {local} with {peer}", direction.word(), cause.word())
    }
}

/// More than this many differences, and a record is of another reset.
const STILL_LIKE: usize = 6;

fn complain(
    open: &[&Fact],
    strangers: &[Reset],
    namespace: u32,
    pid: Option<u32>,
    difference: Option<String>,
) -> SelfTestError {
    let nearest = |fact: &Fact| {
        let all = strangers.iter().map(|reset| fact.differences(reset, namespace, pid));
        all.min_by_key(Vec::len).filter(|differences| differences.len() <= STILL_LIKE)
    };
    let misread: Vec<String> = open
        .iter()
        .filter_map(|fact| {
            let mut text = fact.name();
            // A String takes whatever is written.
            write!(text, " has {}", nearest(fact)?.join(", ")).ok();
            Some(text)
        })
        .collect();
    if misread.is_empty() {
        let unseen = open.iter().map(|fact| fact.name()).collect();
        return SelfTestError::Unseen { unseen, difference };
    }
    SelfTestError::Misread { misread, difference }
}

/// What was made, and where.
struct Made {
    namespace: Namespace,
    facts: Vec<Fact>,
}

/// The resets, made by a thread of their own: one that has left the host's network cannot come back. Inside, why they
/// could not be made.
fn make_on_own_thread() -> io::Result<Result<Made, String>> {
    let (sender, made) = channel();
    let make = move || {
        let outcome = namespace::enter().map_err(|error| error.to_string()).and_then(|namespace| {
            let facts = make().map_err(|error| format!("no reset can be made on the loopback: {error}"))?;
            Ok(Made { namespace, facts })
        });
        // Where nobody waits any more, nobody wants to know.
        sender.send(outcome).ok();
    };
    thread::Builder::new().name("self-test".to_owned()).spawn(make)?;
    made.recv().map_err(io::Error::other)
}

fn make() -> io::Result<Vec<Fact>> {
    let mut facts = Vec::new();
    // Two addresses, so that neither is taken for the other; of IPv6 the loopback has one.
    let (client, server) = (SocketAddr::from(([127, 0, 0, 2], 0)), SocketAddr::from(([127, 0, 0, 1], 0)));
    facts.extend(refused(client, server)?);
    facts.extend(aborted(client, server)?);
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    // A host without IPv6 has none to misread.
    if TcpListener::bind(v6).is_ok() {
        facts.extend(refused(v6, v6)?);
        facts.extend(aborted(v6, v6)?);
    }
    Ok(facts)
}

/// A client's socket, and its address with a port.
fn client(any_port: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(any_port), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&any_port.into())?;
    let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a socket without an address"))?;
    Ok((socket, address))
}

/// A connection to a port that was free a moment ago, in a namespace where nobody else takes one.
fn refused(from: SocketAddr, to: SocketAddr) -> io::Result<[Fact; 2]> {
    let server = TcpListener::bind(to)?.local_addr()?;
    let (socket, client) = client(from)?;
    match socket.connect(&server.into()) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error),
        Ok(()) => return Err(io::Error::other("a closed port accepted a connection")),
    }
    let sent = Fact {
        direction: Direction::Transmit,
        cause: Cause::PortClosed,
        state: None,
        local: server,
        peer: client,
        owned: false,
        bytes: None,
    };
    let received = Fact {
        direction: Direction::Receive,
        cause: Cause::RefusedByPeer,
        state: Some(State::SynSent),
        local: client,
        peer: server,
        owned: true,
        bytes: None,
    };
    Ok([sent, received])
}

/// A connection that carried data both ways, aborted by its client.
fn aborted(from: SocketAddr, to: SocketAddr) -> io::Result<[Fact; 2]> {
    let listener = TcpListener::bind(to)?;
    let (socket, local) = client(from)?;
    socket.connect(&listener.local_addr()?.into())?;
    let mut client = TcpStream::from(socket);
    let (mut server, _) = listener.accept()?;
    client.write_all(QUESTION)?;
    server.read_exact(&mut [0; QUESTION.len()])?;
    server.write_all(ANSWER)?;
    client.read_exact(&mut [0; ANSWER.len()])?;
    let peer = listener.local_addr()?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    let (asked, answered) = (QUESTION.len() as u64, ANSWER.len() as u64);
    let sent = Fact {
        direction: Direction::Transmit,
        cause: Cause::LingerZero,
        state: Some(State::Established),
        local,
        peer,
        owned: true,
        bytes: Some((asked, answered)),
    };
    let received = Fact {
        direction: Direction::Receive,
        cause: Cause::ResetByPeer,
        local: peer,
        peer: local,
        bytes: Some((answered, asked)),
        ..sent.clone()
    };
    Ok([sent, received])
}
