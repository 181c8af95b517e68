//! How each reset is made: real sockets on the loopback of a network namespace of its own, which the calling thread
//! is in. Both ends are ours, so each reset is sent and received on this host.
//!
//! An act returns once the reset has reached the other end, and leaves nothing behind that would make another.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use crate::app::demo::{Options, scenario::Family, segment};
use crate::host::netlink;

/// How long the other end waits for its reset: longer than the slowest, a keepalive that ran out.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest that the kernel takes for keepalive.
const SECOND: Duration = Duration::from_secs(1);
/// A sequence or acknowledgement number that no connection here has, but for one chance in 2^16.
const FALSE_NUMBER: u32 = 0x5eed_5eed;

pub(crate) fn port_closed(family: Family, _: &Options) -> io::Result<()> {
    match TcpStream::connect(closed_port(family)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(unexpected("a connection to a closed port", &other)),
    }
}

pub(crate) fn unknown_to_closed_port(family: Family, _: &Options) -> io::Result<()> {
    let (source, destination) = (closed_port(family)?, closed_port(family)?);
    segment::send(source, destination, segment::flag::ACK, FALSE_NUMBER, FALSE_NUMBER)
}

pub(crate) fn unknown_to_listener(family: Family, _: &Options) -> io::Result<()> {
    let listener = listen(family)?;
    segment::send(closed_port(family)?, listener.local_addr()?, segment::flag::ACK, FALSE_NUMBER, FALSE_NUMBER)
}

pub(crate) fn reset_to_closed_port(family: Family, _: &Options) -> io::Result<()> {
    segment::send(closed_port(family)?, closed_port(family)?, segment::flag::RST, FALSE_NUMBER, 0)
}

pub(crate) fn reset_outside_window(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    segment::send(server.local_addr()?, client.local_addr()?, segment::flag::RST, FALSE_NUMBER, 0)?;
    close_in_order(client, server)
}

pub(crate) fn close_with_unread_data(family: Family, _: &Options) -> io::Result<()> {
    let (client, mut server) = pair(family)?;
    server.write_all(b"nobody reads this")?;
    client.peek(&mut [0])?;
    drop(client);
    wait_for_reset(&server)
}

pub(crate) fn linger_zero(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    wait_for_reset(&server)
}

pub(crate) fn data_after_close(family: Family, _: &Options) -> io::Result<()> {
    let (client, mut server) = pair(family)?;
    drop(client);
    // The end of the stream: the peer has closed.
    server.read_to_end(&mut Vec::new())?;
    server.write_all(b"too late")?;
    wait_for_reset(&server)
}

pub(crate) fn disconnect(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    rustix::net::connect_unspec(&client)?;
    wait_for_reset(&server)
}

pub(crate) fn close_listener(family: Family, _: &Options) -> io::Result<()> {
    let listener = listen(family)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    drop(listener);
    wait_for_reset(&client)
}

/// A connection whose handshake is held up while others fill the accept queue: its last ACK finds the queue full.
pub(crate) fn overflow_accept_queue(family: Family, _: &Options) -> io::Result<()> {
    const BACKLOG: i32 = 2;
    // Of this thread's network namespace only.
    std::fs::write("/proc/sys/net/ipv4/tcp_abort_on_overflow", "1")?;
    let listener = Socket::new(Domain::for_address(at(family, 0)), Type::STREAM, None)?;
    listener.bind(&at(family, 0).into())?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    let address = listener.local_addr()?;
    let late = begin_to_connect(address, Some(&DROP_ALL))?;
    // The queue is full when there are more than the backlog allows.
    let early = (0..=BACKLOG).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>()?;
    // The SYN-ACK is sent again after a second, and is let in. Were the SYN itself sent again as well, two answers
    // would meet.
    SockRef::from(&listener).attach_filter(&DROP_SYNS)?;
    late.detach_filter()?;
    let outcome = wait_for_reset(&late);
    for client in early {
        close_in_order(client, listener.accept()?.0)?;
    }
    outcome
}

