//! Companion programs: a second attachment of a program, so that no reset is missed.
//!
//! The kernel does not enter a program on a processor where the same one is under way (`bpf_prog_get_recursion_context`).
//! Before Linux 7.0 a tracepoint's programs run without preemption, and no more than an interrupt comes between. Since
//! then (`tracepoint_srcu`) a process may be preempted within one, and whatever the processor resets until it goes on
//! would be missed. To the kernel the companion is another program: it handles the runs that the first one missed.
//!
//! The first program marks the events that it handles; the companion skips marked events. The kernel calls both in turn for
//! the same event, so the mark belongs to that event, whatever runs in between.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{read_volatile, write_volatile},
};

use reset_collector_probes::hash::SPREAD;

use crate::{map::HANDLED, read::argument};

/// 1 where companions are attached. Its initial value is unique: see `read`.
#[unsafe(no_mangle)]
static HAS_COMPANIONS: u32 = 0xfc1a_0006;

/// Events that may be between their first and second run at once, on all processors: two with one mark would give one
/// of them a second record.
pub(crate) const MAX_HANDLED: usize = 4096;

/// Which of the pairs a mark is of: bits that are 0 in an address.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum CompanionSet {
    Answers = 1,
    Aborts = 2,
    Receives = 3,
}

/// Whether this run emits the record of the event, which the socket and segment in the first arguments identify.
#[inline(always)]
pub(crate) fn should_emit<const COMPANION: bool>(context: *const c_void, pair: CompanionSet) -> bool {
    // SAFETY: the global is read-only; volatile keeps the compiler from folding it.
    if !COMPANION && unsafe { read_volatile(&raw const HAS_COMPANIONS) } != 1 {
        return true;
    }
    let socket = low_half(argument(context, 0));
    let segment = if matches!(pair, CompanionSet::Answers) { low_half(argument(context, 1)) } else { 0 };
    let mark = socket << 32 | segment | pair as u64;
    let slot = (mark.wrapping_mul(SPREAD) >> (64 - MAX_HANDLED.ilog2())) as u32;
    let Some(slot) = HANDLED.get(&slot) else { return true };
    // SAFETY: the verifier knows the value's size; the map keeps the memory, and a word is written at once.
    unsafe {
        if !COMPANION {
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
