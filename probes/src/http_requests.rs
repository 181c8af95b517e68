//! The requests and responses of one connection: which request is open, and what its `traceparent` names.
//!
//! Both directions are followed by their sequence numbers, so that a byte that is sent twice is read once. Whatever does
//! not fit ends the following of the connection for good ([`Untracked`]): then no trace is named, rather than a wrong one.
//! The bytes come from segments of plain HTTP/1.1 today; another source (a TLS library's calls), or another parser of
//! requests (HTTP/2), fills the same [`HttpRequests`].
//!
//! Pure: the kernel keeps an [`HttpRequests`] with each socket (`http_hook.rs`), the tests anywhere.

use crate::http::{Context, Event, Framing, Message};

/// Requests that may be open on a connection at once; more are not followed.
pub const MAX_OPEN: usize = 16;

/// Why a connection is not followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Untracked {
    /// It is followed.
    Followed = 0,
    /// Its bytes are not HTTP/1.1, or ambiguous.
    NotHttp = 1,
    /// Bytes passed unseen where each matters.
    Gap = 2,
    /// A response that answers no request that was seen.
    Unasked = 3,
    /// More requests are open than are kept.
    TooMany = 4,
    /// It has become another protocol's: CONNECT, or 101.
    Tunnel = 5,
    /// A segment holds more lines than are read of one.
    TooLong = 6,
}

/// A request that was sent and whose response has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Request {
    context: Context,
    has_context: u32,
    /// Bits: the response to HEAD has no body (1), what follows CONNECT is no HTTP (2).
    kind: u32,
}

const IS_HEAD: u32 = 1;
const IS_CONNECT: u32 = 2;

/// What of a segment is being read. Kept with the stream and not on the stack: what lies there the verifier knows, and
/// follows the loop anew for each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// Bytes that were loaded and not taken yet, the first in the lowest bits.
    pub word: u64,
    /// How many they are.
    pub held: u32,
    /// Of the next byte in the segment.
    pub offset: u32,
    /// Bytes of the segment that are to be taken.
    pub left: u32,
    /// Zero.
    pub reserved: u32,
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stream {
    message: Message,
    /// Not 0: a CPU is at it.
    pub busy: u64,
    /// Of whoever is.
    pub window: Window,
    /// Sequence number of the next byte.
    next: u32,
    /// Sequence number after the last message that ended.
    ended: u32,
    /// 1: the end of the stream has been seen; it takes a sequence number.
    closed: u32,
    _padding: u32,
}

/// Where the bytes of a segment lie in their stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// They have been seen.
    Seen,
    /// From this offset on they are new.
    From(u32),
    /// They cannot be followed.
    Untracked,
}

/// A socket's view of its streams (sequence numbers of `struct tcp_sock`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The next byte to be received.
    pub rcv_nxt: u32,
    /// The next byte to be read by the application.
    pub copied_seq: u32,
    /// The next byte to be sent.
    pub snd_nxt: u32,
    /// The first byte that is not acknowledged.
    pub snd_una: u32,
}

/// The requests and responses of a connection; all zeros before the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HttpRequests {
    requests: Stream,
    responses: Stream,
    /// Requests whose head has been read; written by the requests' side alone.
    asked: u32,
    /// Responses that have ended; written by the responses' side alone.
    answered: u32,
    /// A number of [`Untracked`].
    lost: u32,
    /// 0: not begun; 1: this end is the client; 2: it is the server.
    role: u32,
    open: [Request; MAX_OPEN],
}

const CLIENT: u32 = 1;
const SERVER: u32 = 2;

impl HttpRequests {
    /// Begins to follow a connection, whose first bytes have these sequence numbers.
    #[inline(always)]
    pub fn begin(&mut self, is_client: bool, first_sent: u32, first_received: u32) {
        let (requests, responses) = if is_client { (first_sent, first_received) } else { (first_received, first_sent) };
        self.requests.next = requests;
        self.requests.ended = requests;
        self.responses.next = responses;
        self.responses.ended = responses;
        self.role = if is_client { CLIENT } else { SERVER };
    }

