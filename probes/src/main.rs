//! The eBPF programs: each hook reads what it needs, decides the cause, and writes one record.
//!
//! A program here owns no reading and no deciding: members are read in `read`, packets in `segment`, sockets in
//! `connection`, owners in `owner`; causes are decided in the library; records go out in `emit`.

#![no_std]
#![no_main]
#![expect(internal_features, reason = "an atomic http_requests: the target claims to have none")]
#![feature(asm_experimental_arch, core_intrinsics)]

mod clock;
mod companion;
mod connection;
mod decision;
mod drop_receiver;
mod emit;
mod http_hook;
mod listener;
mod map;
mod owner;
mod passive;
mod read;
mod segment;
mod time_wait;
mod tuple;

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use reset_collector_probes::{
    Cause, Direction, Hook, Origin, State, UNKNOWN_REASON,
    cause::{self, ReasonClass, SocketKind},
    flag,
};

use crate::{
    clock::Timestamp,
    companion::{CompanionSet, should_emit},
    connection::{FullSocket, Socket, SocketKindTag},
    emit::Draft,
    read::{argument, drop_class, is_null, reset_class},
    segment::Segment,
};

/// `TCP_NEW_SYN_RECV`: a request socket (include/net/tcp_states.h).
pub(crate) const NEW_SYN_RECV: u8 = 12;

/// `tcp_send_reset(sk, skb, reason)` from 6.10 on, in answer to a segment. The active ones have a program of their own:
/// older verifiers give up on both in one.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    answers::<false>(context, argument(context, 2) as u32 as u16);
    0
}

/// The second of its kind: see [`companion`].
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset_companion(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    answers::<true>(context, argument(context, 2) as u32 as u16);
    0
}

/// `tcp_send_reset(sk, skb, reason)` from 6.10 on, initiated by the socket.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset_active(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    aborts::<false>(context, argument(context, 2) as u32 as u16);
    0
}

/// The second of its kind: see [`companion`].
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset_active_companion(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    aborts::<true>(context, argument(context, 2) as u32 as u16);
    0
}

/// `tcp_send_reset(sk, skb)` up to 6.9: without the reason, and with full sockets only.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset_without_reason(context: BtfTracePointContext) -> i32 {
    answers::<false>(context.as_ptr(), UNKNOWN_REASON);
    0
}

/// `tcp_send_reset(sk, skb)` up to 6.9, by the socket's own will.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset_active_without_reason(context: BtfTracePointContext) -> i32 {
    aborts::<false>(context.as_ptr(), UNKNOWN_REASON);
    0
}

/// `tcp_receive_reset(sk)`: a socket accepted a reset.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_receive_reset(context: BtfTracePointContext) -> i32 {
    receives::<false>(context.as_ptr());
    0
}

/// The second of its kind: see [`companion`].
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_receive_reset_companion(context: BtfTracePointContext) -> i32 {
    receives::<true>(context.as_ptr());
    0
}

/// A reset that a socket accepted.
#[inline(always)]
fn receives<const COMPANION: bool>(context: *const c_void) {
    if !should_emit::<COMPANION>(context, CompanionSet::Receives) {
        return;
    }
    let Some(socket) = Socket::from_argument(context, 0) else { return };
    // TCP calls it with nothing else.
    let seen = Timestamp::now();
    let full = FullSocket::of(socket, seen);
    if full.is_none() {
        return;
    }
    let state = State::from_number(socket.state());
    let mut draft = Draft::new(seen, Hook::ReceiveReset, Direction::Receive, Origin::Peer, cause::of_received(state));
    draft.state = state;
    // tcp_rcv_state_process calls tcp_reset() for data after close as well: the send that follows at once retracts it.
    if matches!(state, Some(State::FinWait1 | State::FinWait2)) && socket.receive_is_shut() {
        draft.flags |= flag::RECEIVE_TENTATIVE;
    }
    draft.reset_from_peer(full);
}

