//! One sentence that tells a reset to a person: who did what to whom, and what is lost.
//!
//! Names a process only where its owner is known, and claims no loss that the record does not show.

use crate::{
    model::resource::ResourceValue,
    model::{Cause, Direction, Endpoint, Owner, Reset, State, address::AddressText},
};

/// Appends the sentence for a reset: one line, no full stop, control characters of foreign text escaped.
pub fn render(reset: &Reset, out: &mut String) {
    let mut line = Line { reset, out };
    match reset.direction {
        Direction::Receive if reset.cause == Cause::UnmatchedReset => line.unmatched(),
        _ if reset.not_accepted => line.not_accepted(),
        Direction::Receive => line.received(),
        Direction::Transmit => line.sent(),
    }
}

/// Appends foreign text with what could move a terminal's cursor or the direction of writing escaped.
pub fn push_escaped(out: &mut String, text: &str) {
    for character in text.chars() {
        // Bidirectional controls (Unicode UAX #9) are not "control" by category.
        let moves = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || moves {
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

/// A piece of a sentence.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// Words of ours.
    Text(&'a str),
    /// The owner as the one who acts, or this host.
    Subject,
    /// " of" the owner, where known.
    OfOwner,
    /// This host's end.
    Local,
    /// The other end.
    Peer,
    /// "1 byte", "4,096 bytes".
    Bytes(u64),
    /// A number.
    Number(u64),
    /// " (kernel reason …)", where known.
    Reason,
    /// " in state …", where known.
    InState,
}

use Part::{Bytes, InState, Local, Number, OfOwner, Peer, Reason, Subject, Text};

struct Line<'a, 'b> {
    reset: &'a Reset,
    out: &'b mut String,
}

impl Line<'_, '_> {
    fn say(&mut self, parts: &[Part<'_>]) {
        for part in parts {
            self.part(*part);
        }
    }

    fn part(&mut self, part: Part<'_>) {
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
            self.say(&[Text(before), Text(text), Text(after)]);
        }
    }

    /// `nginx (pid 812, service checkout)`
    fn owner(&mut self, owner: &Owner) {
        let start = self.out.len();
        push_comm(self.out, &owner.comm);
        let named = self.out.len() > start;
        let service = match self.reset.resource.get("service.name") {
            Some(ResourceValue::Text(service)) if *service != self.out[start..] => Some(service),
            _ => None,
        };
        self.out.push_str(if named { " (pid " } else { "pid " });
        self.part(Number(u64::from(owner.pid)));
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
            Cause::PortClosed => self.say(&[Peer, Text(" was refused: nothing listens on "), Local]),
            Cause::UnknownConnection if self.reset.state == Some(State::Listen) => {
                self.say(&[Text("a segment from "), Peer, Text(" fits no connection of the listener"), OfOwner]);
                self.say(&[Text(" on "), Local, Text(": this host answered with a reset")]);
            }
            Cause::UnknownConnection => {
                self.say(&[Text("a segment from "), Peer, Text(" to "), Local, Text(" belongs to no connection here")]);
                self.say(&[Text(": one side, or a device between, has forgotten the connection")]);
            }
            Cause::ClosedWithUnreadData => self.closed_with_unread_data(),
            Cause::LingerZero => self.linger_zero(),
            Cause::DataAfterClose => {
                self.say(&[Peer, Text(" sent data on a connection that "), Subject]);
                self.say(&[Text(" had already closed: the data are lost")]);
            }
            Cause::DisconnectSyscall => {
                self.say(&[Subject, Text(" disconnected its connection to "), Peer, InState]);
                self.lost();
            }
            Cause::ListenerClosed => {
                self.say(&[Subject, Text(" closed its listener on "), Local]);
                self.say(&[Text(" before it accepted the connection from "), Peer]);
            }
            Cause::AcceptQueueOverflow => {
                self.say(&[Text("the accept queue"), OfOwner, Text(" on "), Local, Text(" was full: the connection")]);
                self.say(&[Text(" from "), Peer, Text(" was reset")]);
            }
            Cause::ProcessExited | Cause::ProcessKilled | Cause::ProcessOomKilled => self.process_killed(),
            Cause::SocketDestroyed => self.socket_destroyed(),
            Cause::KeepaliveTimeout => {
                self.say(&[Peer, Text(" answered no keepalive probe: "), Subject, Text(" lost its connection to it")]);
                self.unacknowledged();
            }
            Cause::UserTimeout => {
                self.say(&[Peer, Text(" did not answer within TCP_USER_TIMEOUT: "), Subject]);
                self.say(&[Text(" lost its connection to it")]);
                self.unacknowledged();
            }
            Cause::OutOfMemory => {
                self.say(&[Text("the kernel had too little memory or too many orphans: it reset the connection")]);
                self.say(&[OfOwner, Text(" to "), Peer]);
                self.lost();
            }
            Cause::BadSegment => {
                self.say(&[Text("a segment from "), Peer, Text(" was unacceptable to the connection"), OfOwner]);
                self.say(&[Text(" on "), Local, InState, Text(": this host answered with a reset"), Reason]);
            }
            Cause::Mptcp => {
                self.say(&[Text("MPTCP reset the connection"), OfOwner, Text(" to "), Peer, Reason]);
                self.lost();
            }
            Cause::FirewallReject => {
                self.say(&[Text("the firewall of this host rejected a segment from "), Peer, Text(" to "), Local]);
            }
            Cause::Unknown | Cause::RefusedByPeer | Cause::ResetByPeer | Cause::UnmatchedReset => {
                self.say(&[Text("this host reset the connection"), OfOwner, Text(" to "), Peer, InState]);
                self.say(&[Text("; why is not known"), Reason]);
                self.lost();
            }
        }
    }

    fn closed_with_unread_data(&mut self) {
        self.say(&[Subject, Text(" closed its connection to "), Peer]);
        match self.reset.connection.unread_bytes {
            Some(unread @ 1..) => self.say(&[Text(" with "), Bytes(unread.into()), Text(" unread")]),
            _ => self.say(&[Text(" before it had read everything")]),
        }
        self.say(&[Text(": the peer's data are lost")]);
    }

    fn linger_zero(&mut self) {
        // The kernel gives this reason for TCP_LINGER2 below 0 alone (__tcp_close, FIN_WAIT2).
        let linger2 = self.reset.reason == Some("TCP_ABORT_ON_LINGER");
        let how = if linger2 { " on purpose (TCP_LINGER2 below 0)" } else { " on purpose (SO_LINGER with time 0)" };
        self.say(&[Subject, Text(" aborted its connection to "), Peer, Text(how)]);
        self.lost();
    }

    fn process_killed(&mut self) {
        self.say(&[if self.reset.owner.is_some() { Subject } else { Text("the owning process") }]);
        match self.reset.actor {
            Some(actor) if actor.signal.is_some() => {
                let signal = actor.signal.unwrap_or_default();
                self.say(&[Text(" was killed by signal "), Number(signal.into())]);
                self.optional(" (", signal_name(signal), ")");
                self.say(&[Text(" with its connection to ")]);
            }
            Some(actor) if actor.exiting => self.say(&[Text(" exited with its connection to ")]),
            _ => self.say(&[Text(" died with its connection to ")]),
        }
        self.say(&[Peer, Text(" open")]);
        self.lost();
    }

    fn socket_destroyed(&mut self) {
        self.say(&[Text("the connection"), OfOwner, Text(" to "), Peer, Text(" was destroyed from outside")]);
        let owner = self.reset.owner.map(|owner| owner.pid);
        match self.reset.actor {
            Some(actor) if Some(actor.pid) != owner => {
                self.say(&[Text(" by pid "), Number(actor.pid.into()), Text(" (as `ss -K` does)")]);
            }
            _ => self.say(&[Text(" (as `ss -K` does)")]),
        }
        self.lost();
    }

    fn received(&mut self) {
        let state = self.reset.state;
        match self.reset.cause {
            Cause::RefusedByPeer => {
                self.say(&[Peer, Text(" refused the connection"), OfOwner]);
                self.say(&[Text(": nothing listens there, or a firewall rejects it")]);
            }
            Cause::Mptcp => {
                self.say(&[Peer, Text(" reset the MPTCP connection"), OfOwner, Reason]);
                self.unacknowledged();
            }
            _ if state == Some(State::SynReceived) => {
                self.say(&[Peer, Text(" broke off its connection to "), Local, Text(" before it was established")]);
            }
            _ if state == Some(State::CloseWait) => {
                self.say(&[Peer, Text(" closed its end, then reset the connection"), OfOwner]);
                self.unacknowledged();
            }
            _ if state.is_some_and(closed_here) => {
                self.say(&[Peer, Text(" reset the connection"), OfOwner, Text(", which this side had closed already")]);
                self.unacknowledged();
            }
            _ => {
                self.say(&[Peer, Text(" reset the connection"), OfOwner]);
                self.unacknowledged();
            }
        }
    }

    fn unmatched(&mut self) {
        self.say(&[Text("a reset came from "), Peer, Text(" to "), Local]);
        match self.reset.reason {
            Some("NO_SOCKET") | None => self.say(&[Text(", where no connection is known: it was ignored")]),
            Some(_) => self.say(&[Text(" and was ignored"), Reason]),
        }
    }

    fn not_accepted(&mut self) {
        self.say(&[Text("a reset from "), Peer, Text(" to "), Local, Text(" was ignored"), Reason]);
        match (self.reset.state, self.reset.owner) {
            (Some(State::Listen), _) => self.say(&[Text(": the listener"), OfOwner, Text(" goes on")]),
            (Some(State::TimeWait), _) => self.say(&[Text(": the connection was closed already")]),
            _ => self.say(&[Text(": the connection"), OfOwner, Text(" lives on")]),
        }
    }

    /// What an end by this side throws away, where known.
    fn lost(&mut self) {
        let connection = &self.reset.connection;
        let pending =
            u64::from(connection.unsent_bytes.unwrap_or(0)) + u64::from(connection.unacked_bytes.unwrap_or(0));
        let unread = u64::from(connection.unread_bytes.unwrap_or(0));
        match (pending, unread) {
            (0, 0) => {}
            (0, unread) => {
                self.say(&[Text(": "), Bytes(unread), Text(" not yet read "), Text(are(unread)), Text(" lost")])
            }
            (pending, 0) => {
                self.say(&[Text(": "), Bytes(pending), Text(" not yet delivered "), Text(are(pending)), Text(" lost")]);
            }
            (pending, unread) => {
                self.say(&[Text(": "), Bytes(pending), Text(" not yet delivered and "), Bytes(unread)]);
                self.say(&[Text(" not yet read are lost")]);
            }
        }
    }

    /// What the peer never acknowledged, where known: it may have got it.
    fn unacknowledged(&mut self) {
        let connection = &self.reset.connection;
        let pending =
            u64::from(connection.unsent_bytes.unwrap_or(0)) + u64::from(connection.unacked_bytes.unwrap_or(0));
        if pending > 0 {
            let were = if pending == 1 { " was" } else { " were" };
            self.say(&[Text("; "), Bytes(pending), Text(" to it"), Text(were), Text(" not acknowledged")]);
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
