//! Hashes of what goes into tables of ours.

/// An odd number that spreads a word over all bits (a multiply-shift hash).
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes a word into a hash (the finalizer of MurmurHash3, 32 bits). Whoever does not know what the hash began with, a seed
/// from user space, does not know which words collide.
#[inline(always)]
pub fn mix(hash: u32, word: u32) -> u32 {
    let mut hash = hash.wrapping_mul(0x9e37_79b1) ^ word;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
