//! A TCP segment in an `sk_buff`: its addresses, ports and flags.

use reset_collector_probes::{
    cause::{ReasonClass, segment::RST},
    field::Field,
};

use crate::{
    read::{copy, copy_at, has, load, load_bits},
    tuple::version_of,
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
/// `RTN_LOCAL` (include/uapi/linux/rtnetlink.h)
const RTN_LOCAL: u16 = 2;
/// `RTF_LOCAL` (include/uapi/linux/ipv6_route.h)
const RTF_LOCAL: u32 = 0x8000_0000;
/// `SKB_DST_PTRMASK` (include/linux/skbuff.h)
const DST_POINTER: u64 = !7;
/// Extension headers that are followed; RFC 8200 asks that each appear at most once, so four is plenty for a reset.
const EXTENSION_HEADERS: usize = 4;

/// Without options.
const TCP_HEADER_LEN: usize = 20;
/// Options that are looked at for a signature: it takes 18 of at most 40 bytes, so that at most 22 stand before it.
const TCP_OPTIONS: usize = 23;
/// The MD5 signature option (RFC 2385, section 3.0).
const MD5_SIGNATURE: u8 = 19;
const MD5_SIGNATURE_LEN: usize = 18;

/// Addresses, ports and flags of a segment, the ports in the host's byte order.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    /// As `Tuple::version`.
    pub(crate) version: u8,
    /// With its options.
    header_len: u8,
    /// Bytes of data.
    pub(crate) length: u16,
}