/// `kfree_skb(skb, location, reason, rx_sk)` from 6.12 on: resets that came and that no connection accepted.
#[btf_tracepoint(function = "kfree_skb")]
fn kfree_skb(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    dropped(argument(context, 0) as *const u8, argument(context, 2) as u32, Socket::from_argument(context, 3));
    0
}

/// `kfree_skb(skb, location)` up to 5.16: without the reason, so that only causes that need none are known.
#[btf_tracepoint(function = "kfree_skb")]
fn kfree_skb_without_reason(context: BtfTracePointContext) -> i32 {
    let skb = argument(context.as_ptr(), 0) as *const u8;
    // What was for this host and did not reach TCP, netfilter dropped.
    let class = if segment::reached_tcp(skb) { ReasonClass::NotSpecified } else { ReasonClass::NetfilterDrop };
    dropped_as(skb, class, UNKNOWN_REASON as u32, None);
    0
}

/// `kfree_skb(skb, location, reason)` from 5.17 to 6.11.
#[btf_tracepoint(function = "kfree_skb")]
fn kfree_skb_without_socket(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    dropped(argument(context, 0) as *const u8, argument(context, 2) as u32, None);
    0
}

/// `net_dev_queue(skb)`: netfilter's own resets, which pass no function of TCP. Per packet, so the common packet leaves
/// at the first load: it has a socket.
#[btf_tracepoint(function = "net_dev_queue")]
fn net_dev_queue(context: BtfTracePointContext) -> i32 {
    let skb = argument(context.as_ptr(), 0) as *const u8;
    let Some(segment) = segment::of_firewall(skb) else { return 0 };
    if map::has_record(skb, &segment) {
        return 0;
    }
    let draft =
        Draft::new(Timestamp::now(), Hook::DeviceQueue, Direction::Transmit, Origin::Firewall, Cause::FirewallReject);
    draft.sent_by_firewall(&segment, segment::network_namespace(skb), segment::rejects_own(skb, &segment));
    0
}

/// `inet_sock_set_state(sk, oldstate, newstate)`: stores what is gone by the time of the reset.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(context: BtfTracePointContext) -> i32 {
    let context = context.as_ptr();
    if let Some(socket) = Socket::from_argument(context, 0) {
        connection::state_changes(socket, argument(context, 1) as u8, argument(context, 2) as u8);
    }
    0
}

/// `tcp_rcv_space_adjust(sk)`: a process has read data. The kernel has no hook where one accepts a connection.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn tcp_rcv_space_adjust(context: BtfTracePointContext) -> i32 {
    if let Some(socket) = Socket::from_argument(context.as_ptr(), 0) {
        owner::socket_is_read(socket);
    }
    0
}

/// `sched_process_fork(parent, child)`: new credentials, so that the process behind a socket's file is known.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(context: BtfTracePointContext) -> i32 {
    owner::process_is(argument(context.as_ptr(), 1) as *const u8);
    0
}

/// `sched_process_exec(p, old_pid, bprm)`: new credentials and a new name.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(context: BtfTracePointContext) -> i32 {
    owner::process_is(argument(context.as_ptr(), 0) as *const u8);
    0
}

/// `sched_process_exit(p)`: how the process ended; its credentials name no process any more.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(context: BtfTracePointContext) -> i32 {
    owner::process_exits(argument(context.as_ptr(), 0) as *const u8);
    0
}

/// `iter/task`: processes that were there before us, by their credentials.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn every_task(context: *const c_void) -> i32 {
    owner::process_is(argument(context, 1) as *const u8);
    0
}

/// `iter/task_file`: sockets that were there before us, by who holds them.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn every_file(context: *const c_void) -> i32 {
    let (task, file) = (argument(context, 1) as *const u8, argument(context, 3) as *const u8);
    if !task.is_null()
        && !file.is_null()
        && let Some(socket) = Socket::of_file(file)
    {
        owner::socket_is_held(socket, file, task);
        if socket.state() == State::Listen as u8 {
            listener::is_held(socket, task, map::walk());
        }
    }
    0
}

