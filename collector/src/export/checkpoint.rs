//! The checkpoint file of a storage: how many resets it has taken, so that the next start can count what is missing.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Magic, checksum of the rest, and the numbers, little-endian.
const LEN: usize = 32;
/// More resets than any storage holds at a time.
pub(crate) const MAX_SPAN: u64 = 1 << 40;
const MAGIC: [u8; 4] = *b"RSTp";

/// The contents of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Resets that were ever appended.
    pub(crate) enqueued: u64,
    /// The first of these, up to this number, have an outcome.
    pub(crate) floor: u64,
    /// Resets that the collector holds and that are not in the storage.
    pub(crate) unstored: u64,
}

impl Checkpoint {
    /// `None` where there is no file or it is damaged.
    pub(crate) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let number = |at: usize| bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes);
        let is_valid = bytes[..4] == MAGIC && crc32fast::hash(&bytes[8..]).to_le_bytes() == bytes[4..8];
        let checkpoint = Self { enqueued: number(8), floor: number(16), unstored: number(24) };
        // A valid checksum on impossible numbers is damage too.
        let is_possible = checkpoint.enqueued.checked_sub(checkpoint.floor).is_some_and(|span| span <= MAX_SPAN)
            && checkpoint.enqueued <= 1 << 62
            && checkpoint.unstored <= MAX_SPAN;
        Ok((is_valid && is_possible).then_some(checkpoint))
    }

    /// Replaces the contents of the file.
    pub(crate) fn write(self, file: &File) -> io::Result<()> {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.enqueued.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.floor.to_le_bytes());
        bytes[24..].copy_from_slice(&self.unstored.to_le_bytes());
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&bytes, 0)
    }
}
