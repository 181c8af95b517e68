//! Whom a reset came for, on kernels whose `kfree_skb` does not say (before 6.12): a request or TIME_WAIT socket, a
//! listener, or a connection that is not established, noted where TCP hands the segment to it.
//!
//! None of these functions is called for the segments of an established connection, which are the many.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::fentry, programs::FEntryContext};
use reset_collector_probes::{State, cause::segment::RST};

use crate::{NEW_SYN_RECV, connection::Socket, map::note_receiver, read::argument, segment::Segment};

/// `tcp_check_req(sk, skb, req, …)`: a request socket's.
#[fentry(function = "tcp_check_req")]
fn tcp_check_req(context: FEntryContext) -> i32 {
    note(context.as_ptr(), NEW_SYN_RECV);
    0
}

/// `tcp_timewait_state_process(tw, skb, th, …)`
#[fentry(function = "tcp_timewait_state_process")]
fn tcp_timewait_state_process(context: FEntryContext) -> i32 {
    note(context.as_ptr(), State::TimeWait as u8);
    0
}

/// `tcp_rcv_state_process(sk, skb)`: every other state but ESTABLISHED.
#[fentry(function = "tcp_rcv_state_process")]
fn tcp_rcv_state_process(context: FEntryContext) -> i32 {
    let context = context.as_ptr();
    if let Some(socket) = Socket::from_argument(context, 0) {
        note(context, socket.state());
    }
    0
}

#[inline(always)]
fn note(context: *const c_void, state: u8) {
    let skb = argument(context, 1) as *const u8;
    if let Some(segment) = Segment::received(skb)
        && segment.flags & RST != 0
    {
        note_receiver(skb, &segment, state);
    }
}
