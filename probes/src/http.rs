//! HTTP/1.1 messages as they pass (RFC 9112): where a head ends, how long the body is, and the `traceparent` of a
//! request (W3C Trace Context). Pure and without loops: the kernel hands in up to eight bytes at a time, wherever
//! segments begin and end, and the tests do the same.
//!
//! Strict where being lenient could name a wrong trace: of whatever two parties could read in two ways (two lengths, a
//! length beside chunks, a folded header of ours) the connection is no longer followed ([`Event::NotHttp`]). Owns no knowledge of
//! connections; which request a response answers is decided in [`crate::http_requests`].

mod body;
mod head;
mod swar;
mod traceparent;

pub use traceparent::Context;

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The message goes on.
    None,
    /// The head has been read: set what body follows ([`Message::expect_body`] or [`Message::expect_no_body`]).
    Head,
    /// The message has ended.
    End,
    /// This is not HTTP/1.1, or the end of the message is unknown.
    NotHttp,
}

/// A step: how many bytes it took, and what they have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes taken; at least one, and no more than there were.
    pub taken: u32,
    /// What they have come to.
    pub event: Event,
}

impl Step {
    #[inline(always)]
    const fn byte(event: Event) -> Self {
        Self { taken: 1, event }
    }
}

/// The body that follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Neither a length nor chunks are named.
    Unnamed,
    /// So many bytes.
    Length,
    /// Chunks.
    Chunks,
    /// Unknown.
    Unclear,
}

/// Where in a message we are. Numbers and no enum: they lie in the memory of a map, which begins as zeros.
mod phase {
    /// Between two messages.
    pub(super) const START: u8 = 0;
    /// A request's method.
    pub(super) const METHOD: u8 = 1;
    /// The rest of a request's first line; the version stands last.
    pub(super) const TARGET: u8 = 2;
    /// The version and status of a response's first line.
    pub(super) const STATUS: u8 = 3;
    /// The rest of a line without meaning here.
    pub(super) const LINE: u8 = 4;
    /// The first byte of a line of the head.
    pub(super) const LINE_START: u8 = 5;
    /// After CR where a line begins.
    pub(super) const BLANK: u8 = 6;
    /// A header's name, as long as it may be one of ours.
    pub(super) const NAME: u8 = 7;
    /// The value of `traceparent`.
    pub(super) const CONTEXT: u8 = 8;
    /// The value of `Content-Length`.
    pub(super) const LENGTH: u8 = 9;
    /// The value of `Transfer-Encoding`.
    pub(super) const ENCODING: u8 = 10;
    /// The head has been read; what follows is not set yet.
    pub(super) const HEAD_READ: u8 = 11;
    /// A body of known length.
    pub(super) const BODY: u8 = 12;
    /// A body that ends with the connection.
    pub(super) const UNTIL_CLOSE: u8 = 13;
    /// The digits of a chunk's size.
    pub(super) const CHUNK_SIZE: u8 = 14;
    /// The rest of that line.
    pub(super) const CHUNK_EXTENSION: u8 = 15;
    /// A chunk's data.
    pub(super) const CHUNK: u8 = 16;
    /// The end of line after them.
    pub(super) const CHUNK_END: u8 = 17;
    /// The first byte of a line of the trailer.
    pub(super) const TRAILER_START: u8 = 18;
    /// The rest of such a line.
    pub(super) const TRAILER: u8 = 19;
    /// After CR where such a line begins.
    pub(super) const TRAILER_BLANK: u8 = 20;
}

/// Bits of [`Message::seen`].
mod seen {
    /// The method is HEAD.
    pub(super) const HEAD: u8 = 1 << 0;
    /// The method is CONNECT.
    pub(super) const CONNECT: u8 = 1 << 1;
    /// The version is HTTP/1.0.
    pub(super) const OLD: u8 = 1 << 2;
    /// A length was named.
    pub(super) const LENGTH: u8 = 1 << 3;
    /// The body comes in chunks.
    pub(super) const CHUNKS: u8 = 1 << 4;
    /// A `traceparent` was read.
    pub(super) const CONTEXT: u8 = 1 << 5;
    /// An invalid `traceparent`, or a second one.
    pub(super) const NO_CONTEXT: u8 = 1 << 6;
    /// The line before is one of ours: a line that begins with a space would go on with its value.
    pub(super) const OURS: u8 = 1 << 7;
}

/// Larger sizes are invalid.
const TOO_LONG: u64 = 1 << 60;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// One direction's message in progress; all zeros is between two messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Message {
    /// Bytes of the body, or of the chunk, that are to come.
    remaining: u64,
    /// The number, or the method, that is being read.
    number: u64,
    /// The last bytes of a line or of a value.
    tail: u64,
    /// What `traceparent` has said so far.
    context: Context,
    phase: u8,
    /// Bits of [`seen`].
    seen: u8,
    /// Which names the header's may still be.
    names: u8,
    /// Bytes so far of what is being read.
    index: u8,
    /// A response's status.
    status: u16,
    /// The version byte of `traceparent`.
    version: u8,
    _padding: u8,
}

