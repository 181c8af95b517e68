//! One record of a storage segment: its encoding, how a scan finds it again, how damage differs from a torn end.
//!
//! A record is a header and a request's message. `start` counts the resets enqueued before it since the directory was
//! created, so a gap between two records is the exact number of missing resets. The two marks are written in place,
//! four bytes each, and derive from the header's checksum: damage cannot make a record look sent.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// Bytes of a record before its message.
pub(crate) const HEADER_LEN: usize = 36;

const MAGIC: [u8; 4] = *b"RSTq";
const CHECKED: std::ops::Range<usize> = 8..28;
const SENT_AT: usize = 28;
const DONE_AT: usize = 32;
const SENT: u32 = 0x4f55_5421;
const DONE: u32 = 0x444f_4e45;
/// A longer message was never written: requests are at most 64 MiB (`batch.max_bytes`) and one batch more.
const MAX_MESSAGE: u32 = 128 << 20;
/// No counter of resets gets there.
const MAX_START: u64 = 1 << 63;
/// A segment is read in pieces of this size.
const PIECE: usize = 64 << 10;

/// The fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Resets enqueued before this record.
    pub(crate) start: u64,
    /// Resets of this record, never 0.
    pub(crate) resets: u32,
    /// Bytes of the message.
    pub(crate) length: u32,
    /// CRC-32 of the message.
    pub(crate) body_crc: u32,
}

/// A mark that is written into an existing record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It was in a request: the backend may have it.
    Sent,
    /// It has an outcome.
    Done,
}

/// A record that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where its header begins in the segment.
    pub(crate) offset: u64,
    /// Its header, valid.
    pub(crate) header: Header,
    /// Whether the message is complete.
    pub(crate) body: Body,
    /// Marked [`Mark::Sent`].
    pub(crate) sent: bool,
    /// Marked [`Mark::Done`].
    pub(crate) done: bool,
}

/// Whether a record's message is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// As it was written.
    Whole,
    /// Changed since.
    Damaged,
    /// The segment ends before it does: a crash in the middle of writing.
    Torn,
}

impl Header {
    pub(crate) fn of(start: u64, resets: u32, message: &[u8]) -> Self {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        Self { start, resets, length, body_crc: crc32fast::hash(message) }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.resets.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[CHECKED]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Where a mark stands in the record, and its bytes.
    pub(crate) fn mark(&self, mark: Mark) -> (u64, [u8; 4]) {
        let crc = crc32fast::hash(&self.encode()[CHECKED]);
        match mark {
            Mark::Sent => (SENT_AT as u64, (crc ^ SENT).to_le_bytes()),
            Mark::Done => (DONE_AT as u64, (crc ^ DONE).to_le_bytes()),
        }
    }

    /// Resets enqueued up to and with this record.
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.resets))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let header = Self {
            start: u64::from_le_bytes(*bytes[8..].first_chunk()?),
            resets: u32::from_le_bytes(*bytes[16..].first_chunk()?),
            length: u32::from_le_bytes(*bytes[20..].first_chunk()?),
            body_crc: u32::from_le_bytes(*bytes[24..].first_chunk()?),
        };
        let is_possible = header.resets > 0 && header.length <= MAX_MESSAGE && header.start <= MAX_START;
        (is_possible && header.encode()[..SENT_AT] == bytes[..SENT_AT]).then_some(header)
    }

    fn is_marked(&self, bytes: &[u8], mark: Mark) -> bool {
        let (at, value) = self.mark(mark);
        bytes[at as usize..].starts_with(&value)
    }
}

/// Where a segment is read from, in pieces: it may be larger than what was ever written, with holes.
pub(crate) trait SegmentSource {
    /// Bytes of the segment.
    fn len(&self) -> io::Result<u64>;
    /// Fills the buffer from an offset; fails at the end.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The first byte from an offset on that is not in a hole; `None` where there is none.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
}

impl SegmentSource for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // A file system without the call: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Every record of a segment with a valid header, in order, and whether bytes at the end belong to no record.
pub(crate) fn scan(segment: &impl SegmentSource) -> io::Result<(Vec<Found>, bool)> {
    let length = segment.len()?;
    let mut found = Vec::new();
    let mut offset = 0;
    let mut rest_is_foreign = false;
    let mut bytes = [0; HEADER_LEN];
    // Less than a header at the end was cut off by a crash.
    while offset + HEADER_LEN as u64 <= length {
        segment.read_exact_at(&mut bytes, offset)?;
        let Some(header) = Header::decode(&bytes) else {
            rest_is_foreign = true;
            match next_magic(segment, offset + 1, length)? {
                Some(next) => offset = next,
                None => break,
            }
            continue;
        };
        let end = offset + HEADER_LEN as u64 + u64::from(header.length);
        let done = header.is_marked(&bytes, Mark::Done);
        let body = match end <= length {
            false => Body::Torn,
            // It is not read again.
            true if done => Body::Whole,
            true if message_crc(segment, offset + HEADER_LEN as u64, header.length)? == header.body_crc => Body::Whole,
            true => Body::Damaged,
        };
        found.push(Found { offset, header, body, sent: header.is_marked(&bytes, Mark::Sent), done });
        rest_is_foreign = false;
        if body == Body::Torn {
            // Nothing follows a torn record but the rest of its message.
            match next_magic(segment, offset + HEADER_LEN as u64, length)? {
                Some(next) => offset = next,
                None => break,
            }
        } else {
            offset = end;
        }
    }
    Ok((found, rest_is_foreign))
}

