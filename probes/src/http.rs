//! HTTP/1.1 messages as they pass (RFC 9112): where a head ends, how long the body is, and the `traceparent` of a
//! request (W3C Trace Context). Pure and without loops: the kernel hands in up to eight bytes at a time, wherever
//! segments begin and end, and the tests do the same.
//!
//! Strict where being lenient could name a wrong trace: of whatever two parties could read in two ways (two lengths, a
//! length beside chunks, a folded header of ours) nothing is believed any more ([`Event::Foreign`]). Owns no knowledge of
//! connections; what a response answers is [`crate::exchange`]'s.

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The message goes on.
    None,
    /// The head has been read: say what body follows ([`Message::expect_body`] or [`Message::expect_no_body`]).
    Head,
    /// The message has ended.
    End,
    /// This is no HTTP/1.1, or nobody can tell where the message ends.
    Foreign,
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
    /// It cannot be told.
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
    /// The rest of a line that says nothing to us.
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
    /// The head has been read, and nobody has said yet what follows.
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
    /// A `traceparent` that is none, or a second one.
    pub(super) const NO_CONTEXT: u8 = 1 << 6;
    /// The line before is one of ours: a line that begins with a space would go on with its value.
    pub(super) const OURS: u8 = 1 << 7;
}

/// Names that are looked for, and the bits by which they may still be meant.
const TRACEPARENT: &[u8; 11] = b"traceparent";
const CONTENT_LENGTH: &[u8; 14] = b"content-length";
const TRANSFER_ENCODING: &[u8; 17] = b"transfer-encoding";
const MAY_BE_CONTEXT: u8 = 1;
const MAY_BE_LENGTH: u8 = 2;
const MAY_BE_ENCODING: u8 = 4;

/// `HTTP/1.1` and `HTTP/1.0`, the first byte in the highest bits.
const VERSION_1_1: u64 = u64::from_be_bytes(*b"HTTP/1.1");
const VERSION_1_0: u64 = u64::from_be_bytes(*b"HTTP/1.0");
/// `chunked`, and the bits that it takes.
const CHUNKED: u64 = u64::from_be_bytes(*b"\0chunked");
const CHUNKED_BITS: u64 = 0x00ff_ffff_ffff_ffff;

