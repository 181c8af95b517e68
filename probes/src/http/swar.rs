//! Eight bytes at once.

use super::{CR, LF};

/// Each byte 1, and each byte's highest bit.
const EACH: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// How many of the first bytes hold neither CR nor LF.
#[inline(always)]
pub(super) const fn plain_bytes(word: u64, held: u32) -> u32 {
    // A byte of zeros shows in its highest bit; above it there may be false ones, below there are none.
    let feeds = word ^ (EACH * LF as u64);
    let returns = word ^ (EACH * CR as u64);
    let ends = (feeds.wrapping_sub(EACH) & !feeds | returns.wrapping_sub(EACH) & !returns) & HIGH;
    if ends == 0 {
        return held;
    }
    // The number of the byte; eBPF counts no zeros, and the verifier follows each branch.
    (((ends & ends.wrapping_neg()) >> 7).wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// What of some bytes belongs to a line that says nothing: how many, and whether its end is among them.
#[inline(always)]
pub(super) const fn rest_of_line(word: u64, held: u32) -> (u32, bool) {
    let plain = plain_bytes(word, held);
    if plain >= held || plain >= 8 {
        return (held, false);
    }
    let end = word >> (8 * plain);
    if end as u8 == LF {
        (plain + 1, true)
    } else if (end >> 8) as u8 == LF && plain + 1 < held {
        (plain + 2, true)
    } else {
        (plain + 1, false)
    }
}

/// Whether eight bytes are these letters, in any case; the last may be a hyphen.
#[inline(always)]
pub(super) const fn are_letters(word: u64, letters: &[u8; 8]) -> bool {
    const LOWER: u64 = EACH * 0x20;
    // CR would become a hyphen.
    let lower = if letters[7] == b'-' { LOWER & u64::MAX >> 8 } else { LOWER };
    word | lower == u64::from_le_bytes(*letters)
}
