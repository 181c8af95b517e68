//! Addresses and ports of a connection, as rules and records have them.

use core::hint::black_box;

use reset_collector_probes::ResetRecord;

use crate::segment::Segment;

/// Addresses in network order, IPv4 as `::ffff:a.b.c.d`; ports in the host's.
#[derive(Clone, Copy)]
pub(crate) struct Tuple {
    pub(crate) local: [u32; 4],
    pub(crate) peer: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) peer_port: u16,
    /// 4 for IPv4 and IPv4-mapped addresses, else 6.
    pub(crate) version: u8,
}

/// 4 for an IPv4-mapped address, else 6. Calculated, since the verifier would follow each branch.
#[inline(always)]
pub(crate) fn version_of(address: &[u32; 4]) -> u8 {
    let unlike = u64::from(black_box(address[0] | address[1] | (address[2] ^ 0xffff_u32.to_be())));
    4 + (unlike.wrapping_neg() >> 62) as u8 & 6
}

impl Tuple {
    /// This host's end is the destination of a segment that came.
    #[inline(always)]
    pub(crate) fn of_received(segment: &Segment) -> Self {
        Self {
            local: segment.destination,
            peer: segment.source,
            local_port: segment.destination_port,
            peer_port: segment.source_port,
            version: segment.version,
        }
    }

    /// This host's end is the source of a segment that goes.
    #[inline(always)]
    pub(crate) fn of_sent(segment: &Segment) -> Self {
        Self {
            local: segment.source,
            peer: segment.destination,
            local_port: segment.source_port,
            peer_port: segment.destination_port,
            version: segment.version,
        }
    }

    #[inline(always)]
    pub(crate) fn write(&self, record: &mut ResetRecord) {
        record.local_port = self.local_port;
        record.peer_port = self.peer_port;
        write_address(&mut record.local_address, self.local);
        write_address(&mut record.peer_address, self.peer);
    }
}

/// Writes an address of four words in network order.
#[inline(always)]
fn write_address(into: &mut [u8; 16], words: [u32; 4]) {
    let into = into.as_mut_ptr().cast::<u32>();
    // SAFETY: 16 bytes are four words, and a record's addresses lie on multiples of 8.
    unsafe {
        *into = words[0];
        *into.add(1) = words[1];
        *into.add(2) = words[2];
        *into.add(3) = words[3];
    }
}