/// The first 16 bytes of a TCP header, as words.
#[derive(Clone, Copy)]
#[repr(C)]
struct TcpHeader {
    ports: [u16; 2],
    sequence: u32,
    acknowledgement: u32,
    offset_and_flags: [u8; 4],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    _tos: u8,
    total_length: u16,
    _fragment: [u8; 5],
    protocol: u8,
    _checksum: u16,
    source: u32,
    destination: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv6Header {
    version: u8,
    _flow: [u8; 3],
    payload_length: u16,
    next: u8,
    _hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// What is read at once: all of IPv6's header, or IPv4's without options, and the TCP header after that.
#[derive(Clone, Copy)]
#[repr(C)]
union Headers {
    v4: Ipv4Headers,
    v6: Ipv6Header,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4Headers {
    ip: Ipv4Header,
    tcp: TcpHeader,
}

impl Segment {
    /// Both ports in one word.
    #[inline(always)]
    pub(crate) fn both_ports(&self) -> u64 {
        u64::from(self.source_port) << 16 | u64::from(self.destination_port)
    }

    /// Sequence and acknowledgement number in one word.
    #[inline(always)]
    pub(crate) fn both_numbers(&self) -> u64 {
        u64::from(self.sequence) << 32 | u64::from(self.acknowledgement)
    }

    /// The segment that came in and that TCP answers.
    #[inline(always)]
    pub(crate) fn received(skb: *const u8) -> Option<Self> {
        let head: *const u8 = load(skb, Field::SkbHead);
        let transport: u16 = load(skb, Field::SkbTransportHeader);
        Self::read(head, load(skb, Field::SkbNetworkHeader), Some(transport))
    }

    /// Reads the headers. Without `transport`, the TCP header is found from the IP header: netfilter leaves
    /// `transport_header` wrong on its own resets.
    #[inline(always)]
    fn read(head: *const u8, network: u16, transport: Option<u16>) -> Option<Self> {
        let ip = head.wrapping_add(network as usize);
        let headers: Headers = copy_at(ip);
        // SAFETY: plain numbers, whichever they are.
        let (v4, v6) = unsafe { (headers.v4, headers.v6) };
        let (source, destination, version, tcp, end) = match v4.ip.version_and_length >> 4 {
            4 => {
                if v4.ip.protocol != IPPROTO_TCP {
                    return None;
                }
                let length = ((v4.ip.version_and_length & 15) as usize) * 4;
                let end = u16::from_be(v4.ip.total_length) as u64;
                (mapped(v4.ip.source), mapped(v4.ip.destination), 4, ip.wrapping_add(length), end)
            }
            6 => {
                let header = v6;
                let after = match transport {
                    Some(transport) => head.wrapping_add(transport as usize),
                    None => skip_extensions(ip, header.next)?,
                };
                let end = u16::from_be(header.payload_length) as u64 + size_of::<Ipv6Header>() as u64;
                (header.source, header.destination, version_of(&header.destination), after, end)
            }
            _ => return None,
        };
        let before = (tcp as u64).wrapping_sub(ip as u64);
        let tcp = if version == 4 && before == size_of::<Ipv4Header>() as u64 { v4.tcp } else { copy_at(tcp) };
        // A header has at least 20 bytes.
        if tcp.offset_and_flags[0] >> 4 < 5 {
            return None;
        }
        Some(Self {
            source,
            destination,
            source_port: u16::from_be(tcp.ports[0]),
            destination_port: u16::from_be(tcp.ports[1]),
            sequence: u32::from_be(tcp.sequence),
            acknowledgement: u32::from_be(tcp.acknowledgement),
            flags: tcp.offset_and_flags[1],
            version,
            header_len: (tcp.offset_and_flags[0] >> 4) * 4,
            length: end.saturating_sub(before + u64::from(tcp.offset_and_flags[0] >> 4) * 4) as u16,
        })
    }
}

/// Whether a segment that came carries the MD5 signature option (RFC 2385).
#[inline(always)]
pub(crate) fn is_signed(skb: *const u8, segment: &Segment) -> bool {
    let head: *const u8 = load(skb, Field::SkbHead);
    let tcp = head.wrapping_add(load::<u16>(skb, Field::SkbTransportHeader) as usize);
    let mut at = TCP_HEADER_LEN;
    for _ in 0..TCP_OPTIONS {
        if at + MD5_SIGNATURE_LEN > segment.header_len as usize {
            return false;
        }
        let [kind, length]: [u8; 2] = copy_at(tcp.wrapping_add(at));
        match kind {
            MD5_SIGNATURE => return length as usize == MD5_SIGNATURE_LEN,
            // The end of the options, and no operation.
            0 => return false,
            1 => at += 1,
            _ if length < 2 => return false,
            _ => at += length as usize,
        }
    }
    false
}

/// An IPv4 address as `::ffff:a.b.c.d`.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// Where the TCP header starts after the extension headers (RFC 8200, section 4), if it is TCP.
#[inline(always)]
fn skip_extensions(ip: *const u8, first: u8) -> Option<*const u8> {
    let mut next = first;
    let mut offset = size_of::<Ipv6Header>();
    for _ in 0..EXTENSION_HEADERS {
        match next {
            IPPROTO_TCP => return Some(ip.wrapping_add(offset)),
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => {
                let header: [u8; 2] = copy_at(ip.wrapping_add(offset));
                next = header[0];
                offset += (header[1] as usize + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}

#[inline(always)]
fn is_ip(skb: *const u8) -> bool {
    let protocol = u16::from_be(load::<u16>(skb, Field::SkbProtocol));
    protocol == ETH_P_IP || protocol == ETH_P_IPV6
}

/// A reset that netfilter made, or that TCP sent without a socket (`map::has_record` tells them apart): it has no socket and
/// came in by no interface.
#[inline(always)]
pub(crate) fn of_firewall(skb: *const u8) -> Option<Segment> {
    let socket: u64 = load(skb, Field::SkbSk);
    if socket != 0 || load::<u32>(skb, Field::SkbIif) != 0 || !is_ip(skb) {
        return None;
    }
    // tcp_v6_send_response leaves the checksum to the device (CHECKSUM_PARTIAL); nf_reject_ip6_tcphdr_put computes it
    // (CHECKSUM_NONE), as a device without that feature does for TCP's. Over IPv4, TCP's own carry the control socket.
    let version6 = u16::from_be(load::<u16>(skb, Field::SkbProtocol)) == ETH_P_IPV6;
    if version6 && load_bits(skb, Field::SkbIpSummed) != 0 {
        return None;
    }
    let segment = Segment::read(load(skb, Field::SkbHead), load(skb, Field::SkbNetworkHeader), None)?;
    (segment.flags & RST != 0).then_some(segment)
}

/// Whether a reset of the firewall answers a segment that this host itself sent: it goes to this host, from an address
/// that is another's. Where both are loopback's or the same, the rule stands where the segment arrives.
#[inline(always)]
pub(crate) fn rejects_own(skb: *const u8, segment: &Segment) -> bool {
    let [first, second, third, last] = segment.source;
    let is_loopback = if segment.version == 4 {
        last.to_ne_bytes()[0] == 127
    } else {
        first | second | third == 0 && last == 1_u32.to_be()
    };
    !is_loopback && segment.source != segment.destination && is_for_this_host(skb)
}

/// A reset that came for this host and was freed without a connection accepting it.
#[inline(always)]
pub(crate) fn of_dropped(skb: *const u8, class: ReasonClass) -> Option<Segment> {
    // PACKET_HOST, come in by an interface, IP.
    if load_bits(skb, Field::SkbPktType) != 0 || load::<u32>(skb, Field::SkbIif) == 0 || !is_ip(skb) {
        return None;
    }
    // Copies for packet sockets, bridges and the like are freed with their data elsewhere; netfilter's drops are ours
    // when the route says that the segment was for this host.
    if !reached_tcp(skb) && !(matches!(class, ReasonClass::NetfilterDrop) && is_for_this_host(skb)) {
        return None;
    }
    let segment = Segment::received(skb)?;
    (segment.flags & RST != 0).then_some(segment)
}

/// Whether a segment that came was handed to TCP: its data begin with TCP's header.
#[inline(always)]
pub(crate) fn reached_tcp(skb: *const u8) -> bool {
    let head: u64 = load(skb, Field::SkbHead);
    let data: u64 = load(skb, Field::SkbData);
    data == head.wrapping_add(u64::from(load::<u16>(skb, Field::SkbTransportHeader)))
}

/// State of the socket that early demultiplexing gave to a segment, if it did.
#[inline(always)]
pub(crate) fn socket_state(skb: *const u8) -> Option<u8> {
    // Copied: see `FullSocket::inner`.
    let socket: *const u8 = copy(skb, Field::SkbSk);
    (!socket.is_null()).then(|| copy(socket, Field::SkState))
}

/// Whether the route that the segment took ends here.
#[inline(always)]
pub(crate) fn is_for_this_host(skb: *const u8) -> bool {
    let route = (load::<u64>(skb, Field::SkbRefdst) & DST_POINTER) as *const u8;
    if route.is_null() {
        return false;
    }
    if u16::from_be(load::<u16>(skb, Field::SkbProtocol)) == ETH_P_IP {
        copy::<u16>(route, Field::RtableType) == RTN_LOCAL
    } else {
        has(Field::Rt6Flags) && copy::<u32>(route, Field::Rt6Flags) & RTF_LOCAL != 0
    }
}

/// The network namespace of a segment: its device's, else its route's device's.
#[inline(always)]
pub(crate) fn network_namespace(skb: *const u8) -> u32 {
    let device: *const u8 = load(skb, Field::SkbDev);
    if !device.is_null() {
        let namespace: *const u8 = load(device, Field::DevNet);
        return load(namespace, Field::NetInum);
    }
    let route = (load::<u64>(skb, Field::SkbRefdst) & DST_POINTER) as *const u8;
    if route.is_null() {
        return 0;
    }
    let device: *const u8 = copy(route, Field::DstDev);
    let namespace: *const u8 = copy(device, Field::DevNet);
    copy(namespace, Field::NetInum)
}
