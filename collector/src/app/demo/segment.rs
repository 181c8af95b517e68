//! TCP segments made by hand and sent by a raw socket: what no well-behaved peer sends.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Flags of the TCP header (RFC 9293, section 3.1).
pub(crate) mod flag {
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// Length of a TCP header without options, bytes.
const HEADER_LEN: usize = 20;

/// Sends one segment without data; needs CAP_NET_RAW.
///
/// # Errors
/// The socket's.
pub(crate) fn send(source: SocketAddr, destination: SocketAddr, flags: u8, sequence: u32, ack: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(destination), Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(source.ip(), 0).into())?;
    // A raw socket's address has no port.
    socket
        .send_to(&segment(source, destination, flags, sequence, ack), &SocketAddr::new(destination.ip(), 0).into())?;
    Ok(())
}

fn segment(source: SocketAddr, destination: SocketAddr, flags: u8, sequence: u32, ack: u32) -> [u8; HEADER_LEN] {
    const WINDOW: u16 = 4096;
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&destination.port().to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&ack.to_be_bytes());
    header[12] = (HEADER_LEN as u8 / 4) << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&WINDOW.to_be_bytes());
    let sum = checksum(source.ip(), destination.ip(), &header);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The Internet checksum over the pseudo header and the segment (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn checksum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    const TCP: u32 = 6;
    let mut sum = TCP + segment.len() as u32;
    let mut add = |bytes: &[u8]| {
        sum += bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
            .sum::<u32>();
    };
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => add(&address.octets()),
            IpAddr::V6(address) => add(&address.octets()),
        }
    }
    add(segment);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_with_its_checksum_sums_to_zero() {
        for (source, destination) in [("127.0.0.1:4242", "127.0.0.1:80"), ("[::1]:4242", "[fe80::1:2]:65535")] {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().expect("an address"), destination.parse().expect("an address"));
            let segment = segment(source, destination, flag::SYN | flag::ACK, 0xdead_beef, u32::MAX);
            assert_eq!(checksum(source.ip(), destination.ip(), &segment), 0, "{source}");
            assert_eq!(segment[13], 0x12);
        }
    }

    #[test]
    fn the_checksum_of_a_known_segment() {
        // A SYN of 192.168.0.1:1025 to 10.0.0.1:80, summed by hand: 0xc0a8+0x0001+0x0a00+0x0001+0x0006+0x0014
        // +0x0401+0x0050+0x5002+0x1000 = 0x12f17, carried 0x2f18, inverted 0xd0e7.
        let segment = segment(
            "192.168.0.1:1025".parse().expect("an address"),
            "10.0.0.1:80".parse().expect("an address"),
            flag::SYN,
            0,
            0,
        );
        assert_eq!(segment[16..18], [0xd0, 0xe7]);
    }
}
