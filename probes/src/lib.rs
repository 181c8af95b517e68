//! What the eBPF programs and the collector share, defined once: the record of one reset, the closed lists of
//! directions, origins and causes, and the counters' layout.
//!
//! No eBPF and no I/O here: this file builds for the kernel's target and for the host alike.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod cause;
pub mod control;
pub mod field;
pub mod hash;
pub mod http;
pub mod http_requests;
pub mod rate_limit;
pub mod rule;
pub mod sent;

/// The value of [`ResetRecord::version`]; a record with another version is counted and not read.
pub const RECORD_VERSION: u32 = 0x5253_0004;

/// Bytes of a task's name in the kernel, with the closing zero (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// [`ResetRecord::duration_ns`], [`ResetRecord::closed_ns`] and the byte counts when they are not known.
pub const UNKNOWN_U64: u64 = u64::MAX;
/// The 32-bit facts of a record when they are not known.
pub const UNKNOWN_U32: u32 = u32::MAX;
/// [`ResetRecord::reason`] when the kernel gave none.
pub const UNKNOWN_REASON: u16 = u16::MAX;

/// Defines a closed list once: the enum, its number in the record, and its name.
macro_rules! closed_list {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $number:literal $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$item_doc])* $item = $number,)+ }
        impl $name {
            /// Every member, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$item,)+];
            /// The name that users see: in records, filters and `explain`.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$item => $word,)+ }
            }
            /// The member with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$item),)+ _ => None }
            }
            /// The member with this name.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$item),)+ _ => None }
            }
        }
    };
}

closed_list! {
    /// Seen from the host whose kernel we are in (`network.io.direction`).
    Direction {
        /// This host sent the reset.
        Transmit = 0 "transmit",
        /// This host received it.
        Receive = 1 "receive",
    }
}

closed_list! {
    /// Who wanted the reset (`tcp.reset.origin`).
    Origin {
        /// The local socket wanted it: close, abort, timeout.
        Active = 0 "active",
        /// TCP's answer to a segment that fits no state.
        Passive = 1 "passive",
        /// netfilter's REJECT.
        Firewall = 2 "firewall",
        /// The other end sent it.
        Peer = 3 "peer",
    }
}

closed_list! {
    /// Why the connection died: the same word on every kernel (`tcp.reset.cause`).
    Cause {
        /// None of the others; never guessed.
        Unknown = 0 "unknown",
        /// A SYN met no listener.
        PortClosed = 1 "port_closed",
        /// Another segment met no socket, a listener or a closed connection.
        UnknownConnection = 2 "unknown_connection",
        /// close() while received data lay unread (RFC 2525 2.17, RFC 9293 3.6.1).
        ClosedWithUnreadData = 3 "closed_with_unread_data",
        /// close() under SO_LINGER with time 0.
        LingerZero = 4 "linger_zero",
        /// The peer sent data to a connection that this side had fully closed.
        DataAfterClose = 5 "data_after_close",
        /// connect(AF_UNSPEC), or unsent data in CLOSING or LAST_ACK.
        DisconnectSyscall = 6 "disconnect_syscall",
        /// A listener closed with connections waiting to be accepted.
        ListenerClosed = 7 "listener_closed",
        /// The accept queue was full.
        AcceptQueueOverflow = 8 "accept_queue_overflow",
        /// A signal ended the owner with the connection open.
        ProcessKilled = 9 "process_killed",
        /// sock_diag destroy (`ss -K`), tcp_abort, an eBPF program.
        SocketDestroyed = 10 "socket_destroyed",
        /// Keepalive probes went unanswered.
        KeepaliveTimeout = 11 "keepalive_timeout",
        /// TCP_USER_TIMEOUT ran out.
        UserTimeout = 12 "user_timeout",
        /// The owner ended by itself with the connection open.
        ProcessExited = 13 "process_exited",
        /// Too many orphans, or no memory.
        OutOfMemory = 14 "out_of_memory",
        /// Unacceptable ACK, bad SYN, PAWS, flags.
        BadSegment = 15 "bad_segment",
        /// An MPTCP reset.
        Mptcp = 16 "mptcp",
        /// netfilter sent it.
        FirewallReject = 17 "firewall_reject",
        /// Received in SYN_SENT.
        RefusedByPeer = 18 "refused_by_peer",
        /// Received in any later state.
        ResetByPeer = 19 "reset_by_peer",
        /// Received, and it fits no connection here.
        UnmatchedReset = 20 "unmatched_reset",
        /// The kernel's OOM killer ended the owner with the connection open.
        ProcessOomKilled = 21 "process_oom_killed",
    }
}