impl Message {
    /// Whether a message's body is on its way.
    #[inline(always)]
    pub const fn is_in_body(&self) -> bool {
        self.phase > phase::HEAD_READ
    }

    /// Whether the body ends with the connection.
    #[inline(always)]
    pub const fn ends_with_connection(&self) -> bool {
        self.phase == phase::UNTIL_CLOSE
    }

    /// A response's status, once its head has been read.
    #[inline(always)]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Whether a request's method is HEAD, whose response has no body.
    #[inline(always)]
    pub const fn is_head(&self) -> bool {
        self.seen & seen::HEAD != 0
    }

    /// Whether a request's method is CONNECT, after which the connection is a tunnel.
    #[inline(always)]
    pub const fn is_connect(&self) -> bool {
        self.seen & seen::CONNECT != 0
    }

    /// What a request's one and valid `traceparent` names, once its head has been read.
    #[inline(always)]
    pub const fn context(&self) -> Option<Context> {
        let valid = self.seen & (seen::CONTEXT | seen::NO_CONTEXT) == seen::CONTEXT;
        if valid { Some(self.context) } else { None }
    }

    /// The body that the head names.
    #[inline(always)]
    pub const fn framing(&self) -> Framing {
        match self.seen & (seen::LENGTH | seen::CHUNKS | seen::OLD) {
            0 | seen::OLD => Framing::Unnamed,
            bits if bits & seen::CHUNKS == 0 => Framing::Length,
            seen::CHUNKS => Framing::Chunks,
            // A length beside chunks, or chunks before HTTP/1.1: smuggled, or misunderstood by one of the two.
            _ => Framing::Unclear,
        }
    }

    /// The head's message has no body: it has ended.
    #[inline(always)]
    pub const fn expect_no_body(&mut self) -> Event {
        self.phase = phase::START;
        Event::End
    }

    /// The body that the head names follows.
    #[inline(always)]
    pub const fn expect_body(&mut self) -> Event {
        match self.framing() {
            Framing::Length if self.remaining > 0 => {
                self.phase = phase::BODY;
                Event::None
            }
            Framing::Chunks => {
                self.begin_chunk();
                Event::None
            }
            Framing::Length | Framing::Unnamed => self.expect_no_body(),
            Framing::Unclear => Event::NotHttp,
        }
    }

    /// A body follows that ends with the connection.
    #[inline(always)]
    pub const fn expect_the_rest(&mut self) -> Event {
        self.phase = phase::UNTIL_CLOSE;
        Event::None
    }

    /// How many of the next bytes are of a body and need not be read.
    #[inline(always)]
    pub const fn body_bytes(&self, available: u32) -> u32 {
        match self.phase {
            phase::UNTIL_CLOSE => available,
            phase::BODY | phase::CHUNK if self.remaining < available as u64 => self.remaining as u32,
            phase::BODY | phase::CHUNK => available,
            _ => 0,
        }
    }

    /// Skips bytes of a body, no more than [`Self::body_bytes`] says.
    #[inline(always)]
    pub const fn pass(&mut self, count: u32) -> Event {
        if self.phase == phase::UNTIL_CLOSE {
            return Event::None;
        }
        self.remaining = self.remaining.wrapping_sub(count as u64);
        if self.remaining > 0 {
            return Event::None;
        }
        if self.phase == phase::CHUNK {
            self.phase = phase::CHUNK_END;
            return Event::None;
        }
        self.expect_no_body()
    }

    /// Whether more than one byte may be taken at a time.
    #[inline(always)]
    pub const fn wants_words(&self) -> bool {
        self.phase == phase::LINE || self.phase == phase::LINE_START || self.phase == phase::TARGET
    }

    /// Takes bytes that are not of a body: `word` holds `held` of them (1 to 8), the first in the lowest bits, zeros
    /// above.
    #[inline(always)]
    pub fn take(&mut self, is_request: bool, word: u64, held: u32) -> Step {
        let byte = word as u8;
        match self.phase {
            phase::START => self.begin(is_request, byte),
            phase::METHOD => self.method(byte),
            phase::TARGET => self.target(word, held),
            phase::STATUS => self.status_line(byte),
            phase::LINE => self.line(word, held),
            phase::LINE_START => self.line_start(is_request, word, held),
            phase::BLANK if byte == LF => {
                self.phase = phase::HEAD_READ;
                Step::byte(Event::Head)
            }
            phase::NAME => self.name(byte),
            phase::CONTEXT => self.context_value(byte),
            phase::LENGTH => self.length_value(byte),
            phase::ENCODING => self.encoding_value(byte),
            phase::CHUNK_SIZE => self.chunk_size(byte),
            phase::CHUNK_EXTENSION => self.chunk_extension(word, held),
            phase::CHUNK_END => self.chunk_end(byte),
            phase::TRAILER_START => self.trailer_start(byte),
            phase::TRAILER => self.trailer(word, held),
            phase::TRAILER_BLANK if byte == LF => Step::byte(self.expect_no_body()),
            _ => Step::byte(Event::NotHttp),
        }
    }
}

#[cfg(test)]
mod tests;
