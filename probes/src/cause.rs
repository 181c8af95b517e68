//! From what the kernel shows to a cause: pure functions, the same in the kernel and in the tests.
//!
//! The kernel's `TCP_STATE` covers six different acts; the socket's fields at the tracepoint distinguish them, in the order in which `__tcp_close`, `tcp_disconnect` and `tcp_abort` (net/ipv4/tcp.c) leave them.

use crate::{Cause, State};

/// The kernel's reasons by what they mean to us. User space fills a table number → class by name from BTF, since the
/// numbers move between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReasonClass {
    /// A reason of a kernel newer than we are, or none at all.
    Unknown = 0,
    /// NOT_SPECIFIED
    NotSpecified = 1,
    /// NO_SOCKET
    NoSocket = 2,
    /// TCP_TIMEWAIT_SOCKET
    TimeWait = 3,
    /// TCP_ABORT_ON_DATA
    AbortOnData = 4,
    /// INVALID_SYN
    InvalidSyn = 5,
    /// TCP_FLAGS
    Flags = 6,
    /// TCP_INVALID_ACK_SEQUENCE, TCP_RFC7323_PAWS, TCP_TOO_OLD_ACK, TCP_ACK_UNSENT_DATA, TCP_OLD_ACK and their like
    BadSegment = 7,
    /// TCP_ABORT_ON_CLOSE
    AbortOnClose = 8,
    /// TCP_ABORT_ON_LINGER
    AbortOnLinger = 9,
    /// TCP_ABORT_ON_MEMORY
    AbortOnMemory = 10,
    /// TCP_STATE
    State = 11,
    /// TCP_KEEPALIVE_TIMEOUT
    KeepaliveTimeout = 12,
    /// TCP_DISCONNECT_WITH_DATA
    DisconnectWithData = 13,
    /// MPTCP_RST_*
    Mptcp = 14,
    /// TCP_RESET, a drop reason: the RST itself was not accepted
    Reset = 15,
    /// NETFILTER_DROP, a drop reason
    NetfilterDrop = 16,
    /// A drop outside TCP: never counted as a received reset
    NotTcp = 17,
}

impl ReasonClass {
    const ALL: [Self; 18] = [
        Self::Unknown,
        Self::NotSpecified,
        Self::NoSocket,
        Self::TimeWait,
        Self::AbortOnData,
        Self::InvalidSyn,
        Self::Flags,
        Self::BadSegment,
        Self::AbortOnClose,
        Self::AbortOnLinger,
        Self::AbortOnMemory,
        Self::State,
        Self::KeepaliveTimeout,
        Self::DisconnectWithData,
        Self::Mptcp,
        Self::Reset,
        Self::NetfilterDrop,
        Self::NotTcp,
    ];

    /// The class with this number; `Unknown` for any other.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        if (number as usize) < Self::ALL.len() { Self::ALL[number as usize] } else { Self::Unknown }
    }

    /// The class of a name of `enum sk_rst_reason`, without its prefix.
    pub fn of_reset_reason(name: &str) -> Self {
        match name {
            "NOT_SPECIFIED" => Self::NotSpecified,
            "NO_SOCKET" => Self::NoSocket,
            "TCP_TIMEWAIT_SOCKET" => Self::TimeWait,
            "TCP_ABORT_ON_DATA" => Self::AbortOnData,
            "INVALID_SYN" => Self::InvalidSyn,
            "TCP_FLAGS" => Self::Flags,
            "TCP_INVALID_ACK_SEQUENCE"
            | "TCP_RFC7323_PAWS"
            | "TCP_TOO_OLD_ACK"
            | "TCP_ACK_UNSENT_DATA"
            | "TCP_OLD_ACK" => Self::BadSegment,
            "TCP_ABORT_ON_CLOSE" => Self::AbortOnClose,
            "TCP_ABORT_ON_LINGER" => Self::AbortOnLinger,
            "TCP_ABORT_ON_MEMORY" => Self::AbortOnMemory,
            "TCP_STATE" => Self::State,
            "TCP_KEEPALIVE_TIMEOUT" => Self::KeepaliveTimeout,
            "TCP_DISCONNECT_WITH_DATA" => Self::DisconnectWithData,
            _ if name.starts_with("MPTCP_RST_") => Self::Mptcp,
            _ => Self::Unknown,
        }
    }

    /// The class of a name of `enum skb_drop_reason`, without its prefix, for a segment with RST.
    pub fn of_drop_reason(name: &str) -> Self {
        match name {
            "NOT_SPECIFIED" => Self::NotSpecified,
            "NO_SOCKET" => Self::NoSocket,
            "TCP_RESET" => Self::Reset,
            "NETFILTER_DROP" => Self::NetfilterDrop,
            "TCP_FLAGS" => Self::Flags,
            "TCP_CLOSE" | "TCP_CSUM" | "SOCKET_FILTER" | "SOCKET_BACKLOG" | "TCP_MINTTL" | "XFRM_POLICY"
            | "SOCKET_RCVBUFF" | "PROTO_MEM" => Self::BadSegment,
            _ if name.starts_with("TCP_") => Self::BadSegment,
            _ => Self::NotTcp,
        }
    }
}