/// Longest method, bytes.
const LONGEST_METHOD: u8 = 24;
/// Bytes of a `traceparent` of version 00; later ones may go on after these.
const CONTEXT_LENGTH: u8 = 55;
/// Sizes from here on are no sizes.
const TOO_LONG: u64 = 1 << 60;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// A trace and a span as `traceparent` names them; neither is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// Trace id, the first byte in the highest bits of the first word.
    pub trace: [u64; 2],
    /// Span id, likewise.
    pub span: u64,
}

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
            Framing::Unclear => Event::Foreign,
        }
    }

    /// A body follows that ends with the connection.
    #[inline(always)]
    pub const fn expect_the_rest(&mut self) -> Event {
        self.phase = phase::UNTIL_CLOSE;
        Event::None
    }

    /// How many of the next bytes are of a body, so that nobody need look at them.
    #[inline(always)]
    pub const fn body_bytes(&self, available: u32) -> u32 {
        match self.phase {
            phase::UNTIL_CLOSE => available,
            phase::BODY | phase::CHUNK if self.remaining < available as u64 => self.remaining as u32,
            phase::BODY | phase::CHUNK => available,
            _ => 0,
        }
    }

    /// Passes over bytes of a body, no more than [`Self::body_bytes`] says.
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
            phase::LINE_START => self.line_start(is_request, byte),
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
            _ => Step::byte(Event::Foreign),
        }
    }

    #[inline(always)]
    fn begin(&mut self, is_request: bool, byte: u8) -> Step {
        // RFC 9112 2.2: an empty line before a request is to be ignored.
        if byte == CR || byte == LF {
            return Step::byte(Event::None);
        }
        self.remaining = 0;
        self.number = 0;
        self.tail = 0;
        self.context = Context { trace: [0; 2], span: 0 };
        self.seen = 0;
        self.index = 0;
        self.status = 0;
        if is_request {
            self.phase = phase::METHOD;
            self.method(byte)
        } else {
            self.phase = phase::STATUS;
            self.status_line(byte)
        }
    }

    #[inline(always)]
    fn method(&mut self, byte: u8) -> Step {
        if byte == b' ' && self.index > 0 {
            // Methods are told apart by their case (RFC 9110 9.1).
            if self.number == u64::from(u32::from_be_bytes(*b"HEAD")) {
                self.seen |= seen::HEAD;
            } else if self.number == u64::from_be_bytes(*b"\0CONNECT") {
                self.seen |= seen::CONNECT;
            }
            self.tail = 0;
            self.phase = phase::TARGET;
            return Step::byte(Event::None);
        }
        if !(byte.is_ascii_uppercase() || byte == b'-' || byte == b'_') || self.index >= LONGEST_METHOD {
            return Step::byte(Event::Foreign);
        }
        // Of a longer one the last bytes; none of ours ends so.
        self.number = self.number << 8 | u64::from(byte);
        self.index += 1;
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn target(&mut self, word: u64, held: u32) -> Step {
        let plain = plain_bytes(word, held);
        if plain > 0 {
            let bytes = word.swap_bytes();
            self.tail = if plain >= 8 { bytes } else { self.tail << (8 * plain) | bytes >> (64 - 8 * plain) };
            return Step { taken: plain, event: Event::None };
        }
        if word as u8 == CR {
            return Step::byte(Event::None);
        }
        self.version(self.tail)
    }

    /// The head goes on if its version is one of ours.
    #[inline(always)]
    fn version(&mut self, version: u64) -> Step {
        if version == VERSION_1_0 {
            self.seen |= seen::OLD;
        } else if version != VERSION_1_1 {
            return Step::byte(Event::Foreign);
        }
        self.phase = phase::LINE_START;
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn status_line(&mut self, byte: u8) -> Step {
        let index = self.index;
        self.index += 1;
        match index {
            0..=7 => self.number = self.number << 8 | u64::from(byte),
            8 if byte == b' ' => {
                let step = self.version(self.number);
                self.phase = phase::STATUS;
                return step;
            }
            9..=11 if byte.is_ascii_digit() => self.status = self.status * 10 + u16::from(byte - b'0'),
            12 if byte == b' ' || byte == CR => self.phase = phase::LINE,
            12 if byte == LF => self.phase = phase::LINE_START,
            _ => return Step::byte(Event::Foreign),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn line(&mut self, word: u64, held: u32) -> Step {
        let plain = plain_bytes(word, held);
        if plain > 0 {
            return Step { taken: plain, event: Event::None };
        }
        if word as u8 == LF {
            self.phase = phase::LINE_START;
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn line_start(&mut self, is_request: bool, byte: u8) -> Step {
        let is_after_ours = self.seen & seen::OURS != 0;
        self.seen &= !seen::OURS;
        match byte {
            LF => {
                self.phase = phase::HEAD_READ;
                return Step::byte(Event::Head);
            }
            CR => self.phase = phase::BLANK,
            // A value that goes on (obs-fold, RFC 9112 5.2).
            b' ' | b'\t' if is_after_ours => return Step::byte(Event::Foreign),
            b' ' | b'\t' => self.phase = phase::LINE,
            _ => {
                self.phase = phase::NAME;
                self.index = 0;
                self.names = MAY_BE_LENGTH | MAY_BE_ENCODING | if is_request { MAY_BE_CONTEXT } else { 0 };
                return self.name(byte);
            }
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn name(&mut self, byte: u8) -> Step {
        let index = self.index as usize;
        let whole = (if index == TRACEPARENT.len() { self.names & MAY_BE_CONTEXT } else { 0 })
            | (if index == CONTENT_LENGTH.len() { self.names & MAY_BE_LENGTH } else { 0 })
            | (if index == TRANSFER_ENCODING.len() { self.names & MAY_BE_ENCODING } else { 0 });
        if whole != 0 && byte == b':' {
            return self.value(whole);
        }
        // A space before the colon: some take the header, some refuse it (RFC 9112 5.1).
        if whole & (MAY_BE_LENGTH | MAY_BE_ENCODING) != 0 && (byte == b' ' || byte == b'\t') {
            return Step::byte(Event::Foreign);
        }
        let lower = if byte.is_ascii_uppercase() { byte | 0x20 } else { byte };
        let still = |name: &[u8], bit: u8| if name.get(index) == Some(&lower) { bit } else { 0 };
        self.names &= still(TRACEPARENT, MAY_BE_CONTEXT)
            | still(CONTENT_LENGTH, MAY_BE_LENGTH)
            | still(TRANSFER_ENCODING, MAY_BE_ENCODING);
        self.index += 1;
        if self.names == 0 {
            self.phase = if byte == LF { phase::LINE_START } else { phase::LINE };
        }
        Step::byte(Event::None)
    }

    /// The value of a header of ours begins.
    #[inline(always)]
    fn value(&mut self, name: u8) -> Step {
        self.index = 0;
        self.seen |= seen::OURS;
        self.tail = 0;
        self.number = 0;
        if name == MAY_BE_LENGTH {
            self.phase = phase::LENGTH;
        } else if name == MAY_BE_ENCODING {
            self.phase = phase::ENCODING;
        } else {
            self.phase = phase::CONTEXT;
            if self.seen & seen::CONTEXT != 0 {
                self.seen |= seen::NO_CONTEXT;
            }
            self.seen |= seen::CONTEXT;
        }
        Step::byte(Event::None)
    }

    /// `traceparent` (https://www.w3.org/TR/trace-context/#traceparent-header): version, trace id, parent id and flags
    /// in lower-case hex.
    #[inline(always)]
    fn context_value(&mut self, byte: u8) -> Step {
        let index = self.index;
        match byte {
            LF => {
                let zero = self.context.trace[0] | self.context.trace[1] == 0 || self.context.span == 0;
                if index < CONTEXT_LENGTH || zero {
                    self.seen |= seen::NO_CONTEXT;
                }
                self.phase = phase::LINE_START;
                return Step::byte(Event::None);
            }
            CR => return Step::byte(Event::None),
            b' ' | b'\t' if index == 0 => return Step::byte(Event::None),
            b' ' | b'\t' if index >= CONTEXT_LENGTH => {
                // Nothing may follow.
                self.index = u8::MAX;
                return Step::byte(Event::None);
            }
            _ => {}
        }
        if !self.context_byte(index, byte) {
            self.seen |= seen::NO_CONTEXT;
            self.phase = phase::LINE;
            return Step::byte(Event::None);
        }
        // Of a later version's value, however long, no more is counted.
        if index <= CONTEXT_LENGTH {
            self.index += 1;
        }
        Step::byte(Event::None)
    }

    /// Takes one byte of `traceparent`; whether it may stand there.
    #[inline(always)]
    fn context_byte(&mut self, index: u8, byte: u8) -> bool {
        if index >= CONTEXT_LENGTH {
            let goes_on = index != u8::MAX && self.version != 0;
            return goes_on && (index > CONTEXT_LENGTH || byte == b'-');
        }
        if index == 2 || index == 35 || index == 52 {
            return byte == b'-' && !(index == 2 && self.version == u8::MAX);
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return false,
        };
        let next = u64::from(digit);
        match index {
            0 => self.version = digit << 4,
            1 => self.version |= digit,
            3..=18 => self.context.trace[0] = self.context.trace[0] << 4 | next,
            19..=34 => self.context.trace[1] = self.context.trace[1] << 4 | next,
            36..=51 => self.context.span = self.context.span << 4 | next,
            _ => {}
        }
        true
    }

    #[inline(always)]
    fn length_value(&mut self, byte: u8) -> Step {
        match byte {
            b'0'..=b'9' if self.index <= 1 && self.number < TOO_LONG / 10 => {
                self.number = self.number * 10 + u64::from(byte - b'0');
                self.index = 1;
            }
            b' ' | b'\t' if self.index == 0 => {}
            // Nothing may follow.
            b' ' | b'\t' | CR => self.index += if self.index == 1 { 1 } else { 0 },
            LF if self.index == 0 => return Step::byte(Event::Foreign),
            LF if self.seen & seen::LENGTH != 0 && self.remaining != self.number => return Step::byte(Event::Foreign),
            LF => {
                self.remaining = self.number;
                self.seen |= seen::LENGTH;
                self.phase = phase::LINE_START;
            }
            _ => return Step::byte(Event::Foreign),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn encoding_value(&mut self, byte: u8) -> Step {
        match byte {
            b' ' | b'\t' | CR => {}
            LF => {
                let before = self.tail >> 56;
                let is_chunked = self.tail & CHUNKED_BITS == CHUNKED && (before == 0 || before == u64::from(b','));
                // Chunks come last and once; what else there may be, nobody can follow.
                if !is_chunked || self.seen & seen::CHUNKS != 0 {
                    return Step::byte(Event::Foreign);
                }
                self.seen |= seen::CHUNKS;
                self.phase = phase::LINE_START;
            }
            _ => {
                let lower = if byte.is_ascii_uppercase() { byte | 0x20 } else { byte };
                self.tail = self.tail << 8 | u64::from(lower);
            }
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    const fn begin_chunk(&mut self) {
        self.phase = phase::CHUNK_SIZE;
        self.remaining = 0;
        self.index = 0;
    }

    #[inline(always)]
    fn chunk_size(&mut self, byte: u8) -> Step {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if self.index == 0 => return Step::byte(Event::Foreign),
            LF => return self.chunk_begins(),
            b';' | b' ' | b'\t' | CR => {
                self.phase = phase::CHUNK_EXTENSION;
                return Step::byte(Event::None);
            }
            _ => return Step::byte(Event::Foreign),
        };
        if self.remaining >= TOO_LONG / 16 {
            return Step::byte(Event::Foreign);
        }
        self.remaining = self.remaining << 4 | u64::from(digit);
        self.index = 1;
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn chunk_extension(&mut self, word: u64, held: u32) -> Step {
        let plain = plain_bytes(word, held);
        if plain > 0 {
            return Step { taken: plain, event: Event::None };
        }
        if word as u8 == LF { self.chunk_begins() } else { Step::byte(Event::None) }
    }

    /// The line of a chunk's size has ended; the last chunk has none.
    #[inline(always)]
    fn chunk_begins(&mut self) -> Step {
        self.phase = if self.remaining > 0 { phase::CHUNK } else { phase::TRAILER_START };
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn chunk_end(&mut self, byte: u8) -> Step {
        match byte {
            CR => {}
            LF => self.begin_chunk(),
            _ => return Step::byte(Event::Foreign),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn trailer_start(&mut self, byte: u8) -> Step {
        match byte {
            LF => return Step::byte(self.expect_no_body()),
            CR => self.phase = phase::TRAILER_BLANK,
            _ => self.phase = phase::TRAILER,
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    fn trailer(&mut self, word: u64, held: u32) -> Step {
        let plain = plain_bytes(word, held);
        if plain > 0 {
            return Step { taken: plain, event: Event::None };
        }
        if word as u8 == LF {
            self.phase = phase::TRAILER_START;
        }
        Step::byte(Event::None)
    }
}

/// How many of the first bytes hold neither CR nor LF: all of them, four, two or one; 0 where the first is one of the two.
#[inline(always)]
const fn plain_bytes(word: u64, held: u32) -> u32 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // A byte of zeros shows in its highest bit; above it there may be false ones, below there are none.
    let feeds = word ^ EACH * LF as u64;
    let returns = word ^ EACH * CR as u64;
    let ends = (feeds.wrapping_sub(EACH) & !feeds | returns.wrapping_sub(EACH) & !returns) & HIGH;
    if ends == 0 {
        held
    } else if ends as u32 == 0 && held >= 4 {
        4
    } else if ends as u16 == 0 && held >= 2 {
        2
    } else if ends as u8 == 0 {
        1
    } else {
        0
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
