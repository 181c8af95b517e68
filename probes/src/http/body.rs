//! Bodies in chunks (RFC 9112 7.1), and the trailer after them.

use super::{CR, Event, LF, Message, Step, TOO_LONG, phase, swar::rest_of_line};

impl Message {
    #[inline(always)]
    pub(super) const fn begin_chunk(&mut self) {
        self.phase = phase::CHUNK_SIZE;
        self.remaining = 0;
        self.index = 0;
    }

    #[inline(always)]
    pub(super) fn chunk_size(&mut self, byte: u8) -> Step {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if self.index == 0 => return Step::byte(Event::NotHttp),
            LF => {
                self.chunk_begins();
                return Step::byte(Event::None);
            }
            b';' | b' ' | b'\t' | CR => {
                self.phase = phase::CHUNK_EXTENSION;
                return Step::byte(Event::None);
            }
            _ => return Step::byte(Event::NotHttp),
        };
        if self.remaining >= TOO_LONG / 16 {
            return Step::byte(Event::NotHttp);
        }
        self.remaining = self.remaining << 4 | u64::from(digit);
        self.index = 1;
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn chunk_extension(&mut self, word: u64, held: u32) -> Step {
        let (taken, ended) = rest_of_line(word, held);
        if ended {
            self.chunk_begins();
        }
        Step { taken, event: Event::None }
    }

    /// The line of a chunk's size has ended; the last chunk has none.
    #[inline(always)]
    pub(super) const fn chunk_begins(&mut self) {
        self.phase = if self.remaining > 0 { phase::CHUNK } else { phase::TRAILER_START };
    }

    #[inline(always)]
    pub(super) fn chunk_end(&mut self, byte: u8) -> Step {
        match byte {
            CR => {}
            LF => self.begin_chunk(),
            _ => return Step::byte(Event::NotHttp),
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn trailer_start(&mut self, byte: u8) -> Step {
        match byte {
            LF => return Step::byte(self.expect_no_body()),
            CR => self.phase = phase::TRAILER_BLANK,
            _ => self.phase = phase::TRAILER,
        }
        Step::byte(Event::None)
    }

    #[inline(always)]
    pub(super) fn trailer(&mut self, word: u64, held: u32) -> Step {
        let (taken, ended) = rest_of_line(word, held);
        if ended {
            self.phase = phase::TRAILER_START;
        }
        Step { taken, event: Event::None }
    }
}