/// The socket becomes a child process's standard input, and the child is killed with data unread: without them the
/// kernel would end the connection in order, even for a process that is killed.
pub(crate) fn kill_owner(family: Family, options: &Options) -> io::Result<()> {
    let (client, mut server) = pair(family)?;
    server.write_all(b"nobody reads this")?;
    client.peek(&mut [0])?;
    let Some((program, arguments)) = options.idle_command.split_first() else {
        return Err(io::Error::other("no program to hold the socket"));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(client)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    child.kill()?;
    child.wait()?;
    wait_for_reset(&server)
}

pub(crate) fn destroy_socket(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    netlink::destroy(client.local_addr()?, client.peer_addr()?)?;
    wait_for_reset(&server)
}

pub(crate) fn keepalive_timeout(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    SockRef::from(&server).attach_filter(&DROP_ALL_BUT_RESETS)?;
    SockRef::from(&client).set_tcp_keepalive(&impatient())?;
    wait_for_reset(&server)
}

/// With keepalive: a connection with data in flight that runs out of time is given up without a reset.
pub(crate) fn user_timeout(family: Family, _: &Options) -> io::Result<()> {
    let (client, server) = pair(family)?;
    SockRef::from(&server).attach_filter(&DROP_ALL_BUT_RESETS)?;
    SockRef::from(&client).set_tcp_user_timeout(Some(SECOND))?;
    SockRef::from(&client).set_tcp_keepalive(&impatient().with_retries(9))?;
    wait_for_reset(&server)
}

/// A client whose SYN is not answered gets a SYN-ACK that acknowledges what it never sent (RFC 9293, 3.10.7.3).
pub(crate) fn bad_handshake(family: Family, _: &Options) -> io::Result<()> {
    let listener = listen(family)?;
    SockRef::from(&listener).attach_filter(&DROP_ALL_BUT_RESETS)?;
    let client = begin_to_connect(listener.local_addr()?, None)?;
    let address = client.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a client without an address"))?;
    let flags = segment::flag::SYN | segment::flag::ACK;
    segment::send(listener.local_addr()?, address, flags, FALSE_NUMBER, FALSE_NUMBER)
}

pub(crate) fn mptcp_fast_close(family: Family, _: &Options) -> io::Result<()> {
    let socket = || {
        Socket::new(Domain::for_address(at(family, 0)), Type::STREAM, Some(Protocol::MPTCP)).map_err(|error| {
            io::Error::new(error.kind(), format!("this kernel has no MPTCP, or it is switched off ({error})"))
        })
    };
    let listener = socket()?;
    listener.bind(&at(family, 0).into())?;
    listener.listen(1)?;
    let client = socket()?;
    client.connect(&listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    // A first exchange, so that both ends know that the other speaks MPTCP.
    let mut client = TcpStream::from(client);
    client.write_all(b"hello")?;
    server.read_exact(&mut [0; 5])?;
    server.write_all(b"nobody reads this")?;
    client.peek(&mut [0])?;
    drop(client);
    wait_for_reset(&server)
}

pub(crate) fn firewall_reject(family: Family, _: &Options) -> io::Result<()> {
    let listener = listen(family)?;
    let address = listener.local_addr()?;
    reject(family, address.port())?;
    match TcpStream::connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(unexpected("a connection that the firewall rejects", &other)),
    }
}

/// A rule in this thread's network namespace, by nft or else by iptables.
fn reject(family: Family, port: u16) -> io::Result<()> {
    let rules = format!(
        "table inet demo {{\nchain input {{\ntype filter hook input priority 0\n\
         tcp dport {port} reject with tcp reset\n}}\n}}\n"
    );
    let nft = run_with_input("nft", &["-f", "-"], &rules);
    let Err(error) = nft else { return Ok(()) };
    let iptables = if family == Family::V6 { "ip6tables" } else { "iptables" };
    let port = port.to_string();
    let arguments = ["-I", "INPUT", "-p", "tcp", "--dport", &port, "-j", "REJECT", "--reject-with", "tcp-reset"];
    run_with_input(iptables, &arguments, "")
        .map_err(|other| io::Error::other(format!("needs nft or {iptables}: {error}; {other}")))
}

fn run_with_input(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.lines().next().unwrap_or("failed without a word"))))
}

// A filter sees a segment from its TCP header on (tcp_filter, net/ipv4/tcp_ipv4.c). Instructions of classic BPF
// (include/uapi/linux/bpf_common.h).
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_ANY_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where the flags stand in the TCP header.
const FLAGS: u32 = 13;

/// Lets no segment in.
const DROP_ALL: [SockFilter; 1] = [SockFilter::new(RETURN, 0, 0, 0)];

/// Lets no new handshake in.
const DROP_SYNS: [SockFilter; 4] = [
    SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
    SockFilter::new(JUMP_IF_ANY_SET, 0, 1, segment::flag::SYN as u32),
    SockFilter::new(RETURN, 0, 0, 0),
    SockFilter::new(RETURN, 0, 0, u32::MAX),
];

/// Makes a socket deaf and dumb, as a peer whose host lost its power, but for the reset that is to be seen.
const DROP_ALL_BUT_RESETS: [SockFilter; 4] = [
    SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
    SockFilter::new(JUMP_IF_ANY_SET, 0, 1, segment::flag::RST as u32),
    SockFilter::new(RETURN, 0, 0, u32::MAX),
    SockFilter::new(RETURN, 0, 0, 0),
];

/// Keepalive that gives up after its first probe.
fn impatient() -> TcpKeepalive {
    TcpKeepalive::new().with_time(SECOND).with_interval(SECOND).with_retries(1)
}

fn at(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.address(), port)
}

fn listen(family: Family) -> io::Result<TcpListener> {
    TcpListener::bind(at(family, 0))
}

/// A port that was free a moment ago, in a namespace where nobody else takes one.
fn closed_port(family: Family) -> io::Result<SocketAddr> {
    listen(family)?.local_addr()
}

/// A client and the server that accepted it.
fn pair(family: Family) -> io::Result<(TcpStream, TcpStream)> {
    let listener = listen(family)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// A connection under way, which nobody waits for.
fn begin_to_connect(address: SocketAddr, filter: Option<&[SockFilter]>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(filter) = filter {
        socket.attach_filter(filter)?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Ok(socket),
        other => Err(unexpected("a connection that nobody answers", &other)),
    }
}

/// FIN from both sides, nothing unread.
fn close_in_order(client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    client.shutdown(std::net::Shutdown::Write)?;
    server.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Waits until the reset has come, whatever error the socket makes of it.
fn wait_for_reset<'a>(end: impl Into<SockRef<'a>>) -> io::Result<()> {
    let end = end.into();
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if end.take_error()?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no reset came to the other end"))
}

fn unexpected<T>(what: &str, outcome: &io::Result<T>) -> io::Error {
    match outcome {
        Ok(_) => io::Error::other(format!("{what} was established")),
        Err(error) => io::Error::new(error.kind(), format!("{what}: {error}")),
    }
}