    /// Whether [`Self::begin`] has been called.
    #[inline(always)]
    pub const fn has_begun(&self) -> bool {
        self.role != 0
    }

    /// Whether this end of the connection asks.
    #[inline(always)]
    pub const fn is_client(&self) -> bool {
        self.role == CLIENT
    }

    /// Whether the connection is not followed any more.
    #[inline(always)]
    pub const fn is_lost(&self) -> bool {
        self.lost != 0
    }

    /// Ends the following for good.
    #[inline(always)]
    pub fn stop_tracking(&mut self, why: Untracked) {
        self.lost = why as u32;
    }

    /// One direction.
    #[inline(always)]
    pub fn stream<const REQUESTS: bool>(&mut self) -> &mut Stream {
        if REQUESTS { &mut self.requests } else { &mut self.responses }
    }

    /// Where a segment's bytes lie. A gap is skipped where only a body's bytes lie in it.
    #[inline(always)]
    pub fn align<const REQUESTS: bool>(&mut self, sequence: u32, length: u32) -> Alignment {
        let stream = self.stream::<REQUESTS>();
        let ahead = sequence.wrapping_sub(stream.next) as i32;
        if ahead <= 0 {
            let seen = ahead.unsigned_abs();
            return if seen >= length { Alignment::Seen } else { Alignment::From(seen) };
        }
        let gap = ahead as u32;
        if stream.message.body_bytes(gap) != gap {
            self.stop_tracking(Untracked::Gap);
            return Alignment::Untracked;
        }
        self.pass::<REQUESTS>(gap);
        Alignment::From(0)
    }

    /// Skips bytes of a body; how many there were of those available.
    #[inline(always)]
    pub fn pass<const REQUESTS: bool>(&mut self, available: u32) -> u32 {
        let stream = self.stream::<REQUESTS>();
        let count = stream.message.body_bytes(available);
        if count > 0 {
            stream.next = stream.next.wrapping_add(count);
            let event = stream.message.pass(count);
            self.meet::<REQUESTS>(event);
        }
        count
    }

    /// Whether more than one byte may be taken at a time.
    #[inline(always)]
    pub fn wants_words<const REQUESTS: bool>(&mut self) -> bool {
        self.stream::<REQUESTS>().message.wants_words()
    }

    /// Takes bytes that are not of a body, as [`Message::take`] does; how many.
    #[inline(always)]
    pub fn take<const REQUESTS: bool>(&mut self, word: u64, held: u32) -> u32 {
        let stream = self.stream::<REQUESTS>();
        let step = stream.message.take(REQUESTS, word, held);
        stream.next = stream.next.wrapping_add(step.taken);
        let event = match step.event {
            Event::Head if REQUESTS => self.request_begins(),
            Event::Head => self.response_begins(),
            event => event,
        };
        self.meet::<REQUESTS>(event);
        step.taken
    }

    /// The end of a stream has been seen, after all of its bytes.
    #[inline(always)]
    pub fn close<const REQUESTS: bool>(&mut self) {
        let stream = self.stream::<REQUESTS>();
        stream.closed = 1;
        if stream.message.ends_with_connection() {
            let event = stream.message.expect_no_body();
            self.meet::<REQUESTS>(event);
        }
    }

    #[inline(always)]
    fn meet<const REQUESTS: bool>(&mut self, event: Event) {
        match event {
            Event::End => {
                let stream = self.stream::<REQUESTS>();
                stream.ended = stream.next;
                if !REQUESTS {
                    self.response_ends();
                }
            }
            Event::NotHttp => self.stop_tracking(Untracked::NotHttp),
            Event::None | Event::Head => {}
        }
    }