/// A reset that TCP sends in answer to a segment.
#[inline(always)]
fn answers<const COMPANION: bool>(context: *const c_void, reason: u16) {
    let skb = argument(context, 1) as *const u8;
    if is_null(context, 1) || skb.is_null() || !should_emit::<COMPANION>(context, CompanionSet::Answers) {
        return;
    }
    let Some(segment) = Segment::received(skb) else { return };
    map::record_answer(&segment);
    let seen = Timestamp::now();
    let socket = Socket::from_argument(context, 0);
    let ReplyTarget { socket_kind, tag, full, retracts } = ReplyTarget::of(socket, seen);
    let queue_full = matches!(socket_kind, SocketKind::Listener) && socket.is_some_and(Socket::accept_queue_is_full);
    let mut cause = cause::of_passive(reset_class(reason), socket_kind, segment.flags, queue_full);
    // TCP_LINGER2 below 0 ends the connection in FIN_WAIT1 under the same reason, at the ACK of its FIN.
    if matches!(cause, Cause::DataAfterClose) && segment.length == 0 && !full.is_none() && full.linger2_is_negative() {
        cause = Cause::LingerZero;
    }
    let mut draft = Draft::new(seen, Hook::SendReset, Direction::Transmit, Origin::Passive, cause);
    draft.reason = reason;
    draft.state = state_of(socket_kind);
    if retracts {
        draft.flags |= flag::RETRACTS_RECEIVE;
    }
    draft.answers(&segment, network_namespace(full, socket, skb), tag, full);
}

/// The network namespace of a segment that a socket met, or none.
#[inline(always)]
fn network_namespace(full: FullSocket, socket: Option<Socket>, skb: *const u8) -> u32 {
    if !full.is_none() {
        return full.network_namespace();
    }
    match socket {
        Some(socket) => socket.network_namespace(),
        None => segment::network_namespace(skb),
    }
}

/// The socket that a passive reset answers for.
struct ReplyTarget {
    socket_kind: SocketKind,
    tag: SocketKindTag,
    /// None where there is nothing to read.
    full: FullSocket,
    /// tcp_reset() has just been called for it without an RST.
    retracts: bool,
}

impl ReplyTarget {
    #[inline(always)]
    fn of(socket: Option<Socket>, seen: Timestamp) -> Self {
        let without = |socket_kind, tag| Self { socket_kind, tag, full: FullSocket::NONE, retracts: false };
        let Some(socket) = socket else { return without(SocketKind::None, SocketKindTag::Nothing) };
        match socket.state() {
            // No socket, where the verifier drops the check for it (`is_null`): a load through null reads as 0.
            0 => without(SocketKind::None, SocketKindTag::Nothing),
            NEW_SYN_RECV => without(SocketKind::Request, SocketKindTag::Nothing),
            number if number == State::TimeWait as u8 => without(SocketKind::TimeWait, SocketKindTag::TimeWait),
            number => {
                let full = FullSocket::of(socket, seen);
                let (mut state, mut retracts) = (State::from_number(number), false);
                if number == State::Closed as u8 {
                    let (before, tentative) = full.before_close();
                    (state, retracts) = (before.or(state), tentative);
                }
                match state {
                    Some(State::Listen) if number == State::Listen as u8 => {
                        Self { socket_kind: SocketKind::Listener, tag: SocketKindTag::Listener, full, retracts }
                    }
                    state => Self {
                        socket_kind: SocketKind::Connection(state),
                        tag: SocketKindTag::Connection,
                        full,
                        retracts,
                    },
                }
            }
        }
    }
}

/// The state in a record of this kind of socket.
#[inline(always)]
pub(crate) fn state_of(socket_kind: SocketKind) -> Option<State> {
    match socket_kind {
        SocketKind::None => None,
        SocketKind::Listener => Some(State::Listen),
        SocketKind::Request => Some(State::SynReceived),
        SocketKind::TimeWait => Some(State::TimeWait),
        SocketKind::Connection(state) => state,
    }
}

