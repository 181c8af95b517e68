//! The head of a message: the first line, and of the headers those that say what follows or whose request it is.

use super::{
    CR, Context, Event, LF, Message, Step, TOO_LONG, phase, seen,
    swar::{are_letters, plain_bytes, rest_of_line},
};

/// Headers that are looked for, and the bits of those that a name may still become.
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
const MAX_METHOD: u8 = 24;

impl Message {
    #[inline(always)]
    pub(super) fn begin(&mut self, is_request: bool, byte: u8) -> Step {
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
    pub(super) fn method(&mut self, byte: u8) -> Step {
        if byte == b' ' && self.index > 0 {
            // Methods differ by their case (RFC 9110 9.1).
            if self.number == u64::from(u32::from_be_bytes(*b"HEAD")) {
                self.seen |= seen::HEAD;
            } else if self.number == u64::from_be_bytes(*b"\0CONNECT") {
                self.seen |= seen::CONNECT;
            }
            self.tail = 0;
            self.phase = phase::TARGET;
            return Step::byte(Event::None);
        }
        if !(byte.is_ascii_uppercase() || byte == b'-' || byte == b'_') || self.index >= MAX_METHOD {
            return Step::byte(Event::NotHttp);
        }
        // Of a longer one the last bytes; none of ours ends so.
        self.number = self.number << 8 | u64::from(byte);
        self.index += 1;
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn target(&mut self, word: u64, held: u32) -> Step {
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
    pub(super) fn version(&mut self, version: u64) -> Step {
        if version == VERSION_1_0 {
            self.seen |= seen::OLD;
        } else if version != VERSION_1_1 {
            return Step::byte(Event::NotHttp);
        }
        self.phase = phase::LINE_START;
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn status_line(&mut self, byte: u8) -> Step {
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
            _ => return Step::byte(Event::NotHttp),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn line(&mut self, word: u64, held: u32) -> Step {
        let (taken, ended) = rest_of_line(word, held);
        if ended {
            self.phase = phase::LINE_START;
        }
        Step { taken, event: Event::None }
    }

    #[inline(always)]
    pub(super) fn line_start(&mut self, is_request: bool, word: u64, held: u32) -> Step {
        let byte = word as u8;
        let is_after_ours = self.seen & seen::OURS != 0;
        self.seen &= !seen::OURS;
        match byte {
            LF => {
                self.phase = phase::HEAD_READ;
                return Step::byte(Event::Head);
            }
            CR => self.phase = phase::BLANK,
            // A value that goes on (obs-fold, RFC 9112 5.2).
            b' ' | b'\t' if is_after_ours => return Step::byte(Event::NotHttp),
            b' ' | b'\t' => self.phase = phase::LINE,
            // Most names are none of ours by their first eight bytes.
            _ if held == 8 => return self.first_of_name(is_request, word),
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
    fn first_of_name(&mut self, is_request: bool, word: u64) -> Step {
        self.names = if are_letters(word, b"content-") {
            MAY_BE_LENGTH
        } else if are_letters(word, b"transfer") {
            MAY_BE_ENCODING
        } else if is_request && are_letters(word, b"tracepar") {
            MAY_BE_CONTEXT
        } else {
            self.phase = phase::LINE;
            return self.line(word, 8);
        };
        self.index = 8;
        self.phase = phase::NAME;
        Step { taken: 8, event: Event::None }
    }

    #[inline(always)]
    pub(super) fn name(&mut self, byte: u8) -> Step {
        let index = self.index as usize;
        let whole = (if index == TRACEPARENT.len() { self.names & MAY_BE_CONTEXT } else { 0 })
            | (if index == CONTENT_LENGTH.len() { self.names & MAY_BE_LENGTH } else { 0 })
            | (if index == TRANSFER_ENCODING.len() { self.names & MAY_BE_ENCODING } else { 0 });
        if whole != 0 && byte == b':' {
            return self.value(whole);
        }
        // A space before the colon: some take the header, some refuse it (RFC 9112 5.1).
        if whole & (MAY_BE_LENGTH | MAY_BE_ENCODING) != 0 && (byte == b' ' || byte == b'\t') {
            return Step::byte(Event::NotHttp);
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
    pub(super) fn value(&mut self, name: u8) -> Step {
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

    #[inline(always)]
    pub(super) fn length_value(&mut self, byte: u8) -> Step {
        match byte {
            b'0'..=b'9' if self.index <= 1 && self.number < TOO_LONG / 10 => {
                self.number = self.number * 10 + u64::from(byte - b'0');
                self.index = 1;
            }
            b' ' | b'\t' if self.index == 0 => {}
            // Nothing may follow.
            b' ' | b'\t' | CR => self.index += if self.index == 1 { 1 } else { 0 },
            LF if self.index == 0 => return Step::byte(Event::NotHttp),
            LF if self.seen & seen::LENGTH != 0 && self.remaining != self.number => return Step::byte(Event::NotHttp),
            LF => {
                self.remaining = self.number;
                self.seen |= seen::LENGTH;
                self.phase = phase::LINE_START;
            }
            _ => return Step::byte(Event::NotHttp),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn encoding_value(&mut self, byte: u8) -> Step {
        match byte {
            b' ' | b'\t' | CR => {}
            LF => {
                let before = self.tail >> 56;
                let is_chunked = self.tail & CHUNKED_BITS == CHUNKED && (before == 0 || before == u64::from(b','));
                // Chunks come last and once; what else there may be, nobody can follow.
                if !is_chunked || self.seen & seen::CHUNKS != 0 {
                    return Step::byte(Event::NotHttp);
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
}
