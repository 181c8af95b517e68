//! The value of `traceparent` (W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header), byte by byte.

use super::{CR, Event, LF, Message, Step, phase, seen};

/// Bytes of a `traceparent` of version 00; later ones may go on after these.
const CONTEXT_LENGTH: u8 = 55;

/// A trace and a span as `traceparent` names them; neither is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// Trace id, the first byte in the highest bits of the first word.
    pub trace: [u64; 2],
    /// Span id, likewise.
    pub span: u64,
}

impl Message {
    /// Version, trace id, parent id and flags, in lower-case hex.
    #[inline(always)]
    pub(super) fn context_value(&mut self, byte: u8) -> Step {
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
}