/// A reset that the socket itself initiates: there is no segment.
#[inline(always)]
fn aborts<const COMPANION: bool>(context: *const c_void, reason: u16) {
    if !is_null(context, 1) || !should_emit::<COMPANION>(context, CompanionSet::Aborts) {
        return;
    }
    let Some(socket) = Socket::from_argument(context, 0) else { return };
    // TCP calls it with nothing else.
    let seen = Timestamp::now();
    let full = FullSocket::of(socket, seen);
    if full.is_none() {
        return;
    }
    let number = socket.state();
    let before = if number == State::Closed as u8 { full.before_close().0 } else { State::from_number(number) };
    let mut full = full;
    let task = owner::Task::acting(socket);
    let mut state = full.abort_state(number);
    let status = match &task {
        Some(task) => task.exit_status(),
        None => full.owner_by_closing(&state),
    };
    state.end = status.end();
    let cause = cause::of_active(reset_class(reason), &state);
    let mut draft = Draft::new(seen, Hook::SendReset, Direction::Transmit, Origin::Active, cause);
    draft.reason = reason;
    draft.state = before;
    if state.end.is_some() {
        draft.flags |= flag::EXITING;
        draft.exit_code = status.status();
    }
    draft.aborts(full, task.is_some());
}

/// A segment freed: a reset that came, if it is one.
#[inline(always)]
fn dropped(skb: *const u8, reason: u32, receiver: Option<Socket>) {
    let class = drop_class(reason);
    if !matches!(class, ReasonClass::NotTcp) {
        dropped_as(skb, class, reason, receiver);
    }
}

#[inline(always)]
fn dropped_as(skb: *const u8, class: ReasonClass, reason: u32, receiver: Option<Socket>) {
    let Some(segment) = segment::of_dropped(skb, class) else { return };
    // Early demultiplexing's socket shows its state, but the verifier does not trust it further.
    let state = match receiver {
        Some(socket) => Some(socket.state()),
        None => match map::freed_receiver(skb, &segment, reason) {
            Some(noted) => noted.or_else(|| segment::socket_state(skb)),
            None => return,
        },
    };
    not_accepted(&segment, class, reason, state, receiver, skb);
}

/// A reset that no connection accepted. `state` is its receiver's when it came; `skb` may be null where the receiver is
/// known.
#[inline(always)]
pub(crate) fn not_accepted(
    segment: &Segment,
    class: ReasonClass,
    reason: u32,
    state: Option<u8>,
    receiver: Option<Socket>,
    skb: *const u8,
) {
    let seen = Timestamp::now();
    let socket_kind = match state {
        None => SocketKind::None,
        // A request socket's segment is freed on its listener, and its reason is its own.
        Some(state) => match (state, class) {
            (10, ReasonClass::BadSegment) => SocketKind::Request,
            (NEW_SYN_RECV, _) => SocketKind::Request,
            (10, _) => SocketKind::Listener,
            (6, _) => SocketKind::TimeWait,
            (number, _) => SocketKind::Connection(State::from_number(number)),
        },
    };
    let (tag, full) = match (socket_kind, receiver) {
        (SocketKind::TimeWait, _) => (SocketKindTag::TimeWait, FullSocket::NONE),
        (SocketKind::Connection(_), Some(socket)) => (SocketKindTag::Connection, FullSocket::of(socket, seen)),
        (SocketKind::Listener, Some(socket)) => (SocketKindTag::Listener, FullSocket::of(socket, seen)),
        _ => (SocketKindTag::Nothing, FullSocket::NONE),
    };
    let (cause, refused) = cause::of_dropped(class, socket_kind);
    let mut draft = Draft::new(seen, Hook::FreeSkb, Direction::Receive, Origin::Peer, cause);
    draft.reason = if reason < UNKNOWN_REASON as u32 { reason as u16 } else { UNKNOWN_REASON };
    draft.flags |= flag::REASON_IS_DROP | if refused { flag::NOT_ACCEPTED } else { 0 };
    draft.state = match (socket_kind, class) {
        (SocketKind::Listener, ReasonClass::NotSpecified) => Some(State::SynReceived),
        _ => state_of(socket_kind),
    };
    draft.not_accepted(segment, network_namespace(full, receiver, skb), tag, full);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_skc_to_tcp_sock` and the ring buffer's helpers want a licence that the kernel knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
