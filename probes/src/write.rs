//! Stores that stay stores: a call of memset would be a function of ours, and before Linux 6.2 the verifier follows a
//! program that has any far longer (`reg->precise = env->subprog_cnt > 1`, kernel/bpf/verifier.c).

use core::ptr::write_volatile;

/// Fills a member of `N` words of 4 bytes, which lies on a multiple of 4, with zeros.
#[inline(always)]
pub(crate) fn zero<T, const N: usize>(member: &mut T) {
    const { assert!(size_of::<T>() == N * 4) };
    let words = (&raw mut *member).cast::<u32>();
    for number in 0..N {
        // SAFETY: `N` words are the member's size; every member here is plain numbers on a multiple of 4.
        unsafe { write_volatile(words.add(number), 0) };
    }
}
