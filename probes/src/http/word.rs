//! Eight bytes at once.

use super::{CR, LF};

/// How many of the first bytes hold neither CR nor LF: all of them, four, two or one; 0 where the first is one of the two.
#[inline(always)]
pub(super) const fn plain_bytes(word: u64, held: u32) -> u32 {
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
