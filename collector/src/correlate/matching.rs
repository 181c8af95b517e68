//! Whether a span fits a reset: pure, with every rule in one place.
//!
//! A wrong trace is worse than none. A span matches with certainty only if it names the connection itself: its peer
//! address and port (server spans: the client's port is the connection's own), or both ends in the text of its error
//! (Go). All else must be shown by the span's own failure, near the reset:
//!
//! - A call that says "connection reset" or "refused" had a reset of its own, and every reset is span: where only one
//!   came to its process from its server in its time, that one is the call's ([`MatchStrength::Failed`]).
//! - A call that failed otherwise (the end of a stream, a timeout) may have had none. It counts only where the
//!   connection began and ended with it, or was its alone, and once every call that ended by then has passed
//!   ([`MatchStrength::Probable`]); else it is one that may be meant ([`MatchStrength::Possible`]).
//!
//! Which spans there are is [`crate::correlate`]'s business.

use std::{ops::Range, time::Duration};

use crate::{
    correlate::{
        failure::Failure,
        span_info::{Host, SpanInfo, SpanSide},
    },
    model::{Cause, Direction, Endpoint, OwnerSource, Reset, State, Trace},
};

/// Server spans of Flask, FastAPI and Node end up to 3 ms before the reset of the request that they are about.
const SERVER_TOLERANCE: Duration = Duration::from_millis(5);
/// Clocks of one host, read in two places.
const CLOCK_SKEW: Duration = Duration::from_millis(2);
/// A call fails this soon after the reset of its connection, on a machine that has much else to do; what fails later has
/// another reason.
const RESET_TOLERANCE: Duration = Duration::from_secs(1);
/// The same for a call that does not say that it was reset: a connection may have ended otherwise.
const SHORT_TOLERANCE: Duration = Duration::from_millis(100);

/// A server that ends a request with its body unread sends the end of the stream first and closes later (Go: half a
/// second); a client that gave up resets when the answer comes.
const CLOSE_TOLERANCE: Duration = Duration::from_secs(1);
/// A client closes this near its call's end where nothing else ties the two.
const CLOSE_AT_END_TOLERANCE: Duration = Duration::from_millis(20);

/// How well a span fits a reset; each is stronger than those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MatchStrength {
    /// It is not this span's reset, or nothing says so.
    No,
    /// A connection attempt in a call that went well: its own, if no other call could have made it.
    Attempt,
    /// The span failed at that time, and need not have had a reset at all: one that may be meant, never the one.
    Possible,
    /// The same, and the connection began and ended with it, or (a server's call) lived when it began and was cancelled
    /// just after: its own, if no other span is even suspect.
    Probable,
    /// The span says that it was reset or refused, so that it had such a reset: its own, if no other says so.
    Failed,
    /// The very connection, just after the span's end, in a way that shows its request was open: its own, if no other
    /// span of the connection holds the reset.
    Late,
    /// The very connection, at a time within the span.
    Certain,
}

/// Whether a span could ever fit: not where nobody holds the connection, or where it lives on.
pub fn can_have_span(reset: &Reset) -> bool {
    let accepted = reset.owner.is_some_and(|owner| !matches!(owner.source, OwnerSource::None | OwnerSource::Listener));
    let connection = !matches!(
        reset.cause,
        Cause::PortClosed | Cause::ListenerClosed | Cause::AcceptQueueOverflow | Cause::UnmatchedReset
    );
    accepted && connection && !reset.not_accepted && reset.state != Some(State::Listen)
}