fn message_crc(segment: &impl SegmentSource, mut offset: u64, length: u32) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut left = length as usize;
    let mut piece = vec![0; PIECE.min(left)];
    while left > 0 {
        let piece = &mut piece[..PIECE.min(left)];
        segment.read_exact_at(piece, offset)?;
        hasher.update(piece);
        offset += piece.len() as u64;
        left -= piece.len();
    }
    Ok(hasher.finalize())
}

/// Where the next header may begin.
fn next_magic(segment: &impl SegmentSource, mut from: u64, length: u64) -> io::Result<Option<u64>> {
    let mut piece = Vec::new();
    // A hole holds zeros, and the magic none.
    while let Some(start) = segment.next_data(from)?.filter(|start| start + MAGIC.len() as u64 <= length) {
        piece.resize(PIECE.min(usize::try_from(length - start).unwrap_or(PIECE)), 0);
        segment.read_exact_at(&mut piece, start)?;
        if let Some(at) = piece.windows(MAGIC.len()).position(|window| window == MAGIC) {
            return Ok(Some(start + at as u64));
        }
        from = start + (piece.len() - (MAGIC.len() - 1)) as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    impl SegmentSource for Vec<u8> {
        fn len(&self) -> io::Result<u64> {
            Ok(Vec::len(self) as u64)
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            buffer.copy_from_slice(&self[offset as usize..][..buffer.len()]);
            Ok(())
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
            Ok(Some(offset))
        }
    }

    fn scan(segment: &[u8]) -> (Vec<Found>, bool) {
        super::scan(&segment.to_vec()).unwrap()
    }

    fn segment(messages: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            bytes.extend(Header::of(number as u64 * 5, 5, message).encode());
            bytes.extend(*message);
        }
        bytes
    }

    #[test]
    fn whole_damaged_and_torn_are_told_apart() {
        let good = segment(&[b"one", b"two", b"three"]);
        let (found, foreign) = scan(&good);
        assert_eq!(found.iter().map(|found| found.body).collect::<Vec<_>>(), [Body::Whole; 3]);
        assert!(!foreign);

        let mut damaged = good.clone();
        damaged[HEADER_LEN] ^= 1;
        assert_eq!(
            scan(&damaged).0.iter().map(|f| f.body).collect::<Vec<_>>(),
            [Body::Damaged, Body::Whole, Body::Whole]
        );

        let (found, foreign) = scan(&good[..good.len() - 1]);
        assert_eq!((found[2].body, foreign), (Body::Torn, false));

        let mut headless = good.clone();
        headless[10] ^= 1;
        let (found, _) = scan(&headless);
        assert_eq!(found.iter().map(|found| found.header.start).collect::<Vec<_>>(), [5, 10]);
    }

    /// The search for the next record meets it wherever the pieces end.
    #[test]
    fn records_behind_much_damage_are_found() {
        for damage in [1, 3, PIECE - 5, PIECE - 3, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let mut bytes = vec![b'R'; damage];
            bytes.extend(segment(&[b"one", b"two"]));
            let (found, foreign) = scan(&bytes);
            assert_eq!(found.iter().map(|found| found.body).collect::<Vec<_>>(), [Body::Whole; 2], "{damage}");
            assert!(!foreign);
        }
    }

    #[test]
    fn a_long_message_is_checked_in_pieces() {
        let message: Vec<u8> = (0..3 * PIECE + 7).map(|at| at as u8).collect();
        let mut bytes = segment(&[&message]);
        assert_eq!(scan(&bytes).0[0].body, Body::Whole);
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(scan(&bytes).0[0].body, Body::Damaged);
    }

    #[test]
    fn a_mark_is_read_back_and_damage_is_no_mark() {
        let mut bytes = segment(&[b"message"]);
        let (at, value) = scan(&bytes).0[0].header.mark(Mark::Done);
        bytes[at as usize..][..4].copy_from_slice(&value);
        assert!(scan(&bytes).0[0].done);
        for bit in 0..32 {
            let mut damaged = bytes.clone();
            damaged[at as usize + bit / 8] ^= 1 << (bit % 8);
            assert!(!scan(&damaged).0[0].done);
        }
    }
}
