//! Which socket a reset was for, on kernels whose `kfree_skb` does not pass it (before 6.12): recorded where TCP hands the
//! segment to a request or TIME_WAIT socket, a listener or a connection. A reset that a full socket refuses is emitted at the end of the
//! function that it was handed to, with the reason if it was freed with one: before 5.18 `tcp_drop` frees it
//! without one.
//!
//! None of these functions is called for the segments that an established connection expects, which are the many:
//! `tcp_rcv_established` calls `tcp_validate_incoming` off its fast path only.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use reset_collector_probes::{State, UNKNOWN_REASON, cause::ReasonClass, cause::segment::RST};

use crate::{
    NEW_SYN_RECV,
    connection::Socket,
    map::{self, DropReporter},
    not_accepted,
    read::{argument, drop_class},
    segment::Segment,
};

/// `tcp_check_req(sk, skb, req, …)`: a request socket's.
#[fentry(function = "tcp_check_req")]
fn tcp_check_req(context: FEntryContext) -> i32 {
    record_receiver(context.as_ptr(), NEW_SYN_RECV, DropReporter::Free);
    0
}

/// `tcp_timewait_state_process(tw, skb, th, …)`
#[fentry(function = "tcp_timewait_state_process")]
fn tcp_timewait_state_process(context: FEntryContext) -> i32 {
    record_receiver(context.as_ptr(), State::TimeWait as u8, DropReporter::Free);
    0
}

/// `tcp_rcv_state_process(sk, skb)`: every other state but ESTABLISHED.
#[fentry(function = "tcp_rcv_state_process")]
fn tcp_rcv_state_process(context: FEntryContext) -> i32 {
    record_full_receiver(context.as_ptr());
    0
}

/// Its end.
#[fexit(function = "tcp_rcv_state_process")]
fn tcp_rcv_state_process_end(context: FExitContext) -> i32 {
    report_refused(context.as_ptr());
    0
}

/// `tcp_validate_incoming(sk, skb, th, syn_inerr)`: whether a segment may be processed at all.
#[fentry(function = "tcp_validate_incoming")]
fn tcp_validate_incoming(context: FEntryContext) -> i32 {
    record_full_receiver(context.as_ptr());
    0
}

/// Its end.
#[fexit(function = "tcp_validate_incoming")]
fn tcp_validate_incoming_end(context: FExitContext) -> i32 {
    report_refused(context.as_ptr());
    0
}

#[inline(always)]
fn record_full_receiver(context: *const c_void) {
    if let Some(socket) = Socket::from_argument(context, 0) {
        record_receiver(context, socket.state(), DropReporter::Function);
    }
}

#[inline(always)]
fn record_receiver(context: *const c_void, state: u8, teller: DropReporter) {
    let skb = argument(context, 1) as *const u8;
    if let Some(segment) = Segment::received(skb)
        && segment.flags & RST != 0
    {
        map::record_drop_receiver(skb, &segment, state, teller);
    }
}

/// Emits the reset that the function was handed, if the socket refused it.
#[inline(always)]
fn report_refused(context: *const c_void) {
    // Its memory may be another's by now: only its address counts.
    let Some(received) = map::ended_with(argument(context, 1) as *const u8) else { return };
    let Some(socket) = Socket::from_argument(context, 0) else { return };
    // tcp_reset() closes the socket that accepts; to one that was closed it never comes.
    if socket.state() == State::Closed as u8 && received.state != State::Closed as u8 {
        return;
    }
    let class =
        if received.reason == UNKNOWN_REASON as u32 { ReasonClass::Unknown } else { drop_class(received.reason) };
    not_accepted(&received.segment, class, received.reason, Some(received.state), Some(socket), core::ptr::null());
}
