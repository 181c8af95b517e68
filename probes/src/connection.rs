//! A socket at a tracepoint: its state, its fields at an abort, and what was stored of it earlier.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock, bpf_sock_from_file};
use reset_collector_probes::{ResetRecord, State, UNKNOWN_U32, UNKNOWN_U64, cause::AbortState, field::Field, flag};

use crate::{
    clock::{Timestamp, since},
    listener::ClosingListener,
    map::{LISTENERS, forget, socket_state, socket_state_or_insert},
    owner::{ExitStatus, Process, Task, ended_owner},
    read::{argument, copy, has, has_typed_task, load, load_words},
    segment::mapped,
    time_wait,
    tuple::{Tuple, version_of},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The low byte of IPPROTO_TCP (6) and of IPPROTO_MPTCP (262).
const PROTOCOL_LOW_BYTE: u8 = 6;
/// `S_IFMT` and `S_IFSOCK` of `inode.i_mode` (include/uapi/linux/stat.h).
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
/// `SHUTDOWN_MASK` and `RCV_SHUTDOWN` (include/net/sock.h)
const SHUTDOWN_MASK: u8 = 3;
const RCV_SHUTDOWN: u8 = 1;
/// Bits of `sk_flags` (`enum sock_flags`, include/net/sock.h).
const SOCK_DEAD: u32 = 1 << 0;
/// As a bit's number.
const SOCK_DONE: u32 = 1;
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

    /// The one at an address.
    #[inline(always)]
    pub(crate) fn at(address: *const u8) -> Self {
        Self(address)
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

    /// `sk_lock.owned`: the socket is locked in process context.
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

    /// `inet_sport`, in the host's byte order. For full sockets.
    #[inline(always)]
    pub(crate) fn port(self) -> u16 {
        u16::from_be(copy(self.0, Field::InetSport))
    }

    /// A socket of a task's file, if it is TCP's.
    #[inline(always)]
    pub(crate) fn of_file(file: *const u8) -> Option<Self> {
        let (socket, family, protocol): (*const u8, u16, u8) = if has_typed_task() {
            // SAFETY: a plain helper; the verifier knows `file` as the iterator's.
            let of_file: *const u8 = unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast_const().cast();
            if of_file.is_null() {
                return None;
            }
            let socket: *const u8 = load(of_file, Field::SocketSk);
            (socket, load(socket, Field::SkFamily), load(socket, Field::SkProtocol))
        } else {
            let socket: *const u8 = copy(copied_from_file(file)?, Field::SocketSk);
            (socket, copy(socket, Field::SkFamily), copy(socket, Field::SkProtocol))
        };
        let is_tcp = protocol == PROTOCOL_LOW_BYTE && (family == AF_INET || family == AF_INET6);
        (is_tcp && !socket.is_null()).then_some(Self(socket))
    }

    #[inline(always)]
    fn tcp(self) -> *const u8 {
        // SAFETY: the helper checks that it is a full TCP socket and gives null otherwise.
        unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) }.cast_const().cast()
    }

    /// Inode of the network namespace; every kind of socket has it. Copied: see `FullSocket::inner`.
    #[inline(always)]
    pub(crate) fn network_namespace(self) -> u32 {
        let namespace: *const u8 = copy(self.0, Field::SkNet);
        copy(namespace, Field::NetInum)
    }
}

/// A file's `struct socket`, as `sock_from_file` finds it; before 5.11 no helper does. Each knows the other.
#[inline(always)]
fn copied_from_file(file: *const u8) -> Option<*const u8> {
    let inode: *const u8 = load(file, Field::FileInode);
    if load::<u16>(inode, Field::InodeMode) & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket: *const u8 = copy(file, Field::FilePrivate);
    (copy::<u64>(socket, Field::SocketFile) == file as u64).then_some(socket)
}

/// What a segment met, by how much of it can be read.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum SocketKindTag {
    /// No socket, or a request's.
    Nothing = 0,
    /// A connection in TIME_WAIT: only its tuple.
    TimeWait = 1,
    /// A listener: a full socket that is not the connection's.
    Listener = 2,
    /// The connection's own socket.
    Connection = 3,
}

/// A full socket: neither a request's nor one in TIME_WAIT; or none. Looked up once.
///
/// Not an `Option`: the compiler would leave registers of `None` unwritten, which the verifier rejects.
#[derive(Clone, Copy)]
pub(crate) struct FullSocket {
    socket: Socket,
    tcp: *const u8,
    /// The state stored with it; zeros where there is none.
    pub(crate) stored: StateCopy,
}

