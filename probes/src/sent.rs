//! Resets on their way out, remembered for a moment, so that the device queue yields one record for each reset.
//!
//! TCP's own resets have a record before a device queues them, and netfilter's have one at the first device that queues
//! them; bridges, bonds and tunnels queue the same segment again. A device may compute the checksum and drop the socket,
//! but it leaves addresses, ports and sequence numbers alone.

/// How many resets are remembered: a power of two.
pub const SENT: usize = 4_096;
/// How long a reset may take from its origin to the last device.
pub const SENT_TIMEOUT_NS: u64 = 2_000_000_000;
/// [`SentReset::device`] of a reset that TCP sent.
pub const BY_TCP: u64 = 0;

/// A reset segment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentReset {
    /// Source address, in network order; IPv4 is mapped.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
    /// Sequence number (high half) and acknowledgement number.
    pub numbers: u64,
    /// Source port (high half) and destination port.
    pub ports: u64,
    /// When it was first seen, ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Address of the first device that queued it, or [`BY_TCP`].
    pub device: u64,
}

impl SentReset {
    /// Whether this reset, which a device queues, is one that has a record: `earlier` is what was remembered.
    #[inline(always)]
    pub fn has_record(&self, earlier: &Self) -> bool {
        let mut difference = (self.numbers ^ earlier.numbers) | (self.ports ^ earlier.ports);
        let mut index = 0;
        while index < 4 {
            difference |= u64::from(self.source[index] ^ earlier.source[index]);
            difference |= u64::from(self.destination[index] ^ earlier.destination[index]);
            index += 1;
        }
        difference == 0
            && self.time_ns.wrapping_sub(earlier.time_ns) < SENT_TIMEOUT_NS
            && (earlier.device == BY_TCP || earlier.device != self.device)
    }

    /// Where it is remembered, below [`SENT`].
    #[inline(always)]
    pub fn slot(&self) -> u32 {
        let addresses = self.source[3] ^ self.destination[3].rotate_left(16);
        let mixed =
            (self.numbers ^ self.ports.rotate_left(17) ^ u64::from(addresses)).wrapping_mul(crate::hash::SPREAD);
        (mixed >> (64 - SENT.ilog2())) as u32
    }
}

/// Sequence and acknowledgement number of the reset that answers a segment (RFC 9293, section 3.5.2), as
/// [`SentReset::numbers`]. `length`: bytes of data.
#[inline(always)]
pub fn answer_numbers(flags: u8, sequence: u32, acknowledgement: u32, length: u16) -> u64 {
    use crate::cause::segment::{ACK, FIN, SYN};
    if flags & ACK != 0 {
        return u64::from(acknowledgement) << 32;
    }
    let controls = u32::from(flags >> SYN.trailing_zeros() & 1) + u32::from(flags >> FIN.trailing_zeros() & 1);
    u64::from(sequence.wrapping_add(u32::from(length)).wrapping_add(controls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::segment::{ACK, FIN, SYN};

    fn reset(device: u64, time_ns: u64) -> SentReset {
        SentReset { source: [1, 2, 3, 4], destination: [5, 6, 7, 8], numbers: 9, ports: 10, time_ns, device }
    }

    #[test]
    fn the_answer_to_a_segment_has_the_numbers_that_the_rfc_gives_it() {
        assert_eq!(answer_numbers(SYN, 7, 0, 0), 8);
        assert_eq!(answer_numbers(SYN | FIN, u32::MAX, 0, 3), 4, "modulo 2^32");
        assert_eq!(answer_numbers(0, 7, 5, 10), 17);
        assert_eq!(answer_numbers(ACK, 7, 5, 10), 5 << 32);
        assert_eq!(answer_numbers(SYN | ACK, 7, u32::MAX, 0), u64::from(u32::MAX) << 32);
    }

    #[test]
    fn a_reset_of_tcp_has_its_record_at_every_device() {
        for device in [1, 2] {
            assert!(reset(device, 100).has_record(&reset(BY_TCP, 90)));
        }
        assert!(!reset(1, 90 + SENT_TIMEOUT_NS).has_record(&reset(BY_TCP, 90)), "long ago");
        assert!(!reset(1, 90).has_record(&reset(BY_TCP, 91)), "the clock of another processor is ahead: not the same");
    }

    #[test]
    fn a_reset_of_netfilter_has_one_record_for_all_devices() {
        assert!(reset(2, 100).has_record(&reset(1, 90)));
        assert!(!reset(1, 100).has_record(&reset(1, 90)), "the answer to a segment that was sent again");
    }

    #[test]
    fn another_segment_is_another_reset() {
        let earlier = reset(BY_TCP, 90);
        let changes: [fn(&mut SentReset); 6] = [
            |reset| reset.source[0] ^= 1,
            |reset| reset.source[3] ^= 1,
            |reset| reset.destination[1] ^= 1,
            |reset| reset.destination[3] ^= 1,
            |reset| reset.numbers ^= 1 << 63,
            |reset| reset.ports ^= 1,
        ];
        for change in changes {
            let mut other = reset(1, 100);
            change(&mut other);
            assert!(!other.has_record(&earlier), "{other:?}");
            assert!((other.slot() as usize) < SENT);
        }
    }
}
