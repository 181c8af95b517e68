"""TCP segments made by hand, and a TCP peer that is nothing but such segments.

Every segment made here has the hop limit MARK: by it the judge tells it from what a host's own TCP sent.
"""

import socket
import struct
import time

from hosts import DEVICE, TIMEOUT_S

MARK = 77
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}
MODULUS = 1 << 32
GHOST = {4: "10.9.0.77", 6: "fd09::77"}
WINDOW = 64000
OPTION_MSS = b"\x02\x04\x05\xb4"


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source, destination, flags, seq=0, ack=0, data=b"", options=b"", window=WINDOW):
    """A whole packet; source and destination are (address, port)."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    ends = socket.inet_pton(family, source[0]) + socket.inet_pton(family, destination[0])
    options += b"\x01" * (-len(options) % 4)
    bits = sum(FLAGS[flag] for flag in flags)
    offset = (20 + len(options)) // 4 << 4

    def tcp(check):
        header = struct.pack("!HHIIBBHHH", source[1], destination[1], seq % MODULUS, ack % MODULUS, offset, bits, window, check, 0)
        return header + options + data

    length = len(tcp(0))
    if family == socket.AF_INET:
        pseudo = ends + struct.pack("!HH", socket.IPPROTO_TCP, length)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, MARK, socket.IPPROTO_TCP, 0) + ends
    else:
        pseudo = ends + struct.pack("!II", length, socket.IPPROTO_TCP)
        header = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_TCP, MARK) + ends
    return header + tcp(checksum(pseudo + tcp(0)))


def forge(host, source, destination, flags, **fields):
    """Sends a segment from a host, under any source address."""
    host.enter()
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(segment(source, destination, flags, **fields), (destination[0], 0))


class Seen:
    """A segment that was sniffed."""

    def __init__(self, packet):
        version = packet[0] >> 4
        start = (packet[0] & 15) * 4 if version == 4 else 40
        self.hops = packet[8] if version == 4 else packet[7]
        self.source_port, self.port, self.seq, self.ack, offset, self.bits = struct.unpack_from("!HHIIBB", packet, start)
        end = struct.unpack_from("!H", packet, 2)[0] if version == 4 else 40 + struct.unpack_from("!H", packet, 4)[0]
        self.options = packet[start + 20 : start + (offset >> 4) * 4]
        self.length = end - start - (offset >> 4) * 4

    def has(self, flags):
        """Whether these flags, and of S, F and R no others, are set."""
        wanted = sum(FLAGS[flag] for flag in flags)
        return self.bits & wanted == wanted and not self.bits & ~wanted & 7


class Sniffer:
    """What arrives at and leaves a host."""

    def __init__(self, host):
        host.enter()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
        self.socket.bind((DEVICE, 3))
        self.socket.settimeout(0.1)

    def expect(self, flags, to_port=None, from_port=None):
        """The next segment with these flags and ports."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                packet = self.socket.recv(65536)
            except TimeoutError:
                continue
            tcp_at = 9 if packet[:1] and packet[0] >> 4 == 4 else 6
            if len(packet) < 40 or packet[tcp_at] != socket.IPPROTO_TCP:
                continue
            seen = Seen(packet)
            if seen.hops == MARK or not seen.has(flags):
                continue
            if to_port in (None, seen.port) and from_port in (None, seen.source_port):
                return seen
        raise TimeoutError(f"no {flags} segment came")


class Ghost:
    """A TCP peer behind the client's interface whose address no kernel owns: it sends only what a scenario asks for."""

    def __init__(self, net, to_port, own_port=4000):
        self.net = net
        self.own = (GHOST[net.version], own_port)
        self.to = (net.target, to_port)
        for here, address, there in ((net.server, self.own[0], net.client), (net.client, net.target, net.server)):
            hardware = there.run("ip", "-br", "link", "show", DEVICE).split()[2]
            here.run("ip", "neigh", "replace", address, "lladdr", hardware, "dev", DEVICE, "nud", "permanent")
        self.sniffer = Sniffer(net.client)
        self.seq, self.ack = 1000, 0

    def send(self, flags, seq=None, ack=None, data=b"", **fields):
        """Sends a segment; seq and ack are what the connection stands at unless given. Its own state goes on only by
        the segments that are sent in order."""
        in_order = seq is None
        seq = self.seq if in_order else seq
        ack = (self.ack if ack is None else ack) if "A" in flags else 0
        forge(self.net.client, self.own, self.to, flags, seq=seq, ack=ack, data=data, **fields)
        if in_order:
            self.seq = (seq + len(data) + ("S" in flags) + ("F" in flags)) % MODULUS

    def expect(self, flags):
        """The next segment that came with these flags; what it carries counts as received."""
        seen = self.sniffer.expect(flags, to_port=self.own[1], from_port=self.to[1])
        self.ack = (seen.seq + seen.length + ("S" in flags) + ("F" in flags)) % MODULUS
        return seen

    def half_open(self):
        """SYN, and its answer awaited."""
        self.send("S", options=OPTION_MSS)
        self.expect("SA")

    def connect(self):
        """The three-way handshake."""
        self.half_open()
        self.send("A")


def ghost_pair(net):
    """An established connection: the ghost, and the server's end. The listener is gone."""
    with net.listen() as listener:
        ghost = Ghost(net, listener.getsockname()[1])
        ghost.connect()
        theirs, _ = listener.accept()
        theirs.settimeout(TIMEOUT_S)
    return ghost, theirs
