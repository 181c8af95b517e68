//! Loads from the kernel's memory: at the offsets that user space found in BTF, and no others.

use core::{ffi::c_void, hint::black_box, ptr::read_volatile};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use reset_collector_probes::{
    cause::ReasonClass,
    field::{FIELDS, Field, Place},
};

// Each global below begins with a unique value: the compiler merges equal constants, so that a `&0`
// elsewhere would change with a global that began as 0.

/// Where each member lies; set before the load, so that the verifier knows each offset.
#[unsafe(no_mangle)]
static PLACES: [u32; FIELDS] = [Place::ABSENT.0; FIELDS];

/// Classes of `enum sk_rst_reason` by number.
#[unsafe(no_mangle)]
static RESET_CLASSES: [u8; 64] = [0xfe; 64];

/// Classes of `enum skb_drop_reason` by number.
#[unsafe(no_mangle)]
static DROP_CLASSES: [u8; 256] = [0xfd; 256];

/// 1 where the kernel has `bpf_ktime_get_tai_ns` (6.1 on).
#[unsafe(no_mangle)]
static HAS_TAI_CLOCK: u32 = 0xfc1a_0001;

/// 1 where a tracing program may use `bpf_sk_storage_get` (5.11 on).
#[unsafe(no_mangle)]
static HAS_SOCKET_STORAGE: u32 = 0xfc1a_0003;

/// 1 where the verifier knows that an argument of a tracepoint may be null (6.13 on).
#[unsafe(no_mangle)]
static BTF_HAS_NULL_CTX: u32 = 0xfc1a_0002;

/// 1 where the kernel has `bpf_get_current_task_btf` (5.11 on).
#[unsafe(no_mangle)]
static HAS_TYPED_TASK: u32 = 0xfc1a_0004;

/// A random number from user space: nobody who does not know it can choose keys that share a bucket of the rate limit.
#[unsafe(no_mangle)]
static HASH_SEED: u32 = 0xfc1a_0007;

/// An argument of a tracepoint.
#[inline(always)]
pub(crate) fn argument(context: *const c_void, number: usize) -> u64 {
    // SAFETY: the verifier checks the number against the tracepoint's arguments when the program is loaded.
    unsafe { *context.cast::<u64>().add(number) }
}

/// Whether an argument is null. Asked of the memory where the verifier cannot be trusted with it: from 6.4 to 6.12 it holds
/// that the arguments of a tracepoint never are, and drops a plain check (`reg_not_null`, kernel/bpf/verifier.c).
#[inline(always)]
pub(crate) fn is_null(context: *const c_void, number: usize) -> bool {
    // SAFETY: as in `place`.
    if unsafe { read_volatile(&raw const BTF_HAS_NULL_CTX) } == 1 {
        return argument(context, number) == 0;
    }
    // Hidden from the compiler, which would load both ways through one address: the verifier wants the context's own.
    copy_at::<u64>(context.cast::<u64>().wrapping_add(black_box(number)).cast()) == 0
}

#[inline(always)]
fn place(field: Field) -> Place {
    // SAFETY: the global is read-only and lives as long as the program; volatile keeps the compiler from folding it.
    Place(unsafe { read_volatile(&raw const PLACES[field as usize]) })
}

/// Whether the running kernel has the member.
#[inline(always)]
pub(crate) fn has(field: Field) -> bool {
    place(field).is_present()
}

/// Loads a member through a pointer whose type the verifier knows; a fault reads as 0.
#[inline(always)]
pub(crate) fn load<T: Copy>(base: *const u8, field: Field) -> T {
    // SAFETY: the verifier proves that the member lies within the type that `base` points to.
    unsafe { read_volatile(base.add(place(field).byte()).cast::<T>()) }
}

/// Loads an address of four words through a pointer whose type the verifier knows.
#[inline(always)]
pub(crate) fn load_words(base: *const u8, field: Field) -> [u32; 4] {
    let offset = place(field).byte();
    // SAFETY: as in `load`; word by word, since the verifier checks each against the array's elements.
    unsafe {
        [
            read_volatile(base.add(offset).cast::<u32>()),
            read_volatile(base.add(offset + 4).cast::<u32>()),
            read_volatile(base.add(offset + 8).cast::<u32>()),
            read_volatile(base.add(offset + 12).cast::<u32>()),
        ]
    }
}

/// Loads a name of 16 bytes, as two words, through a pointer whose type the verifier knows.
#[inline(always)]
pub(crate) fn load_name(base: *const u8, field: Field) -> [u64; 2] {
    let offset = place(field).byte();
    // SAFETY: as in `load`.
    unsafe { [read_volatile(base.add(offset).cast::<u64>()), read_volatile(base.add(offset + 8).cast::<u64>())] }
}

/// Loads a bit field of one byte.
#[inline(always)]
pub(crate) fn load_bits(base: *const u8, field: Field) -> u8 {
    let place = place(field);
    let byte: u8 = load(base, field);
    (byte >> (place.shift() & 7)) & ((1u32 << (place.width() & 7)) - 1) as u8
}

/// Copies a member whose pointer the verifier does not follow; zeros when the kernel refuses.
#[inline(always)]
pub(crate) fn copy<T: Copy>(base: *const u8, field: Field) -> T {
    copy_at(base.wrapping_add(place(field).byte()))
}

/// Copies from an address; zeros when the kernel refuses.
#[inline(always)]
pub(crate) fn copy_at<T: Copy>(address: *const u8) -> T {
    // Not zeroed here: that would be a call of a function of ours, and before 6.2 the verifier follows a program with
    // such calls far longer.
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `T`, zeros on a fault; every `T` here is plain numbers.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address.cast());
        value.assume_init()
    }
}

/// What a number of `enum sk_rst_reason` means.
#[inline(always)]
pub(crate) fn reset_class(reason: u16) -> ReasonClass {
    if reason >= 64 {
        return ReasonClass::Unknown;
    }
    // SAFETY: the index is below the length.
    ReasonClass::from_number(unsafe {
        read_volatile((&raw const RESET_CLASSES).cast::<u8>().add(reason as usize & 63))
    })
}

/// What a number of `enum skb_drop_reason` means for a segment with RST.
#[inline(always)]
pub(crate) fn drop_class(reason: u32) -> ReasonClass {
    if reason >= 256 {
        return ReasonClass::NotTcp;
    }
    // SAFETY: the index is below the length.
    ReasonClass::from_number(unsafe {
        read_volatile((&raw const DROP_CLASSES).cast::<u8>().add(reason as usize & 255))
    })
}

/// What hashes begin with.
#[inline(always)]
pub(crate) fn hash_seed() -> u32 {
    // SAFETY: as in `place`.
    unsafe { read_volatile(&raw const HASH_SEED) }
}

/// Whether the kernel has the TAI clock.
#[inline(always)]
pub(crate) fn has_tai_clock() -> bool {
    // SAFETY: as in `place`.
    unsafe { read_volatile(&raw const HAS_TAI_CLOCK) == 1 }
}

/// Whether the state of a socket is stored in the socket itself.
#[inline(always)]
pub(crate) fn has_socket_storage() -> bool {
    // SAFETY: as in `place`.
    unsafe { read_volatile(&raw const HAS_SOCKET_STORAGE) == 1 }
}

/// Whether the verifier knows the running task's type.
#[inline(always)]
pub(crate) fn has_typed_task() -> bool {
    // SAFETY: as in `place`.
    unsafe { read_volatile(&raw const HAS_TYPED_TASK) == 1 }
}
