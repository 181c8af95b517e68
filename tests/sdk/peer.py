"""The other end: plain sockets, no instrumentation. It breaks connections and prints what is true of each.

    peer.py serve PORT              a server for the instrumented clients; the first part of the path says what it does
    peer.py call PORT CASE...       a client that does the cases to an instrumented server, one after the other

A line on standard output is one connection that was reset: the case, the two ports as the instrumented program has
them, and the span whose request was open on it. `traceparent` is the witness: a client's names its own span, one that is
sent to a server names the parent of the server's span. A reset that belongs to no request has no trace.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

import cases

LOOPBACK = "127.0.0.1"
ABORT = struct.pack("ii", 1, 0)
TIMEOUT = 10
printing = threading.Lock()


def tell(case, side, local_port, peer_port, traceparent, made=True, shared=False):
    parts = (traceparent or "").split("-")
    trace, span = (parts[1], parts[2]) if len(parts) == 4 else (None, None)
    line = {"case": case, "side": side, "local_port": local_port, "peer_port": peer_port, "trace_id": trace}
    line |= {"span_id": span, "made": made, "shared": shared}
    with printing:
        print(json.dumps(line), flush=True)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    connection.close()


def read_head(connection):
    """The path and the headers of a request, and what was read of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(4096)
        if not more:
            return None
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return first.split(" ")[1], headers, body


def serve(port):
    listener = socket.create_server((LOOPBACK, port), backlog=64)
    print(json.dumps({"ready": True}), flush=True)
    while True:
        connection, (_, client_port) = listener.accept()
        threading.Thread(target=answer, args=(connection, client_port, port), daemon=True).start()


def answer(connection, client_port, port):
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (request := read_head(connection)) is not None:
            path, headers, body = request
            if not respond(connection, path, headers, body, client_port, port):
                return
    except OSError:
        connection.close()


def respond(connection, path, headers, body, client_port, port):
    """Does what the path says; false when the connection is over."""
    case = path.strip("/").replace("/", " ")
    behaviour = path.strip("/").split("/")[0]
    trace = headers.get("traceparent")
    after_answer = behaviour in ("complete", "idle")
    truth = (case, "client", client_port, port, None if after_answer else trace)
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    if behaviour in ("fast", "slow", *(["complete", "idle"])):
        time.sleep(0.2 if behaviour == "slow" else 0)
        connection.sendall(ok)
        if not after_answer:
            return True
        time.sleep(0.02 if behaviour == "complete" else 0.3)
        reset(connection)
    elif behaviour == "before":  # not a byte of the answer
        time.sleep(0.05)
        reset(connection)
    elif behaviour == "later":  # when others are under way
        time.sleep(0.1)
        reset(connection)
    elif behaviour == "middle":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
        time.sleep(0.1)
        reset(connection)
    elif behaviour == "late":  # the client has given up by then
        time.sleep(0.5)
        connection.sendall(ok)
        time.sleep(0.05)
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        tell(*truth, made=error != 0)
        return False
    elif behaviour == "unread":  # most of the request's body lies in the socket
        time.sleep(0.05)
        connection.close()
    elif behaviour == "drip":  # without end: the client goes away
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        made = False
        try:
            while True:
                connection.sendall(b"x" * 1000)
                time.sleep(0.01)
        except OSError as error:
            made = isinstance(error, (ConnectionResetError, BrokenPipeError))
        tell(*truth, made)
        return False
    tell(*truth)
    return False


def traceparent():
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


class Call:
    """A connection to the instrumented server."""

    def __init__(self, port, case):
        self.case, self.port = case, port
        self.socket = socket.create_connection((LOOPBACK, port), timeout=TIMEOUT)
        self.own_port = self.socket.getsockname()[1]
        self.trace = None  # of the request that is open

    def send(self, path, body=None):
        self.trace = traceparent()
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        method = "GET" if body is None else "POST"
        head = f"{method} /{path} HTTP/1.1\r\nHost: localhost\r\ntraceparent: {self.trace}\r\n{length}\r\n"
        self.socket.sendall(head.encode())
        if body:
            self.socket.sendall(body)

    def ask(self, path):
        """A request and its whole answer."""
        self.send(path)
        self.read_answer()

    def read_answer(self):
        """A whole answer, of a given length or in chunks."""
        data = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            if found:
                head = head.lower()
                if b"chunked" in head and body.endswith(b"0\r\n\r\n"):
                    break
                length = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
                if length and len(body) >= int(length[0].split(b":")[1]):
                    break
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the server closed in the middle of an answer")
            data += more
        self.trace = None

    def end(self):
        self.read_answer()
        self.socket.close()

    def reset(self):
        reset(self.socket)
        self.tell()

    def await_reset(self):
        """A reset may come after the end of the other side's stream."""
        made = False
        try:
            while self.socket.recv(65536):
                pass
            until = time.monotonic() + 1
            while time.monotonic() < until:
                if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    made = True
                    break
                time.sleep(0.01)
        except (ConnectionResetError, BrokenPipeError):
            made = True
        except TimeoutError:
            pass
        self.tell(made=made)

    def tell(self, made=True):
        tell(self.case, "server", self.port, self.own_port, self.trace, made)


def server_aborts(port, case):
    call = Call(port, case)
    call.send("abort")
    call.await_reset()


def unread_body(port, case):
    call = Call(port, case)
    try:
        call.send("ignore", b"x" * 16_000_000)  # more than a server reads to throw away
    except (ConnectionResetError, BrokenPipeError):
        return call.tell()
    except TimeoutError:
        pass
    call.await_reset()


def gives_up_late(port, case):
    """The answer comes when nobody is there to take it."""
    call = cases.at_work(lambda: cases.asking(Call, port, case))
    call.socket.close()
    call.tell()


def control_half_a_request(port, case):
    call = Call(port, case)
    call.socket.sendall(b"GET /slow HTTP/1.1\r\nHost: loc")
    time.sleep(0.05)
    call.reset()


def main(role, port, *names):
    if role == "serve":
        return serve(int(port))
    cases.play(globals(), Call, int(port), names)


if __name__ == "__main__":
    main(*sys.argv[1:])
