//! Programs that are attached twice, so that none of their resets passes unseen.
//!
//! The kernel does not enter a program on a processor where the same one is under way (`bpf_prog_get_recursion_context`).
//! Before Linux 7.0 a tracepoint's programs run without preemption, and no more than an interrupt comes between. Since
//! then (`tracepoint_srcu`) a process may be preempted within one, and whatever the processor resets until it goes on
//! would be passed over. The second of the pair is another program to the kernel: it does what the first did not.
//!
//! The first marks what it does; where the mark stands, the second leaves. Both are called one after the other for the
//! same event, so that the mark is the event's own, whoever runs in between.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{read_volatile, write_volatile},
};

use crate::{ends::SPREAD, map::MARKS, read::argument};

/// 1 where programs are attached twice. Its first value stands nowhere else: see `read`.
#[unsafe(no_mangle)]
static RUNS_TWICE: u32 = 0xfc1a_0006;

/// Events that may be between their first and second run at once, on all processors: two with one mark would give one
/// of them a second record.
pub(crate) const MOST_MARKS: usize = 4096;

/// Which of the pairs a mark is of: bits that are 0 in an address.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Pair {
    Answers = 1,
    Aborts = 2,
    Receives = 3,
}

/// Whether this run is the one that tells of the event, by the socket and segment that are the tracepoint's first arguments.
#[inline(always)]
pub(crate) fn tells<const AGAIN: bool>(context: *const c_void, pair: Pair) -> bool {
    // SAFETY: the global is read-only; volatile keeps the compiler from folding it.
    if !AGAIN && unsafe { read_volatile(&raw const RUNS_TWICE) } != 1 {
        return true;
    }
    let socket = low_half(argument(context, 0));
    let segment = if matches!(pair, Pair::Answers) { low_half(argument(context, 1)) } else { 0 };
    let mark = socket << 32 | segment | pair as u64;
    let slot = (mark.wrapping_mul(SPREAD) >> (64 - MOST_MARKS.ilog2())) as u32;
    let Some(slot) = MARKS.get(&slot) else { return true };
    // SAFETY: the verifier knows the value's size; the map keeps the memory, and a word is written at once.
    unsafe {
        if !AGAIN {
            write_volatile(slot, mark);
            return true;
        }
        if read_volatile(slot) != mark {
            return true;
        }
        write_volatile(slot, 0);
    }
    false
}

/// Half of an address: a plain number to the verifier, which lets nobody calculate with a whole one. By an instruction of
/// its own, since the compiler's way to a half is such a calculation: `w1 = w1`, written as a number, since this target's
/// assembler takes no halves.
#[inline(always)]
fn low_half(address: u64) -> u64 {
    let half;
    // SAFETY: moves half of a register to itself and clears the rest (BPF_ALU | BPF_MOV | BPF_X).
    unsafe { asm!(".8byte 0x11bc", inout("r1") address => half, options(pure, nomem, nostack, preserves_flags)) };
    half
}
