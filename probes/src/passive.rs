//! Resets that TCP sends without a socket, or for a TIME_WAIT or a request socket, on kernels whose tracepoint leaves
//! them out (before 6.10 `tcp_v4_send_reset` and `tcp_v6_send_reset` trace full sockets only): seen where these functions
//! are entered, by the same tests that they make.
//!
//! Full sockets stay the tracepoint's: each reset has one owner.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::fentry, programs::FEntryContext};
use reset_collector_probes::{
    Direction, Hook, Origin, State,
    cause::{self, ReasonClass, SocketKind, segment::RST},
};

use crate::{
    NEW_SYN_RECV,
    clock::Timestamp,
    connection::{FullSocket, Socket, SocketKindTag},
    emit::Draft,
    map, network_namespace,
    read::{argument, is_null},
    segment::{Segment, is_for_this_host, is_signed},
    state_of,
};

/// `tcp_v4_send_reset(sk, skb)`
#[fentry(function = "tcp_v4_send_reset")]
fn tcp_v4_send_reset(context: FEntryContext) -> i32 {
    answers(context.as_ptr());
    0
}

/// `tcp_v6_send_reset(sk, skb)`
#[fentry(function = "tcp_v6_send_reset")]
fn tcp_v6_send_reset(context: FEntryContext) -> i32 {
    answers(context.as_ptr());
    0
}

#[inline(always)]
fn answers(context: *const c_void) {
    let skb = argument(context, 1) as *const u8;
    let (socket_kind, tag, socket) = if is_null(context, 0) {
        (SocketKind::None, SocketKindTag::Nothing, None)
    } else {
        let Some(socket) = Socket::from_argument(context, 0) else { return };
        match socket.state() {
            NEW_SYN_RECV => (SocketKind::Request, SocketKindTag::Nothing, Some(socket)),
            number if number == State::TimeWait as u8 => (SocketKind::TimeWait, SocketKindTag::TimeWait, Some(socket)),
            _ => return,
        }
    };
    let Some(segment) = Segment::received(skb) else { return };
    map::record_answer(&segment);
    // No reset answers a reset; without a socket, only a segment for this host is answered, and one with an MD5
    // signature (RFC 2385) only where a listener has its key, which is not visible here.
    if segment.flags & RST != 0
        || (matches!(socket_kind, SocketKind::None) && !is_for_this_host(skb))
        || is_signed(skb, &segment)
    {
        return;
    }
    let cause = cause::of_passive(ReasonClass::Unknown, socket_kind, segment.flags, false);
    let mut draft = Draft::new(Timestamp::now(), Hook::PassiveSend, Direction::Transmit, Origin::Passive, cause);
    draft.state = state_of(socket_kind);
    draft.answers(&segment, network_namespace(FullSocket::NONE, socket, skb), tag, FullSocket::NONE);
}
