//! One record in a storage segment: its bytes, how they are found again, and how damage is told from an end.
//!
//! A record is a header and a request's message. `start` counts the resets enqueued before it since the directory was
//! made, so a gap between two records says exactly how many resets are missing. The two marks are written in place,
//! four bytes each, and derive from the header's checksum: damage cannot make a record look sent.

/// Bytes of a record before its message.
pub(crate) const HEADER_LEN: usize = 36;

const MAGIC: [u8; 4] = *b"RSTq";
const CHECKED: std::ops::Range<usize> = 8..28;
const HANDED_OUT_AT: usize = 28;
const DONE_AT: usize = 32;
const HANDED_OUT: u32 = 0x4f55_5421;
const DONE: u32 = 0x444f_4e45;

/// What a record says of itself.
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

/// A mark in a record that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A request was made of it: the backend may have it.
    HandedOut,
    /// It has a fate.
    Done,
}

/// A record as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where its header begins in the segment.
    pub(crate) offset: u64,
    /// Its header, known to be right.
    pub(crate) header: Header,
    /// Whether the message is all there.
    pub(crate) body: Body,
    /// Marked [`Mark::HandedOut`].
    pub(crate) handed_out: bool,
    /// Marked [`Mark::Done`].
    pub(crate) done: bool,
}

/// Whether a record's message is all there.
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
            Mark::HandedOut => (HANDED_OUT_AT as u64, (crc ^ HANDED_OUT).to_le_bytes()),
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
        (header.resets > 0 && header.encode()[..HANDED_OUT_AT] == bytes[..HANDED_OUT_AT]).then_some(header)
    }

    fn is_marked(&self, bytes: &[u8], mark: Mark) -> bool {
        let (at, value) = self.mark(mark);
        bytes[at as usize..].starts_with(&value)
    }
}

/// Every record of a segment whose header is right, in order, and whether bytes at the end belong to none.
pub(crate) fn scan(segment: &[u8]) -> (Vec<Found>, bool) {
    let mut found = Vec::new();
    let mut offset = 0;
    let mut rest_is_foreign = false;
    // Less than a header at the end is one that a crash cut off.
    while offset + HEADER_LEN <= segment.len() {
        let Some(header) = Header::decode(&segment[offset..]) else {
            rest_is_foreign = true;
            match next_magic(segment, offset + 1) {
                Some(next) => offset = next,
                None => break,
            }
            continue;
        };
        let record = &segment[offset..];
        let end = HEADER_LEN + header.length as usize;
        let done = header.is_marked(record, Mark::Done);
        let body = match record.get(HEADER_LEN..end) {
            None => Body::Torn,
            // Nobody will read it again.
            Some(_) if done => Body::Whole,
            Some(message) if crc32fast::hash(message) == header.body_crc => Body::Whole,
            Some(_) => Body::Damaged,
        };
        let handed_out = header.is_marked(record, Mark::HandedOut);
        found.push(Found { offset: offset as u64, header, body, handed_out, done });
        offset += if body == Body::Torn { HEADER_LEN } else { end };
        // After a torn record nothing follows but what was left of its message.
        rest_is_foreign = false;
        if body == Body::Torn {
            match next_magic(segment, offset) {
                Some(next) => offset = next,
                None => break,
            }
        }
    }
    (found, rest_is_foreign)
}

fn next_magic(segment: &[u8], from: usize) -> Option<usize> {
    let rest = segment.get(from..)?;
    rest.windows(MAGIC.len()).position(|window| window == MAGIC).map(|at| from + at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

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