/// What answered a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// No socket.
    None,
    /// A listener.
    Listener,
    /// A request socket (NEW_SYN_RECV).
    Request,
    /// A TIME_WAIT socket.
    TimeWait,
    /// A connection, with the state that it had before.
    Connection(Option<State>),
}

/// FIN, SYN, RST and ACK in the TCP header's flags byte.
pub mod segment {
    /// FIN
    pub const FIN: u8 = 0x01;
    /// SYN
    pub const SYN: u8 = 0x02;
    /// RST
    pub const RST: u8 = 0x04;
    /// ACK
    pub const ACK: u8 = 0x10;
}

/// The cause of a reset that TCP sent in answer to a segment (`tcp_v4_send_reset`, `tcp_v6_send_reset`).
///
/// `queue_full`: the listener's accept queue was full. A half-open request that expires there leaves a client that
/// believes in its connection, and whose data meet the listener.
#[inline(always)]
pub fn of_passive(reason: ReasonClass, socket_kind: SocketKind, flags: u8, queue_full: bool) -> Cause {
    let syn = flags & segment::SYN != 0;
    match reason {
        ReasonClass::Mptcp => return Cause::Mptcp,
        ReasonClass::AbortOnData => return Cause::DataAfterClose,
        ReasonClass::BadSegment => return Cause::BadSegment,
        // tcp_check_req uses INVALID_SYN for tcp_abort_on_overflow too, on a plain ACK.
        ReasonClass::InvalidSyn => return if syn { Cause::BadSegment } else { Cause::AcceptQueueOverflow },
        _ => {}
    }
    match socket_kind {
        SocketKind::None if syn && flags & segment::ACK == 0 => Cause::PortClosed,
        SocketKind::None => Cause::UnknownConnection,
        // tcp_timewait_state_process answers a bad SYN, or data after a half-duplex close.
        SocketKind::TimeWait => {
            if syn {
                Cause::BadSegment
            } else {
                Cause::DataAfterClose
            }
        }
        SocketKind::Listener
            if queue_full
                && !syn
                && matches!(reason, ReasonClass::Unknown | ReasonClass::NotSpecified | ReasonClass::Flags) =>
        {
            Cause::AcceptQueueOverflow
        }
        SocketKind::Listener => Cause::UnknownConnection,
        SocketKind::Request => {
            if syn || !queue_full {
                Cause::BadSegment
            } else {
                Cause::AcceptQueueOverflow
            }
        }
        SocketKind::Connection(state) => match (reason, state) {
            (ReasonClass::Flags, _) => Cause::BadSegment,
            (_, Some(State::FinWait1 | State::FinWait2 | State::TimeWait)) => Cause::DataAfterClose,
            (_, Some(State::SynSent | State::SynReceived)) => Cause::BadSegment,
            (_, Some(State::Closed)) => Cause::UnknownConnection,
            _ => Cause::Unknown,
        },
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// By itself.
    Exited,
    /// By a signal.
    Killed,
    /// By the OOM killer.
    OomKilled,
}

impl ProcessEnd {
    /// From an exit status as `waitpid` returns it, and whether the OOM killer chose the process.
    #[inline(always)]
    pub const fn of_status(status: u32, oom_victim: bool) -> Self {
        const SIGKILL: u32 = 9;
        match status & 0x7f {
            0 => Self::Exited,
            SIGKILL if oom_victim => Self::OomKilled,
            _ => Self::Killed,
        }
    }

    /// The cause of the resets of its connections.
    #[inline(always)]
    pub const fn cause(self) -> Cause {
        match self {
            Self::Exited => Cause::ProcessExited,
            Self::Killed => Cause::ProcessKilled,
            Self::OomKilled => Cause::ProcessOomKilled,
        }
    }
}

/// What a socket shows when it resets its own connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct AbortState {
    /// The state reads CLOSE already: close and disconnect set it before they send.
    pub closed: bool,
    /// The state reads FIN_WAIT2.
    pub fin_wait_2: bool,
    /// `sk_lock.owned`: process context.
    pub owned: bool,
    /// How the process ended whose end closes the connection.
    pub end: Option<ProcessEnd>,
    /// `sk_socket` is not null.
    pub has_socket: bool,
    /// SOCK_DEAD: orphaned.
    pub dead: bool,
    /// `sk_shutdown` is SHUTDOWN_MASK, as `__tcp_close` sets it.
    pub shutdown: bool,
    /// SOCK_LINGER with `sk_lingertime` 0.
    pub linger_zero: bool,
    /// `linger2` below 0 (TCP_LINGER2).
    pub linger2_negative: bool,
    /// SOCK_KEEPOPEN.
    pub keep_alive: bool,
    /// `icsk_user_timeout` is set.
    pub user_timeout: bool,
    /// Unread bytes.
    pub unread: bool,
    /// A subflow of MPTCP.
    pub mptcp: bool,
}