    /// A request's head has been read: it is open from now on.
    #[inline(always)]
    fn request_begins(&mut self) -> Event {
        if self.asked.wrapping_sub(self.answered) >= MAX_OPEN as u32 {
            self.stop_tracking(Untracked::TooMany);
            return Event::None;
        }
        let message = &mut self.requests.message;
        let kind = if message.is_head() { IS_HEAD } else { 0 } | if message.is_connect() { IS_CONNECT } else { 0 };
        let context = message.context();
        if let Some(request) = self.open.get_mut(self.asked as usize % MAX_OPEN) {
            request.kind = kind;
            request.has_context = context.is_some() as u32;
            request.context = context.unwrap_or_default();
        }
        self.asked = self.asked.wrapping_add(1);
        self.requests.message.expect_body()
    }

    /// A response's head has been read: what follows depends on what it answers (RFC 9112 6.3).
    #[inline(always)]
    fn response_begins(&mut self) -> Event {
        if self.asked == self.answered {
            self.stop_tracking(Untracked::Unasked);
            return Event::None;
        }
        let kind = self.open.get(self.answered as usize % MAX_OPEN).map_or(0, |request| request.kind);
        let message = &mut self.responses.message;
        match message.status() {
            101 => {
                self.stop_tracking(Untracked::Tunnel);
                Event::None
            }
            // Another head follows for the same request.
            100..=199 => {
                message.expect_no_body();
                Event::None
            }
            200..=299 if kind & IS_CONNECT != 0 => {
                self.stop_tracking(Untracked::Tunnel);
                Event::None
            }
            204 | 304 => message.expect_no_body(),
            200..=999 if kind & IS_HEAD != 0 => message.expect_no_body(),
            200..=999 if message.framing() == Framing::Unnamed => message.expect_the_rest(),
            200..=999 => message.expect_body(),
            _ => Event::NotHttp,
        }
    }

    #[inline(always)]
    fn response_ends(&mut self) {
        self.answered = self.answered.wrapping_add(1);
    }

    /// What the request names that a reset breaks: the oldest that is open. `sends`: this end sends the reset.
    ///
    /// `None` where none is open, where it has no valid `traceparent`, and where bytes passed that were not seen.
    #[inline(always)]
    pub fn broken(&self, at: &Position, sends: bool) -> Option<Context> {
        if self.lost != 0 || self.role == 0 || !self.has_seen_all(at) {
            return None;
        }
        let number = if self.asked != self.answered {
            self.answered
        } else if self.asked != 0 && self.is_last_open(at, sends) {
            self.answered.wrapping_sub(1)
        } else {
            return None;
        };
        let request = self.open.get(number as usize % MAX_OPEN)?;
        (request.has_context != 0).then_some(request.context)
    }

    /// Whether no byte has passed that was not looked at.
    #[inline(always)]
    fn has_seen_all(&self, at: &Position) -> bool {
        let (sent, received) =
            if self.is_client() { (&self.requests, &self.responses) } else { (&self.responses, &self.requests) };
        !is_before(sent.next.wrapping_add(sent.closed), at.snd_nxt)
            && !is_before(received.next.wrapping_add(received.closed), at.rcv_nxt)
    }

    /// Whether the last request is open though its response has passed: a part of it, or of its response, has not come
    /// where it belongs.
    #[inline(always)]
    fn is_last_open(&self, at: &Position, sends: bool) -> bool {
        // The response came before the request had ended.
        if self.requests.message.is_in_body() {
            return true;
        }
        if self.is_client() {
            is_before(at.snd_una, self.requests.ended)
                || is_before(at.rcv_nxt, self.responses.ended)
                // The application leaves the response unread.
                || sends && is_before(at.copied_seq, self.responses.ended)
        } else {
            // The application leaves a part of the request unread.
            sends && is_before(at.copied_seq, self.requests.ended)
        }
    }
}

/// Whether a sequence number comes before another (RFC 9293 3.4).
#[inline(always)]
const fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

#[cfg(test)]
mod tests;
