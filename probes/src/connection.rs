//! A socket at a tracepoint: its state, what it shows when it aborts, and what is kept of it from before.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock, bpf_sock_from_file};
use reset_collector_probes::{ResetRecord, State, UNKNOWN_U32, UNKNOWN_U64, cause::Aborting, field::Field};

use crate::{
    ends::Ends,
    map::{forget, kept, kept_or_new},
    owner::{self, Task},
    read::{argument, has, load, load_words},
    segment::mapped,
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The low byte of IPPROTO_TCP (6) and of IPPROTO_MPTCP (262).
const PROTOCOL_LOW_BYTE: u8 = 6;
/// `SHUTDOWN_MASK` and `RCV_SHUTDOWN` (include/net/sock.h)
const SHUTDOWN_MASK: u8 = 3;
const RCV_SHUTDOWN: u8 = 1;
/// Bits of `sk_flags` (`enum sock_flags`, include/net/sock.h).
const SOCK_DEAD: u32 = 1 << 0;
const SOCK_DONE: u32 = 1 << 1;
const SOCK_KEEPOPEN: u32 = 1 << 3;
const SOCK_LINGER: u32 = 1 << 4;

/// A socket; only `sock_common` may be read before the state has shown that it is a full one.
#[derive(Clone, Copy)]
pub(crate) struct Socket(*const u8);

impl Socket {
    /// The tracepoint's argument, unless it is null.
    #[inline(always)]
    pub(crate) fn from_argument(context: *const core::ffi::c_void, number: usize) -> Option<Self> {
        let pointer = argument(context, number) as *const u8;
        (!pointer.is_null()).then_some(Self(pointer))
    }

    #[inline(always)]
    pub(crate) fn pointer(self) -> *const u8 {
        self.0
    }

    /// `skc_state`
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        load(self.0, Field::SkState)
    }

    #[inline(always)]
    fn flags(self) -> u32 {
        load(self.0, Field::SkFlags)
    }

    /// `sk_lock.owned`: the socket is held from process context.
    #[inline(always)]
    pub(crate) fn is_owned(self) -> bool {
        load::<u32>(self.0, Field::SkLockOwned) & 1 != 0
    }

    #[inline(always)]
    pub(crate) fn receive_is_shut(self) -> bool {
        load::<u8>(self.0, Field::SkShutdown) & RCV_SHUTDOWN != 0
    }

    #[inline(always)]
    pub(crate) fn accept_queue_is_full(self) -> bool {
        load::<u32>(self.0, Field::SkAckBacklog) > load::<u32>(self.0, Field::SkMaxAckBacklog)
    }

    /// The state before CLOSE, and whether tcp_reset() was called for data after close.
    #[inline(always)]
    pub(crate) fn before_close(self) -> (Option<State>, bool) {
        match kept(self.0) {
            Some(kept) => (State::from_number(kept.state_before), kept.receive_in_doubt != 0),
            None => (None, false),
        }
    }

    /// TCP_LINGER2 below 0: the connection ends when its FIN is acknowledged.
    #[inline(always)]
    pub(crate) fn linger2_is_negative(self) -> bool {
        let tcp = self.tcp();
        !tcp.is_null() && load::<i32>(tcp, Field::TcpLinger2) < 0
    }

    /// A socket of a task's file, if it is TCP's.
    #[inline(always)]
    pub(crate) fn of_file(file: *const u8) -> Option<Self> {
        // SAFETY: a plain helper; the verifier knows `file` as the iterator's.
        let socket: *const u8 = unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast_const().cast();
        if socket.is_null() {
            return None;
        }
        let socket: *const u8 = load(socket, Field::SocketSk);
        if socket.is_null() {
            return None;
        }
        let family: u16 = load(socket, Field::SkFamily);
        let is_tcp = load::<u8>(socket, Field::SkProtocol) == PROTOCOL_LOW_BYTE;
        (is_tcp && (family == AF_INET || family == AF_INET6)).then_some(Self(socket))
    }

    #[inline(always)]
    pub(crate) fn tcp(self) -> *const u8 {
        // SAFETY: the helper checks that it is a full TCP socket and gives null otherwise.
        unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) }.cast_const().cast()
    }

    /// What the causes of an active reset are told apart by.
    #[inline(always)]
    pub(crate) fn aborting(self, number: u8, exiting: bool) -> Aborting {
        let flags = self.flags();
        let mut aborting = Aborting {
            closed: number == State::Closed as u8,
            fin_wait_2: number == State::FinWait2 as u8,
            owned: self.is_owned(),
            exiting,
            has_socket: load::<u64>(self.0, Field::SkSocket) != 0,
            dead: flags & SOCK_DEAD != 0,
            shutdown: load::<u8>(self.0, Field::SkShutdown) & SHUTDOWN_MASK == SHUTDOWN_MASK,
            linger_zero: flags & SOCK_LINGER != 0 && load::<u64>(self.0, Field::SkLingertime) == 0,
            keep_alive: flags & SOCK_KEEPOPEN != 0,
            ..Aborting::default()
        };
        let tcp = self.tcp();
        if !tcp.is_null() {
            aborting.linger2_negative = load::<i32>(tcp, Field::TcpLinger2) < 0;
            aborting.user_timeout = load::<u32>(tcp, Field::UserTimeout) != 0;
            aborting.unread = unread(tcp, flags) != 0;
            aborting.mptcp = has(Field::TcpIsMptcp) && load::<u8>(tcp, Field::TcpIsMptcp) & 1 != 0;
        }
        aborting
    }

    /// Both ends, from the socket itself. `skc_num` is 0 once the port is given back, `inet_sport` is not.
    #[inline(always)]
    pub(crate) fn ends(self) -> Ends {
        let tcp = self.tcp();
        let local_port =
            if tcp.is_null() { load(self.0, Field::SkNum) } else { u16::from_be(load(tcp, Field::InetSport)) };
        let peer_port = u16::from_be(load(self.0, Field::SkDport));
        let (local, peer) = if load::<u16>(self.0, Field::SkFamily) == AF_INET {
            (mapped(load(self.0, Field::SkRcvSaddr)), mapped(load(self.0, Field::SkDaddr)))
        } else {
            (load_words(self.0, Field::SkV6RcvSaddr), load_words(self.0, Field::SkV6Daddr))
        };
        Ends { local, peer, local_port, peer_port }
    }

    /// Inode of the network namespace.
    #[inline(always)]
    pub(crate) fn network_namespace(self) -> u32 {
        let namespace: *const u8 = load(self.0, Field::SkNet);
        load(namespace, Field::NetInum)
    }

    /// Writes the cgroup of a full socket.
    #[inline(always)]
    pub(crate) fn write_cgroup(self, record: &mut ResetRecord) {
        if has(Field::SkCgroup) {
            let cgroup: *const u8 = load(self.0, Field::SkCgroup);
            let node: *const u8 = load(cgroup, Field::CgroupNode);
            record.cgroup_id = load(node, Field::NodeId);
        }
    }

    /// Writes what the connection had done.
    #[inline(always)]
    pub(crate) fn write_facts(self, record: &mut ResetRecord, state: Option<State>) {
        let tcp = self.tcp();
        if tcp.is_null() {
            return;
        }
        record.bytes_sent = load(tcp, Field::TcpBytesSent);
        record.bytes_received = load(tcp, Field::TcpBytesReceived);
        record.unread_bytes = unread(tcp, self.flags());
        record.retransmits = load(tcp, Field::TcpTotalRetrans);
        record.smoothed_rtt_us = load::<u32>(tcp, Field::TcpSrttUs) >> 3;
        let next: u32 = load(tcp, Field::TcpSndNxt);
        let mut unsent = load::<u32>(tcp, Field::TcpWriteSeq).wrapping_sub(next);
        let mut unacked = next.wrapping_sub(load(tcp, Field::TcpSndUna));
        match state {
            // A FIN takes a sequence number; it stands last.
            Some(State::FinWait1 | State::Closing | State::LastAck) if unsent > 0 => unsent -= 1,
            Some(State::FinWait1 | State::Closing | State::LastAck) if unacked > 0 => unacked -= 1,
            // So does a SYN.
            Some(State::SynSent | State::SynReceived) if unacked > 0 => unacked -= 1,
            _ => {}
        }
        record.unsent_bytes = unsent;
        record.unacked_bytes = unacked;
        if let Some(kept) = kept(self.0)
            && kept.established_ns != 0
        {
            // SAFETY: a plain helper.
            record.duration_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(kept.established_ns);
        }
    }
}

