"""The hosts of a scenario: network namespaces that one process enters in turn, so that both ends of a connection are
driven step by step, in order, by one script.

Segments made by hand are in segments.py, the list of scenarios in scenario.py.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import time

CLONE_NEWNET = 0x40000000
TIMEOUT_S = 10  # how long a step may take before the scenario is given up
DEVICE = "eth0"

# include/net/tcp_states.h
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(1, 12)

_libc = ctypes.CDLL(None, use_errno=True)


class Skip(Exception):
    """This machine cannot act the scenario; the text says why."""


def until(condition, what):
    """Waits until condition() holds, and returns what it returned."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.002)


class Host:
    """A network namespace with its addresses."""

    def __init__(self, namespace, v4, v6):
        self.namespace = namespace
        self.address = {4: v4, 6: v6}

    def enter(self):
        """What this process does next, and the processes that it starts, happens on this host."""
        with open(f"/run/netns/{self.namespace}") as handle:
            if _libc.setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.namespace}")

    def run(self, *command, text=None, check=True):
        """Runs a command here and returns its output."""
        self.enter()
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def start(self, *command, **options):
        """Starts a program here, which ends with the script at the latest."""
        self.enter()
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, **options)

    def sysctl(self, name, value):
        """Sets a parameter of this namespace."""
        self.enter()
        path = "/proc/sys/" + name.replace(".", "/")
        if not os.path.exists(path):
            raise Skip(f"this kernel has no {name}")
        with open(path, "w") as handle:
            handle.write(str(value))

    def compute_checksums(self, device):
        """From now on checksums are computed before the device sends (`ethtool -K DEVICE tx off`)."""
        ETHTOOL_STXCSUM = 0x17
        self.enter()
        off = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
        request = struct.pack("16sQ16x", device.encode(), ctypes.addressof(off))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(handle, 0x8946, request)  # SIOCETHTOOL

    def resets_sent(self):
        """TcpOutRsts: resets that TCP sent here, netfilter's not counted."""
        self.enter()
        with open("/proc/self/net/snmp") as handle:
            names, values = [line.split() for line in handle if line.startswith("Tcp:")]
        return int(values[names.index("OutRsts")])

    def nft(self, *rules, hook="input", family="inet", priority=0):
        """Adds rules to the chain of a hook; flush() takes all away again."""
        chain = f"add table {family} t\nadd chain {family} t {hook} {{ type filter hook {hook} priority {priority}\n}}\n"
        self.run("nft", "-f", "-", text=chain + "".join(f"add rule {family} t {hook} {rule}\n" for rule in rules))

    def mute(self):
        """From now on nothing leaves this host: what the script's end makes of open sockets is not the matter."""
        self.nft("drop", hook="output")

    def flush(self, family="inet"):
        """Takes the rules of nft() away."""
        self.run("nft", "delete", "table", family, "t")

    def socket(self, version, protocol=0):
        """A TCP socket of this host."""
        self.enter()
        made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM, protocol)
        made.settimeout(TIMEOUT_S)
        return made


class Net:
    """The hosts and the family of one run of a scenario: v4, v6, mapped (the server's sockets are IPv6, the packets
    IPv4), lo4 and lo6 (client and server are one host, over loopback)."""

    def __init__(self, variant, client, server, router=None):
        self.variant = variant
        self.client, self.server, self.router = client, server, router
        self.version = 4 if variant in ("v4", "mapped", "lo4") else 6
        self.loopback = variant in ("lo4", "lo6")

    @property
    def target(self):
        """The server's address, as the client writes it."""
        return self.server.address[self.version]

    @property
    def ip(self):
        """How nft names the family."""
        return "ip" if self.version == 4 else "ip6"

    def listen(self, backlog=16, port=0, protocol=0):
        """A listener on the server."""
        mapped = self.variant == "mapped"
        listener = self.server.socket(6 if mapped else self.version, protocol)
        if mapped:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if mapped else self.target, port))
        listener.listen(backlog)
        return listener

    def connect(self, port, protocol=0):
        """A connection of the client to the server's port."""
        made = self.client.socket(self.version, protocol)
        made.connect((self.target, port))
        return made

    def begin_connect(self, port):
        """The same, not waited for."""
        made = self.client.socket(self.version)
        made.setblocking(False)
        made.connect_ex((self.target, port))
        return made

    def pair(self):
        """An established connection: the client's end and the server's. The listener is gone."""
        with self.listen() as listener:
            mine = self.connect(port(listener))
            theirs, _ = listener.accept()
            theirs.settimeout(TIMEOUT_S)
        return mine, theirs

    def closed_port(self):
        """A port of the server that nobody listens on."""
        with self.listen() as listener:
            return port(listener)


class Process:
    """A process of its own on the server: serve(listener, ready) runs in it; it then waits to be killed."""

    def __init__(self, serve):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _die_with_parent()
                os.close(reader)
                serve(lambda: os.write(writer, b"r"))
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        self.reader = reader

    def wait_ready(self):
        """Until serve() has called ready()."""
        if os.read(self.reader, 1) != b"r":
            raise RuntimeError("the process ended early")

    def wait(self):
        """Until it has ended."""
        os.waitpid(self.pid, 0)

    def kill(self, number=signal.SIGKILL):
        """Ends it by a signal, and waits for the end."""
        os.kill(self.pid, number)
        self.wait()


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def port(bound):
    """The local port of a socket."""
    return bound.getsockname()[1]


def state(connection):
    """The state of a connection by number."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]


def wait_state(connection, *wanted):
    """Until the connection is in one of these states."""
    until(lambda: state(connection) in wanted, f"the state is {wanted}, now {state(connection)}")


def unread(connection):
    """Bytes that wait to be read."""
    import array, fcntl, termios

    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
    return count[0]


def wait_unread(connection, at_least=1):
    """Until so many bytes wait to be read."""
    until(lambda: unread(connection) >= at_least, f"{at_least} bytes wait")


def linger(connection, seconds=0):
    """SO_LINGER."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


def disconnect(connection):
    """connect(AF_UNSPEC), which Python's socket cannot say."""
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    if _libc.connect(connection.fileno(), unspecified, len(unspecified)):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


def keepalive(connection, idle=1, interval=1, probes=1):
    """Keepalive, times in seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, interval), (socket.TCP_KEEPCNT, probes)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