/// How well a span of the process that holds the connection fits its reset.
pub fn strength(span: &SpanInfo, reset: &Reset) -> MatchStrength {
    if reset.not_accepted {
        return MatchStrength::No;
    }
    if let Some(trace) = &reset.trace {
        return strength_of_context(span, reset, trace);
    }
    // A server span may tell of a call that it made itself: that call's own span has the reset.
    let own = |(local, _): &(Endpoint, Endpoint)| span.side == SpanSide::Client || span.server.port == Some(local.port);
    if let Some(connection) = span.connection.filter(own) {
        let named = connection == (reset.local, reset.peer) && holds(span, reset.time_unix_ns);
        return if named { MatchStrength::Certain } else { MatchStrength::No };
    }
    match (span.side, span.peer) {
        (SpanSide::Neither, _) => MatchStrength::No,
        (SpanSide::Server, Some(peer)) if peer == reset.peer => strength_of_own_connection(span, reset),
        (SpanSide::Server, Some(_)) => MatchStrength::No,
        (SpanSide::Server, None) if span.server.port.is_some_and(|port| port != reset.local.port) => MatchStrength::No,
        (SpanSide::Server, None) => strength_of_failure(span, reset),
        (SpanSide::Client, _) if !is_server(span, reset) => MatchStrength::No,
        (SpanSide::Client, _) => strength_of_failure(span, reset).max(strength_of_attempt(span, reset)),
    }
}

/// How well a span fits a reset when nobody knows which process sent the span: only where the two ends are named.
pub fn strength_of_named(span: &SpanInfo, reset: &Reset) -> MatchStrength {
    let port = span.side == SpanSide::Server && span.server.port == Some(reset.local.port);
    let named = port || span.connection.is_some() || reset.trace.is_some();
    if named && strength(span, reset) == MatchStrength::Certain { MatchStrength::Certain } else { MatchStrength::No }
}

/// The context was read from the connection: the client's own span, or the parent of the server's.
fn strength_of_context(span: &SpanInfo, reset: &Reset, trace: &Trace) -> MatchStrength {
    let differs = |port: Option<u16>, own: u16| port.is_some_and(|port| port != own);
    // One process may be both ends: what it served is no reset of its own call, nor the other way round.
    let found = span.trace_id == trace.trace_id
        && trace.incoming == (span.side == SpanSide::Server)
        && if trace.incoming {
            trace.span_id == Some(span.parent_span_id) && !differs(span.peer.map(|peer| peer.port), reset.peer.port)
        } else {
            let port = if span.side == SpanSide::Client { span.server.port } else { None };
            trace.span_id == Some(span.span_id) && !differs(port, reset.peer.port)
        };
    if found { MatchStrength::Certain } else { MatchStrength::No }
}

/// A server span whose peer is the reset's: the connection is its own, only the time is to be judged.
fn strength_of_own_connection(span: &SpanInfo, reset: &Reset) -> MatchStrength {
    let time = reset.time_unix_ns;
    // The same port, an earlier connection: a request is on one that has been established.
    let earlier = established(reset)
        .is_some_and(|established| established > span.start_unix_ns.saturating_add(nanoseconds(CLOCK_SKEW)));
    if earlier || time < span.start_unix_ns {
        return MatchStrength::No;
    }
    if time <= span.end_unix_ns {
        return MatchStrength::Certain;
    }
    let after = time - span.end_unix_ns;
    let sent = reset.direction == Direction::Transmit;
    let left_unread = sent && reset.cause == Cause::ClosedWithUnreadData;
    // Node's spans start at a whole millisecond, up to one early, and end as much too early.
    let coarse = span.start_unix_ns.is_multiple_of(1_000_000) && after < 1_000_000;
    let cut_short = sent && coarse && reset.connection.unsent_bytes.is_some_and(|unsent| unsent > 0);
    // The answer to the last request that came had not begun.
    let asked = coarse && reset.connection.last_data == Some(Direction::Receive);
    let unanswered = reset.connection.bytes_sent == Some(0) && reset.connection.bytes_received.is_some_and(|n| n > 0);
    let unacked = reset.connection.unacked_bytes.is_some_and(|unacked| unacked > 0);
    // The client had left before the answer was written.
    let unwanted = !sent && reset.state == Some(State::CloseWait) && unacked;
    let open = left_unread || cut_short || asked || unanswered || unwanted || failure_fits(span, reset);
    // With the end of the stream sent, no other request can have begun: the rest of this one's body lies there.
    let ended = matches!(reset.state, Some(State::FinWait1 | State::FinWait2));
    let rest_came = sent && ended && reset.cause == Cause::DataAfterClose;
    let late = match (left_unread, rest_came) {
        (true, _) if ended => CLOSE_TOLERANCE,
        (_, true) => SHORT_TOLERANCE,
        _ => SERVER_TOLERANCE,
    };
    if after <= nanoseconds(late) && (open || rest_came) { MatchStrength::Late } else { MatchStrength::No }
}

