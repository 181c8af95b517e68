//! The message of a reset: one sentence that says who did what to which connection, and what was lost.
//!
//! It states only what the record shows. What experience adds belongs to the explanations ([`crate::model::cause`]).

use probes::cause::segment::{ACK, FIN, SYN};

use crate::model::{
    Cause, Direction, Endpoint, Owner, OwnerSource, ProcessExit, Reset, State,
    address::AddressText,
    attribute::other_actor,
    resource::{ResourceValue, UNKNOWN_SERVICE},
};
use crate::text::is_unsafe;

/// Appends the message of a reset: one line, no full stop, control characters of foreign text escaped.
pub fn render(reset: &Reset, out: &mut String) {
    let mut message = Message { reset, out };
    match reset.direction {
        Direction::Receive if reset.cause == Cause::UnmatchedReset => message.unmatched(),
        _ if reset.not_accepted => message.not_accepted(),
        Direction::Receive => message.received(),
        Direction::Transmit => message.sent(),
    }
}

/// Appends foreign text with what could move a terminal's cursor or the direction of writing escaped.
pub fn push_escaped(out: &mut String, text: &str) {
    for character in text.chars() {
        if is_unsafe(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
}

/// Appends a process's name as the kernel holds it: bytes up to a zero, of no certain encoding.
pub fn push_comm(out: &mut String, comm: &[u8]) {
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    for chunk in name.utf8_chunks() {
        push_escaped(out, chunk.valid());
        for byte in chunk.invalid() {
            out.push_str("\\x");
            push_hex(out, *byte);
        }
    }
}

/// Appends an address and port, IPv6 in brackets.
pub fn push_endpoint(out: &mut String, endpoint: Endpoint) {
    let text = AddressText::new(endpoint.address);
    if endpoint.address.is_ipv6() {
        out.push('[');
        out.push_str(text.as_str());
        out.push(']');
    } else {
        out.push_str(text.as_str());
    }
    out.push(':');
    push_number(out, u64::from(endpoint.port), None);
}

/// Appends the two digits of a byte.
pub fn push_hex(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(DIGITS[usize::from(byte >> 4)] as char);
    out.push(DIGITS[usize::from(byte & 0xf)] as char);
}

/// Appends a whole number, in groups of three digits where a separator is given.
fn push_number(out: &mut String, mut number: u64, separator: Option<char>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for place in start..digits.len() {
        if let Some(separator) = separator
            && place > start
            && (digits.len() - place).is_multiple_of(3)
        {
            out.push(separator);
        }
        out.push(digits[place] as char);
    }
}

/// A piece of a message.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// Literal text.
    Text(&'a str),
    /// The owner as the one who acts, or this host.
    Subject,
    /// " of" the owner, if known.
    OfOwner,
    /// This host's end.
    Local,
    /// The other end.
    Peer,
    /// "1 byte", "4,096 bytes".
    Bytes(u64),
    /// A number.
    Number(u64),
    /// " (kernel reason …)", if known.
    Reason,
    /// " in state …", if known.
    InState,
}

use Part::{Bytes, InState, Local, Number, OfOwner, Peer, Reason, Subject, Text};

struct Message<'a, 'b> {
    reset: &'a Reset,
    out: &'b mut String,
}

impl Message<'_, '_> {
    fn push(&mut self, parts: &[Part<'_>]) {
        for part in parts {
            self.push_part(*part);
        }
    }

    fn push_part(&mut self, part: Part<'_>) {
        match (part, self.reset.owner) {
            (Text(text), _) => self.out.push_str(text),
            (Subject, Some(owner)) => self.owner(&owner),
            (Subject, None) => self.out.push_str("this host"),
            (OfOwner, Some(owner)) => {
                self.out.push_str(" of ");
                self.owner(&owner);
            }
            (OfOwner, None) => {}
            (Local, _) => push_endpoint(self.out, self.reset.local),
            (Peer, _) => push_endpoint(self.out, self.reset.peer),
            (Bytes(count), _) => {
                push_number(self.out, count, Some(','));
                self.out.push_str(if count == 1 { " byte" } else { " bytes" });
            }
            (Number(number), _) => push_number(self.out, number, None),
            (Reason, _) => self.optional(" (kernel reason ", self.reset.reason, ")"),
            (InState, _) => self.optional(" in state ", self.reset.state.map(State::word), ""),
        }
    }

    fn optional(&mut self, before: &str, text: Option<&str>, after: &str) {
        if let Some(text) = text {
            self.push(&[Text(before), Text(text), Text(after)]);
        }
    }

    /// `nginx (pid 812, service checkout)`; without a service that no one has named.
    fn owner(&mut self, owner: &Owner) {
        let start = self.out.len();
        let comm = owner.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        match self.reset.resource.program.as_ref().filter(|program| program.comm == comm) {
            Some(program) => push_escaped(self.out, &program.name),
            None => push_comm(self.out, comm),
        }
        let named = self.out.len() > start;
        let service = match self.reset.resource.get("service.name") {
            Some(ResourceValue::Text(service))
                if *service != self.out[start..] && !service.starts_with(UNKNOWN_SERVICE) =>
            {
                Some(service)
            }
            _ => None,
        };
        self.out.push_str(if named { " (pid " } else { "pid " });
        self.push_part(Number(u64::from(owner.pid)));
        if let Some(service) = service {
            self.out.push_str(if named { ", service " } else { " (service " });
            push_escaped(self.out, service);
        }
        if named || service.is_some() {
            self.out.push(')');
        }
    }

    fn sent(&mut self) {
        match self.reset.cause {
            // No more is known than that no listener matched: one may be bound to another address, device or VRF.
            Cause::PortClosed => self.push(&[Peer, Text(" was refused: no listener matches its SYN to "), Local]),
            Cause::UnknownConnection => self.unknown_connection(),
            Cause::ClosedWithUnreadData => self.closed_with_unread_data(),
            Cause::LingerZero => self.linger_zero(),
            Cause::DataAfterClose => {
                self.push(&[Peer, Text(" sent data on a connection that "), Subject, Text(" had already closed")]);
                self.time_since_close();
                self.push(&[Text(": these data are lost")]);
                self.unacknowledged();
            }
            Cause::DisconnectSyscall => {
                self.push(&[Subject, Text(" disconnected its connection to "), Peer, InState]);
                self.lost();
            }
            Cause::ListenerClosed => {
                self.push(&[Subject, Text(" closed its listener on "), Local]);
                self.push(&[Text(" before it accepted the connection from "), Peer]);
                self.lost();
            }
            Cause::AcceptQueueOverflow => {
                self.push(&[Text("the accept queue"), OfOwner, Text(" on "), Local, Text(" was full: the connection")]);
                self.push(&[Text(" from "), Peer, Text(" was reset")]);
            }
            Cause::ProcessExited | Cause::ProcessKilled | Cause::ProcessOomKilled => self.process_ended(),
            Cause::SocketDestroyed => self.socket_destroyed(),
            Cause::KeepaliveTimeout => {
                self.push(&[Peer, Text(" answered no keepalive probe: "), Subject, Text(" lost its connection to it")]);
                self.unacknowledged();
            }
            Cause::UserTimeout => {
                self.push(&[Peer, Text(" did not answer within TCP_USER_TIMEOUT: "), Subject]);
                self.push(&[Text(" lost its connection to it")]);
                self.unacknowledged();
            }
            Cause::OutOfMemory => {
                self.push(&[Text("the kernel had too little memory or too many orphans: it reset the connection")]);
                self.push(&[OfOwner, Text(" to "), Peer]);
                self.lost();
            }
            Cause::BadSegment => {
                self.push(&[Text("a segment from "), Peer, Text(" was unacceptable to the connection"), OfOwner]);
                self.push(&[Text(" on "), Local, InState, Text(": this host answered with a reset"), Reason]);
            }
            Cause::Mptcp => {
                self.push(&[Text("MPTCP reset the connection"), OfOwner, Text(" to "), Peer, Reason]);
                self.lost();
            }
            Cause::FirewallReject if self.reset.own_firewall => {
                self.push(&[Text("the firewall of this host rejected a segment that "), Subject, Text(" sent from ")]);
                self.push(&[Local, Text(" to "), Peer]);
            }
            Cause::FirewallReject => {
                self.push(&[Text("the firewall of this host rejected a segment from "), Peer, Text(" to "), Local]);
            }
            Cause::Unknown | Cause::RefusedByPeer | Cause::ResetByPeer | Cause::UnmatchedReset => {
                self.push(&[Text("this host reset the connection"), OfOwner, Text(" to "), Peer, InState]);
                self.push(&[Text(" for an unknown cause"), Reason]);
                self.lost();
            }
        }
    }

    /// The segment may belong to a connection that has ended, or to none: the kernel keeps no memory of either.
    fn unknown_connection(&mut self) {
        const SYN_ACK: u8 = SYN | ACK;
        const ENDED: &str = ": its connection was closed or forgotten, or never existed here";
        let flags = self.reset.segment_flags;
        if flags & SYN_ACK == SYN_ACK {
            self.push(&[Text("a SYN-ACK from "), Peer, Text(" to "), Local]);
            self.push(&[Text(" answers no connection attempt that is open on this host")]);
            return;
        }
        let kind = if flags & FIN != 0 { "a FIN from " } else { "a segment from " };
        if self.reset.state == Some(State::Listen) {
            self.push(&[Text(kind), Peer, Text(" fits no handshake and no connection of the listener"), OfOwner]);
            self.push(&[Text(" on "), Local, Text(ENDED)]);
        } else {
            self.push(&[Text(kind), Peer, Text(" to "), Local, Text(" fits no connection on this host"), Text(ENDED)]);
        }
    }

    fn closed_with_unread_data(&mut self) {
        let connection = &self.reset.connection;
        let shut_down = self.reset.state.is_some_and(closed_here);
        if shut_down {
            self.push(&[
                Subject,
                Text(" had shut down its side of the connection to "),
                Peer,
                Text(", then closed it"),
            ]);
        } else {
            self.push(&[Subject, Text(" closed its connection to "), Peer]);
        }
        match connection.unread_bytes {
            Some(unread @ 1..) => self.push(&[Text(" with "), Bytes(unread.into()), Text(" unread")]),
            _ => self.push(&[Text(" before it had read everything")]),
        }
        self.push(&[Text(": the peer's data are lost")]);
        self.unacknowledged();
    }

    fn linger_zero(&mut self) {
        // The kernel gives this reason for TCP_LINGER2 below 0 alone (__tcp_close, FIN_WAIT2).
        let linger2 = self.reset.reason == Some("TCP_ABORT_ON_LINGER");
        let how = if linger2 { " (TCP_LINGER2 below 0)" } else { " (SO_LINGER with time 0)" };
        self.push(&[Subject, Text(" aborted its connection to "), Peer, Text(how)]);
        self.lost();
    }

    fn process_ended(&mut self) {
        self.push(&[if self.reset.owner.is_some() { Subject } else { Text("the owning process") }]);
        match (self.reset.cause, self.reset.exit) {
            (Cause::ProcessOomKilled, _) => self.push(&[Text(" was killed by the kernel's OOM killer")]),
            (Cause::ProcessExited, Some(ProcessExit::Code(code))) => {
                self.push(&[Text(" exited with code "), Number(code.into())]);
            }
            (Cause::ProcessExited, _) => self.push(&[Text(" exited")]),
            (_, Some(ProcessExit::Signal(signal))) => {
                self.push(&[Text(" was killed by signal "), Number(signal.into())]);
                self.optional(" (", signal_name(signal), ")");
            }
            (_, Some(ProcessExit::Code(code))) => self.push(&[Text(" ended with exit code "), Number(code.into())]),
            (_, None) => self.push(&[Text(" was killed")]),
        }
        let accepted = self.reset.owner.is_none_or(|owner| owner.source != OwnerSource::Listener);
        if accepted {
            self.push(&[Text(" with its connection to "), Peer, Text(" open")]);
        } else {
            self.push(&[Text(" before it accepted the connection from "), Peer]);
        }
        self.lost();
    }

    fn socket_destroyed(&mut self) {
        self.push(&[Text("the connection"), OfOwner, Text(" to "), Peer, Text(" was destroyed")]);
        match other_actor(self.reset) {
            Some(actor) => {
                self.push(&[Text(" by ")]);
                match actor.name() {
                    Some(name) => {
                        push_escaped(self.out, name);
                        self.push(&[Text(" (pid "), Number(actor.pid.into()), Text(")")]);
                    }
                    None => self.push(&[Text("pid "), Number(actor.pid.into())]),
                }
            }
            None => self.push(&[Text(" by the kernel's interface for it (sock_diag or eBPF)")]),
        }
        self.lost();
    }

    fn received(&mut self) {
        let state = self.reset.state;
        match self.reset.cause {
            _ if self.reset.own_firewall => {
                self.push(&[Text("the firewall of this host rejected the connection"), OfOwner, Text(" to "), Peer]);
                self.unacknowledged();
            }
            Cause::RefusedByPeer => {
                self.push(&[Text("the connection"), OfOwner, Text(" to "), Peer, Text(" was refused")]);
                self.push(&[Text(": a reset answered its SYN")]);
            }
            Cause::Mptcp => {
                self.push(&[Peer, Text(" reset the MPTCP connection"), OfOwner, Reason]);
                self.unacknowledged();
            }
            _ if state == Some(State::SynReceived) => {
                self.push(&[Peer, Text(" broke off its connection to "), Local, Text(" before it was established")]);
            }
            _ if state == Some(State::CloseWait) => {
                self.push(&[Peer, Text(" closed its end, then reset the connection"), OfOwner]);
                self.unacknowledged();
            }
            _ if state.is_some_and(closed_here) => {
                self.push(&[
                    Peer,
                    Text(" reset the connection"),
                    OfOwner,
                    Text(", which this side had closed already"),
                ]);
                self.unacknowledged();
            }
            _ => {
                self.push(&[Peer, Text(" reset the connection"), OfOwner]);
                self.unacknowledged();
            }
        }
    }

    fn unmatched(&mut self) {
        self.push(&[Text("a reset came from "), Peer, Text(" to "), Local]);
        match self.reset.reason {
            Some("NO_SOCKET") | None => self.push(&[Text(", which is no open connection here: it was ignored")]),
            Some(_) => self.push(&[Text(" and was ignored"), Reason]),
        }
    }

    fn not_accepted(&mut self) {
        self.push(&[Text("a reset from "), Peer, Text(" to "), Local, Text(" was ignored"), Reason]);
        match (self.reset.state, self.reset.owner) {
            (Some(State::Listen), _) => self.push(&[Text(": the listener"), OfOwner, Text(" goes on")]),
            (Some(State::TimeWait), _) => self.push(&[Text(": the connection was closed already")]),
            _ => self.push(&[Text(": the connection"), OfOwner, Text(" lives on")]),
        }
    }

    /// " (2.300 s before)", if known.
    fn time_since_close(&mut self) {
        const NS_PER_MS: u64 = 1_000_000;
        if let Some(ns) = self.reset.connection.closed_ns {
            let ms = ns / NS_PER_MS;
            self.push(&[Text(" ("), Number(ms / 1000), Text(".")]);
            for digit in [ms / 100 % 10, ms / 10 % 10, ms % 10] {
                self.push_part(Number(digit));
            }
            self.push(&[Text(" s before)")]);
        }
    }

    /// What an abort by this side discards, if known.
    fn lost(&mut self) {
        let connection = &self.reset.connection;
        let (pending, unread) = (connection.pending_bytes(), u64::from(connection.unread_bytes.unwrap_or(0)));
        match (pending, unread) {
            (0, 0) => {}
            (0, unread) => {
                self.push(&[Text(": "), Bytes(unread), Text(" not yet read "), Text(are(unread)), Text(" lost")])
            }
            (pending, 0) => {
                self.push(&[
                    Text(": "),
                    Bytes(pending),
                    Text(" not yet delivered "),
                    Text(are(pending)),
                    Text(" lost"),
                ]);
            }
            (pending, unread) => {
                self.push(&[Text(": "), Bytes(pending), Text(" not yet delivered and "), Bytes(unread)]);
                self.push(&[Text(" not yet read are lost")]);
            }
        }
    }

    /// What the peer has not acknowledged, if known: it may have received some of it.
    fn unacknowledged(&mut self) {
        let pending = self.reset.connection.pending_bytes();
        if pending > 0 {
            let were = if pending == 1 { " was" } else { " were" };
            self.push(&[Text("; "), Bytes(pending), Text(" to the peer"), Text(were), Text(" not acknowledged")]);
        }
    }
}

const fn are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// Whether this side has sent its FIN in this state.
const fn closed_here(state: State) -> bool {
    matches!(state, State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck | State::TimeWait)
}

/// The signals that end processes in practice (signal(7), the numbers of x86 and Arm).
const fn signal_name(signal: u8) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