closed_list! {
    /// A connection's state by the kernel's number (`include/net/tcp_states.h`) and OpenTelemetry's word
    /// (`network.connection.state`).
    State {
        /// TCP_ESTABLISHED
        Established = 1 "established",
        /// TCP_SYN_SENT
        SynSent = 2 "syn_sent",
        /// TCP_SYN_RECV, and TCP_NEW_SYN_RECV of a request socket
        SynReceived = 3 "syn_received",
        /// TCP_FIN_WAIT1
        FinWait1 = 4 "fin_wait_1",
        /// TCP_FIN_WAIT2
        FinWait2 = 5 "fin_wait_2",
        /// TCP_TIME_WAIT
        TimeWait = 6 "time_wait",
        /// TCP_CLOSE
        Closed = 7 "closed",
        /// TCP_CLOSE_WAIT
        CloseWait = 8 "close_wait",
        /// TCP_LAST_ACK
        LastAck = 9 "last_ack",
        /// TCP_LISTEN
        Listen = 10 "listen",
        /// TCP_CLOSING
        Closing = 11 "closing",
    }
}

closed_list! {
    /// The hook that saw the reset.
    Hook {
        /// Tracepoint `tcp:tcp_send_reset`.
        SendReset = 0 "tcp_send_reset",
        /// Tracepoint `tcp:tcp_receive_reset`.
        ReceiveReset = 1 "tcp_receive_reset",
        /// Tracepoint `skb:kfree_skb`, segments with RST only.
        FreeSkb = 2 "kfree_skb",
        /// Tracepoint `net:net_dev_queue`, segments with RST and no socket only.
        DeviceQueue = 3 "net_dev_queue",
        /// Where `tcp_v4_send_reset` and `tcp_v6_send_reset` are entered.
        PassiveSend = 4 "tcp_v4_send_reset",
    }
}

closed_list! {
    /// How the owner of a record was found, most certain first.
    OwnerSource {
        /// No owner is known.
        None = 0 "none",
        /// The task on the CPU held the socket's lock: it acted itself.
        Current = 1 "current",
        /// The task that connected, listened, or was found holding the socket.
        Storage = 2 "storage",
        /// The task whose credentials opened the socket's file (socket() or accept()).
        File = 3 "file",
        /// The listener's owner: the connection was not accepted yet.
        Listener = 4 "listener",
    }
}

/// Bits of [`ResetRecord::flags`].
pub mod flag {
    /// `time_ns` is CLOCK_TAI; else it is CLOCK_MONOTONIC.
    pub const TIME_IS_TAI: u16 = 1 << 0;
    /// Perhaps no RST arrived: tcp_rcv_state_process calls tcp_reset() for data after close as well. If so, a record with
    /// [`RETRACTS_RECEIVE`] and the same socket follows at once.
    pub const RECEIVE_TENTATIVE: u16 = 1 << 1;
    /// Retracts the tentative receive of the same socket.
    pub const RETRACTS_RECEIVE: u16 = 1 << 2;
    /// The end of the owner's process closed the connection; `exit_code` is its exit status.
    pub const EXITING: u16 = 1 << 3;
    /// The reset segment was not accepted by the socket: the connection lives on.
    pub const NOT_ACCEPTED: u16 = 1 << 5;
    /// `trace_id` and `span_id` were read from the connection's own bytes.
    pub const TRACE_FROM_HTTP: u16 = 1 << 6;
    /// The context on the wire came in (the parent of this side's span), else it went out (the client's own span).
    pub const TRACE_INCOMING: u16 = 1 << 7;
    /// `reason` counts in `enum skb_drop_reason`, else in `enum sk_rst_reason`.
    pub const REASON_IS_DROP: u16 = 1 << 8;
    /// The firewall rejected what this host had sent: the reset goes to this host, and `local` is where it goes.
    pub const OWN_FIREWALL: u16 = 1 << 9;
    /// This end's data moved last, by at least a tick of the kernel's clock (`lsndtime`, `lrcvtime`).
    pub const SENT_LAST: u16 = 1 << 14;
    /// The other end's data moved last, by as much.
    pub const RECEIVED_LAST: u16 = 1 << 15;
}

