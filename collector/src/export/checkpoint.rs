//! The position file of a storage: how far it has come, so that the next start can name what is missing.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Magic, checksum of the rest, and the numbers, little-endian.
const LEN: usize = 32;
const MAGIC: [u8; 4] = *b"RSTp";

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Resets that were ever appended.
    pub(crate) enqueued: u64,
    /// Of these, as many from the first have their fate.
    pub(crate) floor: u64,
    /// Resets that the collector holds and that are not in the storage.
    pub(crate) unstored: u64,
}

impl Position {
    /// `None` where there is no file or it is damaged.
    pub(crate) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let number = |at: usize| bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes);
        let right = bytes[..4] == MAGIC && crc32fast::hash(&bytes[8..]).to_le_bytes() == bytes[4..8];
        let position = Self { enqueued: number(8), floor: number(16), unstored: number(24) };
        Ok((right && position.floor <= position.enqueued).then_some(position))
    }

    /// Writes it over what the file said before.
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
