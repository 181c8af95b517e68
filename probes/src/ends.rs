//! Both ends of a connection, as they go into rules and records.

use reset_collector_probes::ResetRecord;

use crate::segment::Segment;

/// Addresses in network order, IPv4 as `::ffff:a.b.c.d`; ports in the host's.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) local: [u32; 4],
    pub(crate) peer: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) peer_port: u16,
}

impl Ends {
    /// This host's end is the destination of a segment that came.
    #[inline(always)]
    pub(crate) fn of_received(segment: &Segment) -> Self {
        Self {
            local: segment.destination,
            peer: segment.source,
            local_port: segment.destination_port,
            peer_port: segment.source_port,
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
        }
    }

    /// 4 for IPv4 and IPv4-mapped addresses, else 6.
    #[inline(always)]
    pub(crate) fn version(&self) -> u8 {
        if self.local[0] == 0 && self.local[1] == 0 && self.local[2] == 0xffff_u32.to_be() { 4 } else { 6 }
    }

    /// The connection in its namespace, as one number.
    #[inline(always)]
    pub(crate) fn key(&self, network_namespace: u32) -> u64 {
        /// Odd constants spread each word over all bits (a multiply-shift hash).
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut key = u64::from(network_namespace) << 32 | u64::from(self.local_port) << 16 | u64::from(self.peer_port);
        let mut index = 0;
        while index < 4 {
            key = (key ^ (u64::from(self.local[index]) << 32 | u64::from(self.peer[index]))).wrapping_mul(SPREAD);
            key ^= key >> 29;
            index += 1;
        }
        key
    }

    #[inline(always)]
    pub(crate) fn write(&self, record: &mut ResetRecord) {
        record.ip_version = self.version();
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