/// A copy of the state stored with a socket: while a pointer that may be null is in use, the verifier walks what follows the
/// look-up twice.
#[derive(Clone, Copy)]
pub(crate) struct StateCopy {
    established_ns: u64,
    pub(crate) owner: Process,
    /// Not 0: the owner is the socket's, else its listener's.
    pub(crate) is_own: u32,
    /// The socket that the owner was stored with: the listener, where it is not this socket.
    pub(crate) socket: u64,
    state_before: u8,
    receive_tentative: u8,
}

impl StateCopy {
    const NOTHING: Self =
        Self { established_ns: 0, owner: Process::NONE, is_own: 0, socket: 0, state_before: 0, receive_tentative: 0 };

    #[inline(always)]
    fn of(socket: Socket, seen: Timestamp) -> Self {
        match socket_state(socket.0) {
            Some(stored) => Self {
                established_ns: stored.established_ns,
                owner: stored.owner,
                is_own: seen.opaque((stored.socket == socket.0 as u64).into()),
                socket: stored.socket,
                state_before: stored.state_before,
                receive_tentative: stored.receive_tentative,
            },
            None => {
                let nothing = seen.opaque(0);
                let owner = Process { pid: nothing, ..Process::NONE };
                Self { established_ns: nothing.into(), owner, is_own: nothing, ..Self::NOTHING }
            }
        }
    }
}

impl FullSocket {
    pub(crate) const NONE: Self =
        Self { socket: Socket(core::ptr::null()), tcp: core::ptr::null(), stored: StateCopy::NOTHING };

