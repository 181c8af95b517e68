//! Resets made as fast as the machine can, or one at a time: connections that are refused, closed with SO_LINGER 0, and
//! SYN segments written by hand. Each function runs on the host whose thread calls it ([`crate::network::Host::enter`]).

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketType, bind, connect, ipproto, sendto, socket, sockopt},
};

/// Sources that SYN segments are forged from: set apart for benchmarks (RFC 2544), 2^17 addresses.
pub const FORGED_SOURCES: &str = "198.18.0.0/15";
const FIRST_FORGED: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const FORGED_MASK: u32 = (1 << 17) - 1;

/// Whom a flood of SYN segments comes from, and what it is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One source, every port from 10,000 on: a port scan.
    Scan,
    /// Sources all over [`FORGED_SOURCES`], one port: a SYN flood.
    OnePort,
}

/// Ports from here on are scanned.
const FIRST_SCANNED: u16 = 10_000;
/// The port that [`Shape::OnePort`] is aimed at.
const AIM: u16 = 9_999;
/// Segments between two questions whether to go on.
const ROUND: u32 = 256;

/// Connects to a port that nobody listens on, `count` times in all, from so many threads.
pub fn refused(closed: SocketAddr, count: u64, threads: u64) {
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                for _ in 0..count / threads {
                    // Refused, each of them: the kernel's counter is checked afterwards.
                    drop(TcpStream::connect(closed));
                }
            });
        }
    });
}

/// Opens and closes connections to a listener of this host with SO_LINGER 0, `count` times.
///
/// # Errors
/// A connection cannot be made.
pub fn linger_zero(address: Ipv4Addr, count: u64) -> Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    let there = listener.local_addr()?;
    for _ in 0..count {
        let stream = TcpStream::connect(there)?;
        let (accepted, _) = listener.accept()?;
        close_with_reset(stream)?;
        drop(accepted);
    }
    Ok(())
}

/// Connects from an end of one's own choice and closes with SO_LINGER 0.
///
/// # Errors
/// The connection cannot be made.
pub fn linger_zero_from(from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
    let socket = bound(from)?;
    connect(&socket, &to).with_context(|| format!("connecting to {to}"))?;
    close_with_reset(TcpStream::from(socket))
}

/// Connects from an end of one's own choice to a port that is closed.
///
/// # Errors
/// The connection is not refused.
pub fn refused_from(from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
    match connect(bound(from)?, &to) {
        Err(Errno::CONNREFUSED) => Ok(()),
        other => anyhow::bail!("{to} does not refuse: {other:?}"),
    }
}

fn bound(from: SocketAddrV4) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &from).with_context(|| format!("binding {from}"))?;
    Ok(socket)
}

fn close_with_reset(stream: TcpStream) -> Result<()> {
    sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO))?;
    Ok(())
}

/// Sends SYN segments as fast as one thread can, until `goes_on`, which gets the number sent since its last call
/// last, says no. Closed ports answer each with a reset.
///
/// # Errors
/// No raw socket is available.
pub fn syn_flood(shape: Shape, from: Ipv4Addr, to: Ipv4Addr, goes_on: impl Fn(u64) -> bool) -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).context("a raw socket")?;
    let there = SocketAddrV4::new(to, 0);
    let (mut sent, mut random) = (0, 0x9e37_79b9_u32 ^ u32::from(from));
    while goes_on(std::mem::take(&mut sent)) {
        for _ in 0..ROUND {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let (source, port) = match shape {
                Shape::Scan => (from, FIRST_SCANNED + (random % u32::from(u16::MAX - FIRST_SCANNED)) as u16),
                Shape::OnePort => (Ipv4Addr::from(FIRST_FORGED | random & FORGED_MASK), AIM),
            };
            match sendto(&socket, &syn(source, to, port, random), SendFlags::empty(), &there) {
                Ok(_) => sent += 1,
                Err(Errno::NOBUFS | Errno::AGAIN) => {}
                Err(error) => return Err(error).context("sending a segment"),
            }
        }
    }
    Ok(())
}

/// A SYN segment with its IP header; the kernel fills in that one's length and checksum (raw(7)).
fn syn(source: Ipv4Addr, destination: Ipv4Addr, port: u16, random: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let source_port = 1_024 | (random >> 16) as u16;
    packet[20..22].copy_from_slice(&source_port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..28].copy_from_slice(&random.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[34..36].copy_from_slice(&[0xff, 0xff]);
    let checksum = checksum(&packet);
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// TCP's checksum of a segment without data (RFC 9293, 3.1): over the addresses, the protocol, the length, the header.
fn checksum(packet: &[u8; 40]) -> u16 {
    let words = packet[12..].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Accepts connections and drops each at once, until the listener is shut or `is_over` says so.
///
/// # Errors
/// Accepting fails.
pub fn accept_all(listener: &TcpListener, is_over: impl Fn() -> bool) -> Result<u64> {
    let mut accepted = 0;
    listener.set_nonblocking(true)?;
    while !is_over() {
        match listener.accept() {
            Ok(_) => accepted += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            // The peer reset it before it was accepted.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_checks() {
        let packet = syn(Ipv4Addr::new(198, 18, 3, 4), Ipv4Addr::new(10, 9, 0, 2), 9_999, 0xdead_beef);
        let mut whole = packet;
        whole[36..38].fill(0);
        assert_eq!(checksum(&whole).to_be_bytes(), packet[36..38]);
        // A receiver sums the checksum too and gets all ones, whose complement is 0.
        assert_eq!(checksum(&packet), 0);
    }
}