/// One reset as the kernel saw it. 232 bytes, no padding; every number in the host's byte order except the
/// addresses, which are in network order (IPv4 in the last four bytes after `::ffff:`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct ResetRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Bits of [`flag`].
    pub flags: u16,
    /// The kernel's reason by number, or [`UNKNOWN_REASON`].
    pub reason: u16,
    /// When, in ns of the clock that the flags name.
    pub time_ns: u64,
    /// From establishment to the reset, or [`UNKNOWN_U64`].
    pub duration_ns: u64,
    /// From this end's close to the reset that its TIME_WAIT sent, ns, or [`UNKNOWN_U64`].
    pub closed_ns: u64,
    /// Identity of the socket (its kernel address, hashed into nothing and never exported), 0 without one.
    pub socket: u64,
    /// `tcp_sock.bytes_sent`, or [`UNKNOWN_U64`].
    pub bytes_sent: u64,
    /// `tcp_sock.bytes_received`, or [`UNKNOWN_U64`].
    pub bytes_received: u64,
    /// cgroup v2 id of the socket, 0 when not known.
    pub cgroup_id: u64,
    /// Address of the credentials that opened the socket's file, 0 without one: names a process (see `OwnerSource`).
    pub credential: u64,
    /// Address of the listener whose process is the owner, 0 where it is not a listener's: another process may hold it by now.
    pub listener: u64,
    /// Start of the owner, ns of CLOCK_BOOTTIME, 0 without one.
    pub owner_start_ns: u64,
    /// This host's end.
    pub local_address: [u8; 16],
    /// The other end.
    pub peer_address: [u8; 16],
    /// Name of the owner's main thread, closed by a zero.
    pub owner_comm: [u8; COMM_LEN],
    /// Name of the actor's main thread where `actor_pid` is set, closed by a zero.
    pub actor_comm: [u8; COMM_LEN],
    /// W3C trace id, zeros when not known.
    pub trace_id: [u8; 16],
    /// W3C parent or span id, zeros when not known.
    pub span_id: [u8; 8],
    /// Process (thread group) that owns the socket, in the first pid namespace, 0 when not known.
    pub owner_pid: u32,
    /// Process that acted, where it is not the owner (`ss -K`), 0 otherwise.
    pub actor_pid: u32,
    /// Thread of `actor_pid` or `owner_pid` that was in the kernel for this reset, 0 outside process context.
    pub thread_id: u32,
    /// Exit status of the owner's process where the flags have [`flag::EXITING`], as `waitpid` returns it: the signal in the
    /// low seven bits, the exit code in the next byte. Else 0.
    pub exit_code: u32,
    /// Inode of the network namespace, 0 when not known.
    pub network_namespace: u32,
    /// Received and not read, bytes.
    pub unread_bytes: u32,
    /// Written and not sent, bytes.
    pub unsent_bytes: u32,
    /// Sent and not acknowledged, bytes.
    pub unacked_bytes: u32,
    /// `tcp_sock.total_retrans`, segments.
    pub retransmits: u32,
    /// Smoothed round trip, µs; 0 is no sample.
    pub smoothed_rtt_us: u32,
    /// Sequence number of the reset segment where it is known, else 0.
    pub sequence: u32,
    /// Port of this host's end.
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// [`Direction`] by number.
    pub direction: u8,
    /// [`Origin`] by number.
    pub origin: u8,
    /// [`Cause`] by number.
    pub cause: u8,
    /// [`State`] before the reset by number, 0 when not known.
    pub state: u8,
    /// 4 or 6: the version of the IP header.
    pub ip_version: u8,
    /// [`Hook`] by number.
    pub hook: u8,
    /// [`OwnerSource`] by number.
    pub owner_source: u8,
    /// TCP flags of the segment that was answered or received, 0 when not known.
    pub segment_flags: u8,
}

/// Length of a record in the ring buffer, bytes.
pub const RECORD_LEN: usize = core::mem::size_of::<ResetRecord>();
const _: () = assert!(RECORD_LEN == 232);

/// Counters of resets, per CPU, before any filter: one for each cause, origin and direction.
pub const COUNTERS: u32 = (Cause::ALL.len() * Origin::ALL.len() * Direction::ALL.len()) as u32;

/// Index of a reset's counter, below [`COUNTERS`].
pub const fn counter_index(cause: Cause, origin: Origin, direction: Direction) -> u32 {
    (cause as u32 * Origin::ALL.len() as u32 + origin as u32) * Direction::ALL.len() as u32 + direction as u32
}