    /// Looks it up; none where it is not a TCP socket.
    #[inline(always)]
    pub(crate) fn of(socket: Socket, seen: Timestamp) -> Self {
        let tcp = socket.tcp();
        if tcp.is_null() {
            return Self::NONE;
        }
        Self { socket, tcp, stored: StateCopy::of(socket, seen) }
    }

    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.tcp.is_null()
    }

    /// The socket as `tcp_sock`'s first member. A load of a pointer through the tracepoint's own argument is expensive: the
    /// verifier searches all types of the kernel by name, four times (`type_is_trusted`, 6.4 on), each time that it reaches
    /// the load.
    #[inline(always)]
    fn inner(self) -> Socket {
        Socket(self.tcp)
    }

    #[inline(always)]
    pub(crate) fn pointer(self) -> *const u8 {
        self.socket.0
    }

    /// Its `struct tcp_sock`.
    #[inline(always)]
    pub(crate) fn tcp(self) -> *const u8 {
        self.tcp
    }

    /// The state before CLOSE, and whether tcp_reset() was called for data after close.
    #[inline(always)]
    pub(crate) fn before_close(self) -> (Option<State>, bool) {
        (State::from_number(self.stored.state_before), self.stored.receive_tentative != 0)
    }

    /// TCP_LINGER2 below 0: the connection ends when its FIN is acknowledged.
    #[inline(always)]
    pub(crate) fn linger2_is_negative(self) -> bool {
        load::<i32>(self.tcp, Field::TcpLinger2) < 0
    }

    /// The fields that distinguish the causes of an active reset.
    #[inline(always)]
    pub(crate) fn abort_state(&self, number: u8) -> AbortState {
        let socket = self.inner();
        let flags = socket.flags();
        AbortState {
            closed: number == State::Closed as u8,
            fin_wait_2: number == State::FinWait2 as u8,
            owned: socket.is_owned(),
            end: None,
            has_socket: load::<u64>(socket.0, Field::SkSocket) != 0,
            dead: flags & SOCK_DEAD != 0,
            shutdown: load::<u8>(socket.0, Field::SkShutdown) & SHUTDOWN_MASK == SHUTDOWN_MASK,
            linger_zero: flags & SOCK_LINGER != 0 && load::<u64>(socket.0, Field::SkLingertime) == 0,
            keep_alive: flags & SOCK_KEEPOPEN != 0,
            linger2_negative: self.linger2_is_negative(),
            user_timeout: load::<u32>(self.tcp, Field::UserTimeout) != 0,
            unread: unread(self.tcp, flags) != 0,
            mptcp: has(Field::TcpIsMptcp) && load::<u8>(self.tcp, Field::TcpIsMptcp) & 1 != 0,
        }
    }

    /// Where the running task does not act on the socket: whoever closes the listener of a connection that waits to be
    /// accepted, or the ended process whose connection a thread of the kernel closes, becomes the owner. How it ended.
    #[inline(always)]
    pub(crate) fn owner_by_closing(&mut self, state: &AbortState) -> ExitStatus {
        if !state.closed || state.dead || state.mptcp {
            return ExitStatus::NONE;
        }
        let found = if !state.has_socket {
            ClosingListener::of_child(self)
        } else if state.owned && state.shutdown {
            ended_owner(self)
        } else {
            None
        };
        let Some((process, status)) = found else { return ExitStatus::NONE };
        self.stored.owner = process;
        self.stored.is_own = state.has_socket.into();
        self.stored.socket = 0;
        status
    }

    #[inline(always)]
    pub(crate) fn tuple(self) -> Tuple {
        tuple(self.tcp)
    }

    #[inline(always)]
    pub(crate) fn network_namespace(self) -> u32 {
        namespace_of(self.tcp)
    }

    /// The credentials that opened its file; null where it has none, as one that waits to be accepted.
    #[inline(always)]
    pub(crate) fn credential(self) -> *const u8 {
        let of_socket: *const u8 = load(self.tcp, Field::SkSocket);
        let file: *const u8 = load(of_socket, Field::SocketFile);
        load(file, Field::FileCred)
    }

    /// Writes its cgroup.
    #[inline(always)]
    pub(crate) fn write_cgroup(self, record: &mut ResetRecord) {
        record.cgroup_id = if has(Field::SkCgroup) {
            let cgroup: *const u8 = load(self.tcp, Field::SkCgroup);
            let node: *const u8 = load(cgroup, Field::CgroupNode);
            load(node, Field::NodeId)
        } else {
            0
        };
    }

    /// Writes the facts of its connection, without the owner.
    #[inline(always)]
    pub(crate) fn write_connection(self, record: &mut ResetRecord) {
        record.socket = self.pointer() as u64;
        self.write_cgroup(record);
        self.write_facts(record);
    }

    /// Writes what the connection had done; the record has the state already.
    #[inline(always)]
    fn write_facts(self, record: &mut ResetRecord) {
        let tcp = self.tcp;
        record.bytes_sent = load(tcp, Field::TcpBytesSent);
        record.bytes_received = load(tcp, Field::TcpBytesReceived);
        record.unread_bytes = unread(tcp, self.inner().flags());
        record.retransmits = load(tcp, Field::TcpTotalRetrans);
        record.smoothed_rtt_us = load::<u32>(tcp, Field::TcpSrttUs) >> 3;
        record.flags |= last_data(tcp);
        let next: u32 = load(tcp, Field::TcpSndNxt);
        let mut unsent = load::<u32>(tcp, Field::TcpWriteSeq).wrapping_sub(next);
        let mut unacked = next.wrapping_sub(load(tcp, Field::TcpSndUna));
        let state = 1u32 << (record.state & 15);
        if state & SENDS_FIN != 0 && unsent > 0 {
            unsent -= 1;
        } else if state & (SENDS_FIN | SENDS_SYN) != 0 && unacked > 0 {
            unacked -= 1;
        }
        record.unsent_bytes = unsent;
        record.unacked_bytes = unacked;
        record.closed_ns = UNKNOWN_U64;
        record.duration_ns = since(self.stored.established_ns);
    }
}

/// Both ends, from the socket itself. `skc_num` is 0 once the port is given back, `inet_sport` is not.
#[inline(always)]
pub(crate) fn tuple(tcp: *const u8) -> Tuple {
    let (local, peer, version) = if load::<u16>(tcp, Field::SkFamily) == AF_INET {
        (mapped(load(tcp, Field::SkRcvSaddr)), mapped(load(tcp, Field::SkDaddr)), 4)
    } else {
        let local = load_words(tcp, Field::SkV6RcvSaddr);
        (local, load_words(tcp, Field::SkV6Daddr), version_of(&local))
    };
    let local_port = u16::from_be(load(tcp, Field::InetSport));
    Tuple { local, peer, local_port, peer_port: u16::from_be(load(tcp, Field::SkDport)), version }
}