/// A span that does not name its connection: its failure must be such as the reset makes, and at its time.
fn strength_of_failure(span: &SpanInfo, reset: &Reset) -> MatchStrength {
    let near = match span.failure {
        // A refused attempt may be tried again for long within one call.
        Failure::Refused => Duration::MAX,
        Failure::Reset => RESET_TOLERANCE,
        _ => SHORT_TOLERANCE,
    };
    let broke = broke(reset);
    let near = u128::from(span.end_unix_ns.saturating_sub(broke)) <= near.as_nanos();
    let left = matches!(span.failure, Failure::Cancelled | Failure::ConnectionLost) && has_left(span, reset);
    let in_time = holds(span, broke) || left;
    if !(in_time && near && failure_fits(span, reset)) {
        return MatchStrength::No;
    }
    // A server's call may tell of a call that it made itself.
    if span.side == SpanSide::Client && matches!(span.failure, Failure::Refused | Failure::Reset) {
        MatchStrength::Failed
    } else if is_probable(span, reset) {
        MatchStrength::Probable
    } else {
        MatchStrength::Possible
    }
}

/// Whether more than the moment ties a failure that need not be a reset to the connection.
fn is_probable(span: &SpanInfo, reset: &Reset) -> bool {
    let established = established(reset);
    match span.side {
        // The connection was made for this call, and reset while the call still sent: then the error is spent on a
        // write, and the read that follows meets the end of the stream. Or this end gave up and closed.
        SpanSide::Client => {
            let began = |at| holds(span, at) && at <= span.start_unix_ns.saturating_add(nanoseconds(SHORT_TOLERANCE));
            let sending = [reset.connection.unsent_bytes, reset.connection.unacked_bytes];
            let broke =
                span.failure == Failure::ConnectionLost && sending.iter().any(|bytes| bytes.is_some_and(|n| n > 0));
            let closed = reset.direction == Direction::Transmit
                && match span.failure {
                    Failure::Cancelled => true,
                    // Node's words for a request that the application destroyed.
                    Failure::ConnectionLost => reset.cause == Cause::DataAfterClose,
                    _ => false,
                };
            established.is_some_and(began) && (broke || closed) || closed && was_first(span, reset)
        }
        SpanSide::Server => {
            span.failure == Failure::Cancelled
                && reset.direction == Direction::Receive
                && established
                    .is_none_or(|established| established <= span.start_unix_ns.saturating_add(nanoseconds(CLOCK_SKEW)))
                && reset.time_unix_ns <= span.end_unix_ns.saturating_add(nanoseconds(CLOCK_SKEW))
        }
        SpanSide::Neither => false,
    }
}

/// A pool may connect ahead of its calls: nothing had ever come on the connection, so that its one request was open
/// when it was closed, which was at the call's end.
fn was_first(span: &SpanInfo, reset: &Reset) -> bool {
    reset.connection.bytes_received == Some(0)
        && reset.connection.bytes_sent.is_some_and(|bytes| bytes > 0)
        && reset.connection.closed_ns.is_some()
        && broke(reset).abs_diff(span.end_unix_ns) <= nanoseconds(CLOSE_AT_END_TOLERANCE)
        && established(reset).is_some_and(|established| established <= span.start_unix_ns)
}

/// When the connection broke, ns since 1970: at the reset, or before it, when this end closed.
fn broke(reset: &Reset) -> u64 {
    let closed = reset.connection.closed_ns.filter(|_| reset.cause == Cause::DataAfterClose);
    reset.time_unix_ns.saturating_sub(closed.unwrap_or(0))
}

/// When the connection was established, ns since 1970.
fn established(reset: &Reset) -> Option<u64> {
    reset.connection.duration_ns.map(|duration| reset.time_unix_ns.saturating_sub(duration))
}