/// The cause of a reset that the socket sent by itself (`tcp_send_active_reset`).
#[inline(always)]
pub fn of_active(reason: ReasonClass, socket: &AbortState) -> Cause {
    if let Some(end) = socket.end {
        return end.cause();
    }
    if socket.mptcp || matches!(reason, ReasonClass::Mptcp) {
        return Cause::Mptcp;
    }
    match reason {
        ReasonClass::AbortOnClose => Cause::ClosedWithUnreadData,
        ReasonClass::AbortOnLinger => Cause::LingerZero,
        ReasonClass::AbortOnMemory => Cause::OutOfMemory,
        ReasonClass::DisconnectWithData => Cause::DisconnectSyscall,
        ReasonClass::KeepaliveTimeout => timeout(socket),
        _ if socket.closed => of_closed(socket),
        _ if socket.owned => Cause::SocketDestroyed,
        // tcp_keepalive_timer resets an orphan whose FIN_WAIT2 ran out: no cause covers that.
        _ if socket.fin_wait_2 && socket.dead => Cause::Unknown,
        _ if socket.dead => Cause::OutOfMemory,
        _ if socket.keep_alive => timeout(socket),
        _ => Cause::Unknown,
    }
}

#[inline(always)]
fn timeout(socket: &AbortState) -> Cause {
    if socket.user_timeout { Cause::UserTimeout } else { Cause::KeepaliveTimeout }
}

/// The state reads CLOSE: `__tcp_close`, or `tcp_disconnect` called by close, connect or a listener's end.
#[inline(always)]
fn of_closed(socket: &AbortState) -> Cause {
    if socket.dead {
        return if socket.linger2_negative { Cause::LingerZero } else { Cause::OutOfMemory };
    }
    // inet_child_forget disconnects a child that nobody accepted, before it is orphaned.
    if !socket.has_socket {
        return Cause::ListenerClosed;
    }
    // Unread data beats linger 0: __tcp_close checks it first.
    if socket.shutdown && socket.unread {
        return Cause::ClosedWithUnreadData;
    }
    if socket.shutdown && socket.linger_zero {
        return Cause::LingerZero;
    }
    Cause::DisconnectSyscall
}

/// The cause of a reset that a socket accepted (`tcp_reset`).
#[inline(always)]
pub fn of_received(state: Option<State>) -> Cause {
    match state {
        Some(State::SynSent) => Cause::RefusedByPeer,
        _ => Cause::ResetByPeer,
    }
}

/// The cause of a reset that came and that no connection accepted, and whether a socket refused it.
#[inline(always)]
pub fn of_dropped(reason: ReasonClass, socket_kind: SocketKind) -> (Cause, bool) {
    match (reason, socket_kind) {
        (ReasonClass::NoSocket | ReasonClass::NetfilterDrop, _) => (Cause::UnmatchedReset, false),
        // tcp_check_req ends the handshake silently; on_reset of a request socket is NOT_SPECIFIED on its listener.
        (ReasonClass::NotSpecified, SocketKind::Listener | SocketKind::Request) => (Cause::ResetByPeer, false),
        (ReasonClass::BadSegment, SocketKind::Request) => (Cause::BadSegment, true),
        (_, SocketKind::Listener | SocketKind::TimeWait) => (Cause::UnmatchedReset, false),
        (_, SocketKind::Connection(Some(State::Closed))) => (Cause::UnmatchedReset, false),
        (_, SocketKind::Connection(_) | SocketKind::Request) => (Cause::BadSegment, true),
        (ReasonClass::NotSpecified, SocketKind::None) => (Cause::UnmatchedReset, false),
        (ReasonClass::BadSegment, SocketKind::None) => (Cause::BadSegment, true),
        (_, SocketKind::None) => (Cause::Unknown, false),
    }
}
