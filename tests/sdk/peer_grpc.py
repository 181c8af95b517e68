"""The other end of gRPC, by its bytes: frames of HTTP/2 on plain sockets, no instrumentation.

    peer_grpc.py serve PORT         a server; the client's metadata `case` says what it does
    peer_grpc.py call PORT CASE...  a client that does the cases to an instrumented server, one after the other

It prints what peer.py prints: a line for each call that was open on a connection that was reset. Where several were,
`shared` says so: all of them were broken by the one reset.
"""

import ctypes
import struct
import sys
import threading
import time

import hpack

import cases
from peer import LOOPBACK, TIMEOUT, reset, socket, tell, traceparent

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload):
    return struct.pack(">BI", 0, len(payload)) + payload


class Connection:
    """One end of a connection: frames in and out."""

    def __init__(self, connection):
        self.socket = connection
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.writing = threading.Lock()

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise ConnectionError("the end of the stream")
            data += more
        return data

    def read_frame(self):
        """A frame that is about a call; what is about the connection is answered."""
        while True:
            head = self.read(9)
            length, (kind, flags, stream) = int.from_bytes(head[:3]), struct.unpack(">BBI", head[3:])
            if kind == HEADERS:
                return kind, flags, stream, dict(self.decoder.decode(self.read(length)))
            payload = self.read(length)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.write(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == DATA:
                return kind, flags, stream, payload

    def write(self, data):
        with self.writing:
            self.socket.sendall(data)

    def write_headers(self, stream, headers, flags=0):
        with self.writing:
            self.socket.sendall(frame(HEADERS, END_HEADERS | flags, stream, self.encoder.encode(headers)))


def tell_all(case, side, local_port, peer_port, traces):
    for trace in traces or [None]:
        tell(case, side, local_port, peer_port, trace, shared=len(traces) > 1)


def serve(port):
    listener = socket.create_server((LOOPBACK, port), backlog=64)
    print('{"ready": true}', flush=True)
    while True:
        connection, (_, client_port) = listener.accept()
        threading.Thread(target=Server(connection, client_port, port).run, daemon=True).start()


class Server(Connection):
    """What a client's connection meets."""

    def __init__(self, connection, client_port, port):
        super().__init__(connection)
        self.ports = (client_port, port)
        self.open = {}

    def run(self):
        connection = self.socket
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.read(len(PREFACE)) != PREFACE:
                time.sleep(0.05)
                return self.abort("outside")
            self.write(frame(SETTINGS, 0, 0))
            while True:
                kind, _, stream, headers = self.read_frame()
                if kind == HEADERS:
                    self.open[stream] = headers.get("traceparent")
                    case = headers.get("case", "fast")
                    if case == "unread":  # the message lies in the socket
                        time.sleep(0.1)
                        connection.close()
                        return tell_all(case, "client", *self.ports, list(self.open.values()))
                    threading.Thread(target=self.answer, args=(stream, case), daemon=True).start()
        except (OSError, ValueError):
            connection.close()

    def answer(self, stream, case):
        try:
            self.respond(stream, case)
        except OSError:
            pass

    def respond(self, stream, case):
        behaviour = case.split(" ")[0]
        if behaviour in ("fast", "slow", "complete", "idle"):
            time.sleep(0.2 if behaviour == "slow" else 0)
            self.finish(stream)
            if behaviour in ("complete", "idle"):
                time.sleep(0.02 if behaviour == "complete" else 0.3)
                self.abort(case)
        elif behaviour == "before":
            time.sleep(0.05)
            self.abort(case)
        elif behaviour == "later":
            time.sleep(0.1)
            self.abort(case)
        elif behaviour == "middle":
            self.write_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
            time.sleep(0.1)
            self.abort(case)
        elif behaviour == "all" and len(self.open) == 3:
            time.sleep(0.1)
            self.abort(case)

    def abort(self, case):
        """Resets the connection though another thread waits in recv() on it."""
        traces = list(self.open.values())
        # AF_UNSPEC is a reset at once; close() would wait for the other thread.
        disconnect(self.socket)
        tell_all(case, "client", *self.ports, traces)

    def finish(self, stream):
        self.write_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self.write(frame(DATA, 0, stream, message(b"\x08\x01")))
        self.write_headers(stream, [("grpc-status", "0")], END_STREAM)
        del self.open[stream]


def disconnect(connection):
    """connect(AF_UNSPEC): tcp_disconnect(), which resets."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)
    if libc.connect(connection.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


class Call(Connection):
    """A connection to the instrumented server."""

    def __init__(self, port, case):
        super().__init__(socket.create_connection((LOOPBACK, port), timeout=TIMEOUT))
        self.case, self.port, self.next = case, port, 1
        self.own_port = self.socket.getsockname()[1]
        self.open = {}
        self.write(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, service):
        stream, self.next = self.next, self.next + 2
        self.open[stream] = traceparent()
        path = "/grpc.health.v1.Health/Check"
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), ("traceparent", self.open[stream])]
        self.write_headers(stream, headers)
        name = service.encode()
        self.write(frame(DATA, END_STREAM, stream, message(b"\x0a" + bytes([len(name)]) + name)))
        return stream

    def read_answer(self, stream):
        while stream in self.open:
            _, flags, ended, _ = self.read_frame()
            if flags & END_STREAM:
                self.open.pop(ended)

    def ask(self, service):
        """A call and its whole answer."""
        self.read_answer(self.send(service))

    def end(self):
        for stream in list(self.open):
            self.read_answer(stream)
        self.socket.close()

    def reset(self):
        reset(self.socket)
        tell_all(self.case, "server", self.port, self.own_port, list(self.open.values()))


def all_of_three(port, case):
    cases.at_work(lambda: cases.asking(Call, port, case, times=3)).reset()


def control_beside_another(port, case):
    """An idle connection is reset while a call runs on another."""
    idle, other = Call(port, case), Call(port, case)
    other.send("slow")
    time.sleep(0.1)
    idle.reset()
    other.read_answer(1)
    other.socket.close()


def main(role, port, *names):
    if role == "serve":
        return serve(int(port))
    cases.play(globals(), Call, int(port), names)


if __name__ == "__main__":
    main(*sys.argv[1:])