/// Writes that nothing is known of what the connection had done.
#[inline(always)]
pub(crate) fn write_no_facts(record: &mut ResetRecord) {
    record.duration_ns = UNKNOWN_U64;
    record.bytes_sent = UNKNOWN_U64;
    record.bytes_received = UNKNOWN_U64;
    record.unread_bytes = UNKNOWN_U32;
    record.unsent_bytes = UNKNOWN_U32;
    record.unacked_bytes = UNKNOWN_U32;
    record.retransmits = UNKNOWN_U32;
    record.smoothed_rtt_us = 0;
}

/// Received and not read: a FIN takes a sequence number, and SOCK_DONE says that it came.
#[inline(always)]
fn unread(tcp: *const u8, flags: u32) -> u32 {
    let bytes = load::<u32>(tcp, Field::TcpRcvNxt).wrapping_sub(load(tcp, Field::TcpCopiedSeq));
    bytes.saturating_sub((flags & SOCK_DONE != 0) as u32)
}

/// Keeps what will be gone at the reset: the owner, the time of establishment, the state before CLOSE.
#[inline(always)]
pub(crate) fn state_changes(socket: Socket, old: u8, new: u8) {
    if load::<u8>(socket.0, Field::SkProtocol) != PROTOCOL_LOW_BYTE {
        return;
    }
    match State::from_number(new) {
        Some(State::SynSent | State::Listen) => {
            if let (Some(kept), Some(task)) = (kept_or_new(socket.0), Task::acting(socket)) {
                kept.owner = task.process();
                kept.socket = socket.0 as u64;
                kept.established_ns = 0;
            }
        }
        // A listener's child begins (inet_csk_clone_lock).
        Some(State::SynReceived) if old == State::Listen as u8 => forget(socket.0),
        Some(State::Established) => {
            if let Some(kept) = kept_or_new(socket.0) {
                // SAFETY: a plain helper.
                kept.established_ns = unsafe { bpf_ktime_get_ns() };
            }
        }
        // The application closes: the last time that its file is there.
        Some(State::FinWait1 | State::LastAck) => {
            if let Some(kept) = kept(socket.0)
                && kept.socket != socket.0 as u64
                && let Some(task) = Task::acting(socket)
            {
                kept.owner = task.process();
                kept.socket = socket.0 as u64;
            }
        }
        Some(State::Closed) => {
            if let Some(kept) = if socket.is_owned() { kept_or_new(socket.0) } else { kept(socket.0) } {
                kept.state_before = old;
                // tcp_time_wait ends the socket in these.
                if matches!(State::from_number(old), Some(State::FinWait2 | State::Closing)) && !socket.is_owned() {
                    owner::keep_for_time_wait(socket, &kept.owner);
                }
            }
        }
        _ => {}
    }
}