/// Whether a span that has passed ended so long after the connection that every span which ended near it has been
/// exported before: SDKs export spans in the order of their ends.
pub fn ends_well_after(span: &SpanInfo, reset: &Reset) -> bool {
    well_after(reset).contains(&span.end_unix_ns)
}

/// The ends of such spans, ns since 1970.
pub(crate) fn well_after(reset: &Reset) -> Range<u64> {
    const BEYOND_ANY_RANGE: Duration = Duration::from_secs(3600);
    let broke = broke(reset);
    broke.saturating_add(2 * nanoseconds(SHORT_TOLERANCE))..broke.saturating_add(nanoseconds(BEYOND_ANY_RANGE))
}

/// Whether a call that went well may have left its answer half read, so that the reset could be its own as well as
/// that of a call which gave up: neither can be said to be the one.
pub fn may_have_cancelled(span: &SpanInfo, reset: &Reset) -> bool {
    span.side == SpanSide::Client && span.failure == Failure::None && is_server(span, reset) && has_left(span, reset)
}

/// The client closed, and the answer that came afterwards was reset: the call had ended.
fn has_left(span: &SpanInfo, reset: &Reset) -> bool {
    let after = broke(reset).checked_sub(span.end_unix_ns);
    span.side == SpanSide::Client
        && reset.cause == Cause::DataAfterClose
        && after.is_some_and(|after| after <= nanoseconds(CLOSE_TOLERANCE))
        && established(reset).is_some_and(|established| established <= span.end_unix_ns)
}

/// `localhost` is tried at `::1` first: refused, and all is well at 127.0.0.1. That is at the call's beginning, and not
/// at the address that answered. Of any other name it is not known which addresses it has.
fn strength_of_attempt(span: &SpanInfo, reset: &Reset) -> MatchStrength {
    let named = span.server.port.is_some() && span.server.host == Host::Loopback;
    let attempt = reset.cause == Cause::RefusedByPeer && span.failure == Failure::None;
    let other = span.peer.is_none_or(|peer| peer.address != reset.peer.address);
    let begins = reset.time_unix_ns.saturating_sub(span.start_unix_ns) <= nanoseconds(SHORT_TOLERANCE);
    if named && attempt && other && begins && holds(span, reset.time_unix_ns) {
        MatchStrength::Attempt
    } else {
        MatchStrength::No
    }
}

/// Whether a client span may have called the reset's other end.
fn is_server(span: &SpanInfo, reset: &Reset) -> bool {
    match span.peer {
        Some(peer) if peer == reset.peer => return true,
        // The span names the address that worked in the end, not those that were refused before.
        Some(_) if reset.cause != Cause::RefusedByPeer => return false,
        _ => {}
    }
    let host = match span.server.host {
        Host::Any => true,
        Host::Loopback => reset.peer.address.is_loopback(),
        Host::Address(address) => address == reset.peer.address,
    };
    host && span.server.port.is_none_or(|port| port == reset.peer.port)
}

fn failure_fits(span: &SpanInfo, reset: &Reset) -> bool {
    let refused = reset.cause == Cause::RefusedByPeer;
    let timed_out = matches!(reset.cause, Cause::KeepaliveTimeout | Cause::UserTimeout);
    match span.failure {
        Failure::None | Failure::ErrorResponse => false,
        Failure::Refused => refused,
        Failure::Reset => !refused && (span.side == SpanSide::Server || reset.direction == Direction::Receive),
        Failure::ConnectionLost => !refused,
        // A server's call is cancelled by the reset; a client gives up and resets.
        Failure::Cancelled => span.side == SpanSide::Server || reset.direction == Direction::Transmit || timed_out,
        Failure::Other => true,
    }
}

/// The time is the span's, but for the clocks.
fn holds(span: &SpanInfo, time: u64) -> bool {
    let earliest = span.start_unix_ns.saturating_sub(nanoseconds(CLOCK_SKEW));
    let latest = span.end_unix_ns.saturating_add(nanoseconds(SERVER_TOLERANCE));
    (earliest..=latest).contains(&time)
}

const fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