#[inline(always)]
pub(crate) fn namespace_of(tcp: *const u8) -> u32 {
    let namespace: *const u8 = load(tcp, Field::SkNet);
    load(namespace, Field::NetInum)
}

/// States with a FIN on its way: it takes a sequence number, the last one.
const SENDS_FIN: u32 = 1 << State::FinWait1 as u32 | 1 << State::Closing as u32 | 1 << State::LastAck as u32;
/// States with a SYN on its way: so does it.
const SENDS_SYN: u32 = 1 << State::SynSent as u32 | 1 << State::SynReceived as u32;

/// Writes that the facts of the connection are unknown.
#[inline(always)]
pub(crate) fn write_no_facts(record: &mut ResetRecord) {
    record.duration_ns = UNKNOWN_U64;
    record.closed_ns = UNKNOWN_U64;
    record.bytes_sent = UNKNOWN_U64;
    record.bytes_received = UNKNOWN_U64;
    record.unread_bytes = UNKNOWN_U32;
    record.unsent_bytes = UNKNOWN_U32;
    record.unacked_bytes = UNKNOWN_U32;
    record.retransmits = UNKNOWN_U32;
    record.smoothed_rtt_us = 0;
}

/// Received and not read: a FIN takes a sequence number, and SOCK_DONE shows that it arrived.
#[inline(always)]
fn unread(tcp: *const u8, flags: u32) -> u32 {
    let bytes = load::<u32>(tcp, Field::TcpRcvNxt).wrapping_sub(load(tcp, Field::TcpCopiedSeq));
    bytes.saturating_sub(flags >> SOCK_DONE & 1)
}

/// The flag of the direction of the last data.
#[inline(always)]
pub(crate) fn last_data(tcp: *const u8) -> u16 {
    match load::<u32>(tcp, Field::TcpLastSent).wrapping_sub(load(tcp, Field::LastReceived)).cast_signed() {
        1.. => flag::SENT_LAST,
        0 => 0,
        _ => flag::RECEIVED_LAST,
    }
}

/// Stores what will be gone at the reset: the owner, the time of establishment, the state before CLOSE.
#[inline(always)]
pub(crate) fn state_changes(socket: Socket, old: u8, new: u8) {
    if load::<u8>(socket.0, Field::SkProtocol) != PROTOCOL_LOW_BYTE {
        return;
    }
    match State::from_number(new) {
        Some(State::SynSent | State::Listen) => {
            if new == State::Listen as u8 {
                LISTENERS.remove(&(socket.0 as u64));
            }
            if let (Some(stored), Some(task)) = (socket_state_or_insert(socket.0), Task::acting(socket)) {
                stored.owner = task.process();
                stored.socket = socket.0 as u64;
                stored.established_ns = 0;
                stored.closed_ns = 0;
            }
        }
        // A listener's child begins (inet_csk_clone_lock).
        Some(State::SynReceived) if old == State::Listen as u8 => forget(socket.0),
        Some(State::Established) => {
            if let Some(stored) = socket_state_or_insert(socket.0) {
                // SAFETY: a plain helper.
                stored.established_ns = unsafe { bpf_ktime_get_ns() };
            }
        }
        // The application closes: the last time that its file is present.
        Some(State::FinWait1 | State::LastAck) => {
            if let Some(stored) = socket_state(socket.0) {
                // SAFETY: a plain helper.
                stored.closed_ns = unsafe { bpf_ktime_get_ns() };
                if stored.socket != socket.0 as u64
                    && let Some(task) = Task::acting(socket)
                {
                    stored.owner = task.process();
                    stored.socket = socket.0 as u64;
                }
            }
        }
        Some(State::Closed) => {
            if old == State::Listen as u8 && socket.is_owned() {
                ClosingListener::begin(socket);
                return;
            }
            if let Some(stored) =
                if socket.is_owned() { socket_state_or_insert(socket.0) } else { socket_state(socket.0) }
            {
                stored.state_before = old;
                // tcp_time_wait ends the socket in these.
                if matches!(State::from_number(old), Some(State::FinWait2 | State::Closing)) {
                    // close() after shutdown(): this end has closed only now.
                    if socket.is_owned() && socket.flags() & SOCK_DEAD != 0 {
                        // SAFETY: a plain helper.
                        stored.closed_ns = unsafe { bpf_ktime_get_ns() };
                    }
                    time_wait::keep(socket.tcp(), stored);
                }
            }
        }
        _ => {}
    }
}
