"""Exchanges over plain HTTP/1.1 that end in a reset, and what is true of each.

    exchanges.py PORT [CASE...]      all cases, or those whose name begins so; PORT is one that is read

Both ends are in this process, so that each case knows which request was open when the reset was sent. A line on standard
output is one connection: the case, its two ports, and for each end the `traceparent` of the open request, or null where
none was. An end that is left out makes no reset, or nobody can tell what was open there: it may name that request or none.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ABORT = struct.pack("ii", 1, 0)
TIMEOUT = 10
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;a=b\r\nyes\r\n0\r\nX-Trailer: 1\r\n\r\n"
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def new_trace():
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


def request(trace, method="GET", lines=(), body=b"", name="traceparent"):
    head = [f"{method} /path?query=1 HTTP/1.1", "Host: localhost", "User-Agent: test", *lines]
    if trace:
        head.insert(2, f"{name}: {trace}")
    return "\r\n".join([*head, "", ""]).encode() + body


def with_length(trace, body, **more):
    return request(trace, "POST", [f"Content-Length: {len(body)}"], body, **more)


def abort(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    connection.close()


class Pair:
    """A connection, both ends."""

    def __init__(self, name, port, host="127.0.0.1", listen=None):
        self.name, self.port = name, port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        mapped = host.startswith("::ffff")
        with socket.create_server(("::" if mapped else host, port), family=family, dualstack_ipv6=mapped) as listener:
            if listen:
                listen(listener)
            self.client = socket.create_connection((host, port), timeout=TIMEOUT)
            if listen:
                self.trace = new_trace()
                self.client.sendall(request(self.trace))
            self.server, _ = listener.accept()
        self.server.settimeout(TIMEOUT)
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client_port = self.client.getsockname()[1]

    def ask(self, data):
        """Sends a request and lets the server read all of it."""
        self.client.sendall(data)
        read(self.server, len(data))

    def answer(self, data):
        self.server.sendall(data)
        read(self.client, len(data))

    def tell(self, **ends):
        line = {"case": self.name, "client_port": self.client_port, "server_port": self.port}
        print(json.dumps(line | {"ends": ends}), flush=True)

    def end(self, aborting, client, server):
        """One end aborts; what was open at each."""
        abort(aborting)
        time.sleep(0.02)
        (self.server if aborting is self.client else self.client).close()
        self.tell(client=client, server=server)


def read(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


@case
def before_the_answer(pair):
    pair = pair()
    pair.ask(request(trace := new_trace()))
    pair.end(pair.server, trace, trace)


@case
def client_aborts(pair):
    pair = pair()
    pair.ask(request(trace := new_trace()))
    pair.end(pair.client, trace, trace)


@case
def half_a_head(pair):
    pair = pair()
    pair.ask(request(new_trace())[:-2])
    pair.end(pair.client, None, None)


@case
def middle_of_the_answer(pair):
    for part in (OK[:5], OK[:-2], OK[:-1], CHUNKED[:50], CHUNKED[:-2], CHUNKED[:-1]):
        one = pair()
        one.ask(request(trace := new_trace()))
        one.answer(part)
        one.end(one.server, trace, trace)


@case
def complete(pair):
    for whole in (OK, CHUNKED, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
                  b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK):
        for end in ("client", "server"):
            one = pair()
            one.ask(request(new_trace()))
            one.answer(whole)
            one.end(getattr(one, end), None, None)


@case
def head_has_no_body(pair):
    one = pair()
    one.ask(request(new_trace(), "HEAD"))
    one.answer(OK[:-2])
    one.end(one.server, None, None)
    one = pair()
    one.ask(request(new_trace(), "HEAD"))
    one.answer(OK[:-2])
    one.ask(request(trace := new_trace()))
    one.end(one.server, trace, trace)


@case
def until_close(pair):
    answer = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nthe rest"
    one = pair()
    one.ask(request(trace := new_trace()))
    one.answer(answer)
    one.end(one.server, trace, trace)
    one = pair()
    one.ask(request(new_trace()))
    one.server.sendall(answer)
    one.server.shutdown(socket.SHUT_WR)
    read(one.client, len(answer))
    assert one.client.recv(1) == b""
    one.end(one.client, None, None)


@case
def continued(pair):
    one = pair()
    trace, body = new_trace(), b"x" * 100
    one.ask(request(trace, "POST", ["Expect: 100-continue", "Content-Length: 100"]))
    one.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    one.ask(body)
    one.end(one.server, trace, trace)


@case
def third_of_five(pair):
    for third, answered in ((0, 3), (1, 0)):
        one = pair()
        for number in range(3):
            trace = new_trace()
            one.ask(with_length(trace, b"abc") if number % 2 else request(trace))
            if number < 2 or answered:
                one.answer(CHUNKED if number % 2 else OK)
        expected = None if answered else trace
        one.end((one.client, one.server)[third], expected, expected)


@case
def no_trace_after_a_trace(pair):
    one = pair()
    one.ask(request(new_trace()))
    one.answer(OK)
    one.ask(request(None))
    one.end(one.server, None, None)


@case
def idle(pair):
    one = pair()
    for _ in range(2):
        one.ask(request(new_trace()))
        one.answer(OK)
    time.sleep(0.1)
    one.end(one.server, None, None)


@case
def pipelined(pair):
    for answers, rest in ((0, b""), (1, b""), (1, OK[:10]), (2, CHUNKED[:60]), (3, b"")):
        one = pair()
        traces = [new_trace() for _ in range(3)]
        one.ask(b"".join([request(traces[0]), with_length(traces[1], b"abc"), request(traces[2])]))
        for number in range(answers):
            one.answer(CHUNKED if number % 2 else OK)
        if rest:
            one.answer(rest)
        expected = traces[answers] if answers < 3 else None
        one.end(one.server, expected, expected)


@case
def too_many_at_once(pair):
    one = pair()
    one.ask(b"".join(request(new_trace()) for _ in range(40)))
    one.end(one.server, None, None)


@case
def split_at_every_byte(pair):
    for answer, open_at_end in ((OK, False), (CHUNKED, False), (CHUNKED[:-1], True)):
        one = pair()
        trace, body = new_trace(), b"traceparent: " + new_trace().encode() + b"\r\n"
        for byte in with_length(trace, body):
            one.ask(bytes([byte]))
        for byte in answer:
            one.answer(bytes([byte]))
        expected = trace if open_at_end else None
        one.end(one.server, expected, expected)


@case
def names_in_any_case(pair):
    for name in ("TRACEPARENT", "Traceparent", "tRaCePaReNt"):
        one = pair()
        one.ask(request(trace := new_trace(), name=name))
        one.end(one.server, trace, trace)


@case
def no_valid_context(pair):
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    good = f"00-{trace}-{span}-01"
    for value in (f"00-{trace[:-1]}g-{span}-01", f"00-{'0' * 32}-{span}-01", f"00-{trace}-{'0' * 16}-01",
                  f"ff-{trace}-{span}-01", f"00-{trace.upper()}-{span}-01", f"00-{trace}-{span}", f"{good}-more",
                  f"{good}, {good}", f"{good}\r\ntraceparent: {good}", ""):
        one = pair()
        one.ask(request(value or " "))
        one.end(one.server, None, None)


@case
def later_versions(pair):
    trace = new_trace()
    one = pair()
    one.ask(request(f"cc{trace[2:]}-more-than-we-know"))
    one.end(one.server, trace, trace)


@case
def context_in_a_body(pair):
    inner = request(new_trace())
    for trace in (None, new_trace()):
        one = pair()
        one.ask(with_length(trace, inner))
        one.end(one.server, trace, trace)
        one = pair()
        chunks = f"{len(inner):x}\r\n".encode() + inner + b"\r\n0\r\n" + inner[16:]
        one.ask(request(trace, "POST", ["Transfer-Encoding: chunked"], chunks))
        one.end(one.server, trace, trace)
        # In an answer, too.
        one = pair()
        one.ask(request(trace))
        one.answer(f"HTTP/1.1 200 OK\r\nTraceparent: {new_trace()}\r\nContent-Length: {len(inner) + 1}\r\n\r\n".encode() + inner)
        one.end(one.server, trace, trace)


@case
def what_could_be_read_in_two_ways(pair):
    for lines in (["Content-Length: 3", "Content-Length: 4"], ["Content-Length: 3", "Transfer-Encoding: chunked"],
                  ["Transfer-Encoding: identity"], ["Content-Length: three"]):
        one = pair()
        one.ask(request(new_trace(), "POST", lines))
        one.end(one.server, None, None)


@case
def other_protocols(pair):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(64), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                 b"*1\r\n$4\r\nPING\r\n", b"get key\r\n"):
        one = pair()
        one.ask(data + request(new_trace()))
        one.end(one.server, None, None)
    # Who speaks first on such a port is no server of HTTP.
    one = pair()
    one.answer(b"220 mail.example ESMTP\r\n")
    one.ask(request(new_trace()))
    one.end(one.server, None, None)


@case
def tunnels(pair):
    one = pair()
    one.ask(request(new_trace(), "CONNECT"))
    one.answer(b"HTTP/1.1 200 OK\r\n\r\n")
    one.ask(request(new_trace()))
    one.end(one.server, None, None)
    one = pair()
    one.ask(request(new_trace(), "GET", ["Upgrade: websocket", "Connection: upgrade"]))
    one.answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    one.ask(b"\x81\x05hello")
    one.end(one.client, None, None)
    # A tunnel that was refused is none.
    one = pair()
    one.ask(request(new_trace(), "CONNECT"))
    one.answer(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    one.ask(request(trace := new_trace(), "CONNECT"))
    one.end(one.server, trace, trace)


@case
def body_left_unread(pair):
    # By the server, before its answer and after it: the request's end never reached it.
    for answer in (b"", b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"):
        one = pair()
        trace = new_trace()
        data = with_length(trace, b"x" * 20_000)
        one.client.sendall(data)
        read(one.server, 100)
        time.sleep(0.02)
        if answer:
            one.answer(answer)
        one.server.close()
        time.sleep(0.02)
        one.client.close()
        one.tell(server=trace) if answer else one.tell(client=trace, server=trace)


@case
def body_never_sent_whole(pair):
    one = pair()
    trace = new_trace()
    one.client.settimeout(0.2)
    try:
        one.client.sendall(with_length(trace, b"x" * 40_000_000))
    except OSError:
        pass
    read(one.server, 100)
    one.answer(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    one.server.close()
    time.sleep(0.02)
    one.client.close()
    one.tell(client=trace, server=trace)


@case
def answer_left_unread(pair):
    one = pair()
    one.ask(request(trace := new_trace()))
    one.server.sendall(OK)
    time.sleep(0.02)
    one.client.close()
    time.sleep(0.02)
    one.server.close()
    one.tell(client=trace, server=None)


@case
def asked_of_one_who_has_closed(pair):
    one = pair()
    one.ask(request(new_trace()))
    one.answer(OK)
    one.server.close()
    one.client.sendall(request(trace := new_trace()))
    time.sleep(0.02)
    one.client.close()
    one.tell(client=trace)


@case
def server_is_killed(pair):
    one = pair()
    trace = new_trace()
    one.client.sendall(with_length(trace, b"x" * 50))
    child = os.fork()
    if child == 0:
        time.sleep(TIMEOUT)
        os._exit(0)
    one.server.close()
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # The child had both ends; ours is open yet.
    time.sleep(0.02)
    one.client.close()
    one.tell(client=trace, server=trace)


@case
def long_heads(pair):
    for length in (5_000, 60_000):
        one = pair()
        one.ask(request(trace := new_trace(), lines=[f"Cookie: {'c' * length}", f"X-Last: {length}"]))
        one.answer(f"HTTP/1.1 200 OK\r\nX-Long: {'d' * length}\r\nContent-Length: 5\r\n\r\nfour".encode())
        one.end(one.server, trace, trace)


@case
def long_bodies(pair):
    one = pair()
    body = os.urandom(3_000_000)
    for number in range(3):
        data = with_length(trace := new_trace(), body)
        sender = threading.Thread(target=one.client.sendall, args=(data,))
        sender.start()
        read(one.server, len(data))
        sender.join()
        if number < 2:
            answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            sender = threading.Thread(target=one.server.sendall, args=(answer,))
            sender.start()
            read(one.client, len(answer))
            sender.join()
    one.end(one.server, trace, trace)


@case
def over_ipv6(pair):
    for host in ("::1", "::ffff:127.0.0.1"):
        one = pair(host=host)
        one.ask(request(trace := new_trace()))
        one.end(one.server, trace, trace)


@case
def accepted_with_the_request(pair):
    # The kernel makes the connection when the request comes, as Apache asks it to.
    one = pair(listen=lambda listener: listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5))
    time.sleep(0.02)
    one.end(one.server, one.trace, one.trace)
    one = pair(listen=lambda listener: listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5))
    one.server.recv(1000)
    one.answer(OK)
    one.ask(request(trace := new_trace()))
    one.end(one.server, trace, trace)
    one = pair(listen=lambda listener: listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5))
    one.server.recv(1000)
    one.answer(OK)
    one.end(one.client, None, None)


@case
def a_port_that_is_not_read(pair):
    one = pair(port=1)
    one.ask(request(new_trace()))
    one.end(one.server, None, None)


def lost_in_between(port, act):
    """What is sent to a port meanwhile is lost: the kernel sends it again later."""
    table = f"inet wire{os.getpid()}"
    rules = f"add table {table}\nadd chain {table} in {{ type filter hook input priority 0; }}\n" \
            f"add rule {table} in tcp dport {port} drop\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        act()
    finally:
        subprocess.run(["nft", "delete", "table", *table.split()], check=True)


@case
def sent_again(pair):
    one = pair()
    one.ask(request(new_trace()))
    one.answer(OK)
    data = request(trace := new_trace())
    lost_in_between(one.port, lambda: one.client.sendall(data))
    read(one.server, len(data))
    one.end(one.server, trace, trace)


@case
def out_of_order(pair):
    # A piece of a head comes after what follows it: the client knows, the server's side cannot, unless it was sent again in time.
    one = pair()
    data = request(trace := new_trace())
    lost_in_between(one.port, lambda: one.client.sendall(data[:40]))
    one.client.sendall(data[40:])
    read(one.server, len(data))
    abort(one.server)
    time.sleep(0.02)
    one.client.close()
    one.tell(client=trace)
    # A piece of a body: both know.
    one = pair()
    data = with_length(trace := new_trace(), b"x" * 1000)
    one.client.sendall(data[:-900])
    lost_in_between(one.port, lambda: one.client.sendall(data[-900:-500]))
    one.client.sendall(data[-500:])
    read(one.server, len(data))
    one.end(one.server, trace, trace)


def main():
    port, wanted = int(sys.argv[1]), sys.argv[2:]
    for name, function in CASES.items():
        if wanted and not any(name.startswith(prefix) for prefix in wanted):
            continue

        def pair(host="127.0.0.1", port=port, listen=None, name=name):
            return Pair(name, 9 if port == 1 else port, host, listen)

        function(pair)


if __name__ == "__main__":
    main()
