//! The judge's eyes: `tcpdump` on a host, and the resets in what it wrote.

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::network::Host;

/// Hop limit of segments that an actor made by hand (`MARK` in `actors/segments.py`): no host's TCP sent them.
pub const FORGED_HOP_LIMIT: u8 = 77;

/// A RST segment on a device of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rst {
    /// When, ns since 1970.
    pub time_ns: u64,
    /// Which way, seen from the host.
    pub way: Way,
    /// Index of the device.
    pub device: u32,
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// Made by hand.
    pub forged: bool,
}

/// Which way a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the host.
    In,
    /// Out of the host.
    Out,
    /// Out and in again: loopback, where it is seen once.
    Loopback,
}

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture every TCP segment on every device of the host, and waits until it does.
    ///
    /// # Errors
    /// tcpdump is missing or will not run; its own text.
    pub fn start(host: &Host, file: PathBuf) -> Result<Self> {
        let mut tcpdump = host
            .command("tcpdump")
            .args(["-i", "any", "-y", "LINUX_SLL2", "-n", "-U", "-s", "128", "-Z", "root", "--immediate-mode"])
            .args(["--time-stamp-precision", "nano", "-w"])
            .arg(&file)
            .arg("tcp")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = BufReader::new(tcpdump.stderr.take().context("no stderr")?);
        let mut said = String::new();
        while !said.contains("listening on") {
            let mut line = String::new();
            ensure!(stderr.read_line(&mut line)? > 0, "tcpdump: {said}");
            said += &line;
        }
        Ok(Self { tcpdump, stderr, file })
    }

    /// Stops, and returns the resets seen, in the order of time.
    ///
    /// # Errors
    /// tcpdump lost packets: then it is no judge.
    pub fn finish(mut self) -> Result<Vec<Rst>> {
        self.terminate()?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump lost packets: {said}");
        read(&self.file)
    }

    fn terminate(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.tcpdump), Signal::TERM)?;
        self.tcpdump.wait()?;
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Ok(None) = self.tcpdump.try_wait() {
            drop(self.terminate());
        }
    }
}

const FILE_HEADER_LEN: usize = 24;
const PACKET_HEADER_LEN: usize = 16;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_LINUX_SLL2: u32 = 276;
const SLL2_LEN: usize = 20;
const ARPHRD_LOOPBACK: u16 = 772;
const PACKET_HOST: u8 = 0;
const PACKET_OUTGOING: u8 = 4;
const TCP: u8 = 6;
const FLAG_RST: u8 = 4;

/// The resets in a file of tcpdump's.
fn read(file: &Path) -> Result<Vec<Rst>> {
    let bytes = std::fs::read(file)?;
    let word = |at: usize| -> Result<u32> {
        let found = bytes.get(at..at + 4).context("the capture is cut short")?;
        Ok(u32::from_le_bytes(found.try_into()?))
    };
    ensure!(word(0)? == MAGIC_NANOSECONDS && word(20)? == LINKTYPE_LINUX_SLL2, "not the expected capture format");
    let mut resets = Vec::new();
    let mut at = FILE_HEADER_LEN;
    while at < bytes.len() {
        let time_ns = u64::from(word(at)?) * 1_000_000_000 + u64::from(word(at + 4)?);
        let start = at + PACKET_HEADER_LEN;
        at = start + word(at + 8)? as usize;
        let packet = bytes.get(start..at).context("the capture is cut short")?;
        resets.extend(reset(packet, time_ns)?);
    }
    resets.sort_by_key(|reset| reset.time_ns);
    Ok(resets)
}

/// The packet, with its cooked header, as a reset if it is one.
fn reset(packet: &[u8], time_ns: u64) -> Result<Option<Rst>> {
    ensure!(packet.len() >= SLL2_LEN + 40, "a packet is cut short");
    let (cooked, ip) = packet.split_at(SLL2_LEN);
    let way = match (u16::from_be_bytes([cooked[8], cooked[9]]), cooked[10]) {
        (ARPHRD_LOOPBACK, _) => Way::Loopback,
        (_, PACKET_OUTGOING) => Way::Out,
        (_, PACKET_HOST) => Way::In,
        (_, other) => bail!("packet type {other}"),
    };
    let (protocol, hop_limit, source, destination, tcp): (u8, u8, IpAddr, IpAddr, &[u8]) = match ip[0] >> 4 {
        4 => (
            ip[9],
            ip[8],
            Ipv4Addr::from(<[u8; 4]>::try_from(&ip[12..16])?).into(),
            Ipv4Addr::from(<[u8; 4]>::try_from(&ip[16..20])?).into(),
            &ip[usize::from(ip[0] & 15) * 4..],
        ),
        6 => (
            ip[6],
            ip[7],
            Ipv6Addr::from(<[u8; 16]>::try_from(&ip[8..24])?).into(),
            Ipv6Addr::from(<[u8; 16]>::try_from(&ip[24..40])?).into(),
            &ip[40..],
        ),
        other => bail!("IP version {other}"),
    };
    ensure!(protocol == TCP && tcp.len() >= 20, "not TCP");
    if tcp[13] & FLAG_RST == 0 {
        return Ok(None);
    }
    Ok(Some(Rst {
        time_ns,
        way,
        device: u32::from_be_bytes(cooked[4..8].try_into()?),
        source: SocketAddr::new(source, u16::from_be_bytes([tcp[0], tcp[1]])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([tcp[2], tcp[3]])),
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        forged: hop_limit == FORGED_HOP_LIMIT,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, flags: u8, hop_limit: u8) -> Vec<u8> {
        let mut packet = vec![8, 0, 0, 0, 0, 0, 0, 2, 0, 1, kind, 6, 0, 0, 0, 0, 0, 0, 0, 0];
        packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, hop_limit, TCP, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
        packet.extend([0x1f, 0x90, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn reads_a_reset() {
        let found = reset(&packet(PACKET_OUTGOING, FLAG_RST | 16, 64), 5).expect("readable").expect("a reset");
        let expected = Rst {
            time_ns: 5,
            way: Way::Out,
            device: 2,
            source: "10.9.0.1:8080".parse().expect("address"),
            destination: "10.9.0.2:80".parse().expect("address"),
            sequence: 7,
            forged: false,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn tells_forged_ones_and_other_segments() {
        let forged = reset(&packet(PACKET_HOST, FLAG_RST, FORGED_HOP_LIMIT), 5).expect("readable").expect("a reset");
        assert!(forged.forged && forged.way == Way::In);
        assert_eq!(reset(&packet(PACKET_HOST, 16, 64), 5).expect("readable"), None);
        assert!(reset(&packet(PACKET_HOST, FLAG_RST, 64)[..50], 5).is_err());
    }
}
