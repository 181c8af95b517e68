#!/usr/bin/env python3
"""Acts one case of owners on one host over loopback, and prints what is due: a JSON line for each reset of each end.

owners.py --list
owners.py CASE NAMESPACE V4 V6 PEER      PEER is the built peer/peer.go

A program under test speaks a protocol of two lines: asked `who`, the owner of a connection prints its pid; then it gets
`reset`, or is reset itself. So the truth comes from the owner, not from who started it. A case that calls ready() waits
there for a line on standard input: what it did before is older than the collector.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

DIRECTORY = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, DIRECTORY)

import uring
from hosts import CLOSE, CLOSE_WAIT, Host, Skip, _die_with_parent, _libc, linger, port, until, wait_state, wait_unread
from segments import forge

PYTHON = [sys.executable, "-B", f"{DIRECTORY}/peer/peer.py"]
NODE = ["node", f"{DIRECTORY}/peer/peer.js"]
ADDRESS = "127.0.0.1"
TIMES = 3
PR_CAPBSET_DROP = 24
CASES = {}


def case(act):
    CASES[act.__name__] = act
    return act


def executable(pid):
    """The name of a process's executable."""
    return os.path.basename(os.readlink(f"/proc/{pid}/exe"))


def comm(pid):
    """The name of its main thread: all that is known of it once it has ended."""
    with open(f"/proc/{pid}/comm") as handle:
        return handle.read().strip()


class Owner:
    """A process, remembered while it lives. `others` are owners that are true as well, where several hold the socket."""

    def __init__(self, pid, others=()):
        self.pids = [pid, *others]
        self.may_be_unnamed = False
        self.names = sorted({name(each) for each in self.pids for name in (executable, comm)})


class Case:
    """One host, what is due on it, and the programs that were started."""

    def __init__(self, host, peer):
        self.host, self.go = host, [peer]
        self.me = Owner(os.getpid())
        self.programs = []
        host.enter()

    def due(self, what, direction, local, peer, owner):
        """A record that is due, of the end with the port `local`; no owner, no process in it."""
        row = {"what": what, "direction": direction, "local_port": local, "peer_port": peer}
        row |= {"pids": owner.pids, "names": owner.names} if owner else {"pids": [], "names": []}
        row["may_be_unnamed"] = owner is None or owner.may_be_unnamed
        print(json.dumps(row), flush=True)

    def reset(self, sender, receiver, ports):
        """A reset between two owners; ports are the sender's and the receiver's."""
        self.due("sends", "transmit", *ports, sender)
        self.due("receives", "receive", *reversed(ports), receiver)

    def start(self, command, **options):
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent, start_new_session=True, **options)
        self.programs.append(program)
        return program

    def serve(self, command, mode="serve"):
        """Starts a program that listens, and returns its port."""
        with self.listen() as listener:
            number = port(listener)
        program = self.start([*command, mode, ADDRESS, str(number)])
        until(lambda: self.listens(program, number), f"{command[0]} listens")
        return number

    def listens(self, program, number):
        if program.poll() is not None:
            raise RuntimeError(f"the server ended with {program.returncode}")
        return self.host.run("ss", "-Htln", "sport", "=", f":{number}").strip()

    def listen(self, backlog=16):
        listener = socket.socket()
        listener.settimeout(10)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, 0))
        listener.listen(backlog)
        return listener

    def connect(self, to_port):
        return socket.create_connection((ADDRESS, to_port), timeout=10)

    def ready(self):
        """What follows happens under the collector's eyes."""
        print("ready", flush=True)
        sys.stdin.readline()

    def end(self):
        for program in self.programs:
            os.killpg(program.pid, signal.SIGKILL)  # its children too
            program.wait()


def ends(connection):
    """The two ports, this end's first."""
    return connection.getsockname()[1], connection.getpeername()[1]


def owner(connection, others=()):
    """Who holds the other end, by its own word."""
    connection.sendall(b"who\n")
    return Owner(int(connection.makefile("rb").readline()), others)


def told(connection):
    """The other end resets, on request."""
    connection.sendall(b"reset\n")
    wait_state(connection, CLOSE)
    connection.close()


def abort(connection):
    linger(connection)
    connection.close()


def both_ways(act, connection, theirs, by_them):
    """One reset of a connection whose other end's owner is known."""
    mine, other = ends(connection)
    if by_them:
        act.reset(theirs, act.me, (other, mine))
        told(connection)
    else:
        act.reset(act.me, theirs, (mine, other))
        abort(connection)


def as_server(act, command, mode="serve", others=()):
    """The program accepts connections, and each second one is reset by it."""
    number = act.serve(command, mode)
    others = [act.programs[-1].pid for _ in others]
    for turn in range(2 * TIMES):
        connection = act.connect(number)
        both_ways(act, connection, owner(connection, others), turn % 2 == 0)


def as_client(act, command):
    """The program connects, and each second connection is reset by it."""
    with act.listen() as listener:
        for turn in range(2 * TIMES):
            act.start([*command, "connect", ADDRESS, str(port(listener))])
            connection, _ = listener.accept()
            both_ways(act, connection, owner(connection), turn % 2 == 0)


def both_sides(act, command):
    as_server(act, command)
    as_client(act, command)


@case
def python(act):
    """Python, as server and as client"""
    both_sides(act, PYTHON)


@case
def go(act):
    """Go, as server and as client"""
    both_sides(act, act.go)


@case
def node(act):
    """Node, as server and as client"""
    both_sides(act, NODE)


@case
def threaded_server(act):
    """a thread for each connection"""
    as_server(act, PYTHON, "threads")


@case
def forking_server(act):
    """the parent accepts, a child serves: the child holds it, the parent accepted it"""
    as_server(act, PYTHON, "fork", others=["parent"])


@case
def preforked_server(act):
    """children accept on a listener that they inherited: the one that accepted, not the parent that listens"""
    as_server(act, PYTHON, "prefork")


NGINX = """
daemon off; worker_processes 2; pid {directory}/pid; error_log {directory}/error.log; user www-data;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen {address}:{port}{reuseport};
    reset_timedout_connection on;
    location /pid {{ return 200 "$pid\\n"; }}
    location /444 {{ return 444; }}
    location /refused {{ proxy_pass http://{address}:{closed}; }}
  }}
}}
"""


def ask(connection, path):
    connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"\n"):
        part = connection.recv(65536)
        assert part, f"nginx closed after {answer}"
        answer += part
    return answer


def nginx(act, reuseport):
    with tempfile.TemporaryDirectory() as directory:
        with act.listen() as one, act.listen() as other:
            number, closed = port(one), port(other)
        with open(f"{directory}/nginx.conf", "w") as handle:
            handle.write(NGINX.format(directory=directory, address=ADDRESS, port=number, closed=closed, reuseport=reuseport))
        program = act.start(["nginx", "-p", directory, "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"])
        until(lambda: act.listens(program, number), "nginx listens")
        for turn in range(8 * TIMES):
            connection = act.connect(number)
            worker = Owner(int(ask(connection, "pid").splitlines()[-1]))
            assert worker.pids != [program.pid]
            mine, other = ends(connection)
            if turn % 3 == 0:
                act.reset(worker, act.me, (other, mine))
                connection.sendall(b"GET /444 HTTP/1.1\r\nHost: s\r\n\r\n")
                wait_state(connection, CLOSE)
                connection.close()
            elif turn % 3 == 1:
                act.reset(act.me, worker, (mine, other))
                abort(connection)
            else:
                # The worker's own connection, to an upstream that refuses it; the port is the kernel's choice.
                act.due("refused", "receive", 0, closed, worker)
                act.due("refuses", "transmit", closed, 0, None)
                assert b" 502 " in ask(connection, "refused")
                connection.close()


@case
def nginx_workers(act):
    """nginx: two workers under another user share the master's listener"""
    nginx(act, "")


@case
def nginx_workers_with_reuseport(act):
    """nginx: two workers with a listener each, which the master opened"""
    nginx(act, " reuseport")


def accept_one(act, command, then, others=()):
    """A process of its own accepts one connection and does something with it."""
    listener = act.listen()
    pid = os.fork()
    if pid == 0:
        try:
            _die_with_parent()
            connection, _ = listener.accept()
            listener.close()
            os.set_inheritable(connection.fileno(), True)
            then([*command, "fd", str(connection.fileno())], connection)
        finally:
            os._exit(1)
    connection = act.connect(port(listener))
    listener.close()
    return connection, pid


def exec_in_place(arguments, _):
    os.execvp(arguments[0], arguments)


@case
def inherited_over_exec(act):
    """the process that accepted becomes another program, which serves the connection"""
    for turn in range(2 * TIMES):
        connection, pid = accept_one(act, act.go, exec_in_place)
        theirs = owner(connection)
        assert theirs.pids == [pid]
        both_ways(act, connection, theirs, turn % 2 == 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exec_in_child(arguments, connection):
    child = subprocess.Popen(arguments, close_fds=False, preexec_fn=_die_with_parent)
    connection.close()
    child.wait()


@case
def inherited_by_a_child_that_execs(act):
    """as inetd does it: one process accepts, its child becomes another program and serves"""
    for turn in range(2 * TIMES):
        connection, pid = accept_one(act, act.go, exec_in_child)
        both_ways(act, connection, owner(connection, [pid]), turn % 2 == 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@case
def passed_over_a_unix_socket(act):
    """SCM_RIGHTS: one process accepts, another serves"""
    for turn in range(2 * TIMES):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        receiver = os.fork()
        if receiver == 0:
            try:
                _die_with_parent()
                _, numbers, _, _ = socket.recv_fds(ours, 16, 1)
                ours.close()
                os.set_inheritable(numbers[0], True)
                exec_in_place([*PYTHON, "fd", str(numbers[0])], None)
            finally:
                os._exit(1)

        def give(_, connection, way=theirs):
            socket.send_fds(way, [b"x"], [connection.fileno()])
            connection.close()
            signal.pause()

        connection, acceptor = accept_one(act, PYTHON, give)
        served = owner(connection, [acceptor])
        assert served.pids == [receiver, acceptor]
        both_ways(act, connection, served, turn % 2 == 0)
        for pid in (receiver, acceptor):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@case
def killed_by_sigkill(act):
    """the process is killed while data lie unread"""

    def sleep(_, connection):
        wait_unread(connection, 5)
        signal.pause()

    for _ in range(TIMES):
        connection, pid = accept_one(act, PYTHON, sleep)
        mine, other = ends(connection)
        connection.sendall(b"hello")
        time.sleep(0.05)
        act.reset(Owner(pid), act.me, (other, mine))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_state(connection, CLOSE)
        connection.close()


@case
def gone_before_its_reset(act):
    """the process has exited 10 ms before the peer's data meet what is left of its connection"""

    def leave(_, connection):
        time.sleep(0.05)  # its name is read meanwhile
        os._exit(0)

    for _ in range(TIMES):
        connection, pid = accept_one(act, PYTHON, leave)
        mine, other = ends(connection)
        act.reset(Owner(pid), act.me, (other, mine))
        os.waitpid(pid, 0)
        wait_state(connection, CLOSE_WAIT)
        time.sleep(0.01)
        connection.sendall(b"late")
        wait_state(connection, CLOSE)
        connection.close()


@case
def a_client_gone_before_its_reset(act):
    """the same the other way round: the client has exited, the server sends more"""
    with act.listen() as listener:
        for _ in range(TIMES):
            pid = os.fork()
            if pid == 0:
                _die_with_parent()
                mine = act.connect(port(listener))
                time.sleep(0.05)
                os._exit(0)
            connection, _ = listener.accept()
            mine, other = ends(connection)
            act.reset(Owner(pid), act.me, (other, mine))
            os.waitpid(pid, 0)
            wait_state(connection, CLOSE_WAIT)
            time.sleep(0.01)
            connection.sendall(b"late")
            wait_state(connection, CLOSE)
            connection.close()


@case
def older_than_the_collector(act):
    """connections, listeners and what a closed one left behind that were there before the collector"""
    number = act.serve(PYTHON, "prefork")
    # One child serves one connection at a time, and there are three.
    preforked = [(connection, owner(connection)) for connection in [act.connect(number) for _ in range(3)]]
    servers = [(act.connect(each), each) for each in [act.serve(act.go), act.serve(NODE), act.serve(PYTHON, "threads")] for _ in range(2 * TIMES)]
    owned = preforked + [(connection, owner(connection)) for connection, _ in servers]
    act.ready()
    for turn, (connection, theirs) in enumerate(owned):
        both_ways(act, connection, theirs, turn % 2 == 0)


@case
def a_time_wait_older_than_the_collector(act):
    """the process closed and exited before the collector began: nobody is left to be named, and nobody is"""

    def leave(_, connection):
        os._exit(0)

    connection, pid = accept_one(act, PYTHON, leave)
    os.waitpid(pid, 0)
    wait_state(connection, CLOSE_WAIT)
    mine, other = ends(connection)
    act.ready()
    act.due("sends", "transmit", other, mine, None)
    act.due("receives", "receive", mine, other, act.me)
    connection.sendall(b"late")
    wait_state(connection, CLOSE)


@case
def listener_closed(act):
    """a listener closes with connections that wait to be accepted: the listener's process"""
    for _ in range(TIMES):
        listener = act.listen()
        connection = act.connect(port(listener))
        act.reset(act.me, act.me, tuple(reversed(ends(connection))))
        listener.close()
        wait_state(connection, CLOSE)
        connection.close()


@case
def listener_closed_by_its_end(act):
    """the process that listens exits: its connections that wait are its own"""
    for _ in range(TIMES):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            listener = act.listen()
            os.write(writer, b"%d\n" % port(listener))
            signal.pause()
        number = int(os.read(reader, 16))
        connection = act.connect(number)
        act.reset(Owner(pid), act.me, tuple(reversed(ends(connection))))
        time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_state(connection, CLOSE)
        connection.close()


@case
def a_segment_to_a_listener(act):
    """an ACK of no connection to a listener is answered by a reset: the listener's process"""
    number = act.serve(act.go)
    listens = Owner(act.programs[-1].pid)
    for turn in range(TIMES):
        act.due("sends", "transmit", number, 4000 + turn, listens)
        act.due("receives", "receive", 4000 + turn, number, None)
        forge(act.host, (ADDRESS, 4000 + turn), (ADDRESS, number), "A", seq=1, ack=2)
        time.sleep(0.02)


def stray(act, number, owner, turns=range(TIMES)):
    """Stray segments to a listener, whose resets are the owner's."""
    for turn in turns:
        act.due("sends", "transmit", number, 4000 + turn, owner)
        act.due("receives", "receive", 4000 + turn, number, None)
        forge(act.host, (ADDRESS, 4000 + turn), (ADDRESS, number), "A", seq=1, ack=2)
        time.sleep(0.02)


@case
def a_listener_that_was_handed_over(act):
    """the process that called listen() sends the listener over a Unix socket, closes it, and lives on"""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _die_with_parent()
        ours.close()
        socket.recv_fds(theirs, 1, 1)
        theirs.send(b"r")
        signal.pause()
    theirs.close()
    listener = act.listen()
    number = port(listener)
    socket.send_fds(ours, [b"x"], [listener.fileno()])
    assert ours.recv(1) == b"r"
    listener.close()
    stray(act, number, Owner(pid))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@case
def a_listener_that_was_inherited(act):
    """the process that called listen() is gone, its child holds the listener"""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        listener = act.listen()
        child = os.fork()
        if child == 0:
            os.write(writer, b"%d %d\n" % (os.getpid(), port(listener)))
            signal.pause()
        os._exit(0)
    os.waitpid(parent, 0)
    child, number = map(int, os.read(reader, 64).split())
    stray(act, number, Owner(child))
    waiting = act.connect(number)
    mine, other = ends(waiting)
    act.reset(Owner(child), act.me, (other, mine))
    os.kill(child, signal.SIGKILL)
    wait_state(waiting, CLOSE)
    waiting.close()


@case
def a_listener_of_another_program(act):
    """the process executes another program after listen(), as socket activation does: the program that runs now"""
    bound = socket.socket()
    bound.bind((ADDRESS, 0))
    number = port(bound)
    bound.set_inheritable(True)
    program = subprocess.Popen(["sleep", "60"], close_fds=False, preexec_fn=lambda: (_die_with_parent(), bound.listen(16)))
    bound.close()
    until(lambda: comm(program.pid) == "sleep", "the program runs")
    stray(act, number, Owner(program.pid))
    program.kill()
    program.wait()


@case
def half_closed_then_closed(act):
    """a server ends its half, waits, and closes: who held it is known in TIME_WAIT"""
    for turn in range(2 * TIMES):
        with act.listen() as listener:
            client = act.connect(port(listener))
            server, _ = listener.accept()
        mine, other = ends(client)
        if turn % 2:
            client.send(b"hello")
            server.recv(5)
            linger(server, 5)
        else:
            server.shutdown(socket.SHUT_WR)
            wait_state(client, CLOSE_WAIT)
        server.close()
        wait_state(client, CLOSE_WAIT)
        act.reset(act.me, act.me, (other, mine))
        client.send(b"more")
        wait_state(client, CLOSE)
        client.close()


@case
def closed_by_a_thread_of_the_kernel(act):
    """a process dies, and an io_uring has the last reference to its connection"""
    for turn in range(TIMES):
        reader, writer = os.pipe()
        listener = act.listen()
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            connection, _ = listener.accept()
            listener.close()
            uring.hold_alone(connection)
            os.write(writer, b"r")
            signal.pause()
        client = act.connect(port(listener))
        listener.close()
        client.send(b"hello")
        assert os.read(reader, 1) == b"r"
        mine, other = ends(client)
        act.reset(Owner(pid), act.me, (other, mine))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_state(client, CLOSE)
        client.close()


@case
def refused(act):
    """a SYN to a closed port: whoever connects is named, and nobody refused it"""
    with act.listen() as listener:
        closed = port(listener)
    for _ in range(TIMES):
        connection = socket.socket()
        connection.bind((ADDRESS, 0))
        mine = port(connection)
        act.reset(None, act.me, (closed, mine))
        try:
            connection.connect((ADDRESS, closed))
        except ConnectionRefusedError:
            pass
        connection.close()


@case
def new_credentials_of_the_same_user(act):
    """credentials given up by processes that live on are handed to others, under the same user"""
    given_up = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            os.setuid(65534)  # as a worker does: its first credentials are free, and it stays
            _die_with_parent()
            signal.pause()
        given_up.append(pid)
    time.sleep(0.2)  # they are freed after a grace period of RCU
    for turn in range(100):
        credentials_changed(act, drop_capability, turn % 2 == 0, reads=turn % 4 < 2)
    for pid in given_up:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def drop_capability():
    _libc.prctl(PR_CAPBSET_DROP, 20, 0, 0, 0)


def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    _die_with_parent()


@case
def other_credentials(act):
    """processes that come and go and change user, so that what names them in the kernel is used again and again"""
    for turn in range(100):
        subprocess.run(["busybox", "true"], check=True)
        credentials_changed(act, become_nobody, turn % 2 == 0, reads=turn % 4 < 2)


def credentials_changed(act, change, by_them, reads):
    """A process changes its credentials, and then opens a socket's file by accepting. One that reads nothing and is gone
    by the next look through all tasks may stay unnamed; nobody else may be named."""
    listener = act.listen()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _die_with_parent()
            change()
            connection, _ = listener.accept()
            listener.close()
            if reads:
                connection.recv(4)
            connection.sendall(b"%d\n" % os.getpid())
            if os.read(reader, 1) == b"r":
                abort(connection)
        finally:
            os._exit(0)
    connection = act.connect(port(listener))
    listener.close()
    if reads:
        connection.sendall(b"who\n")
    assert int(connection.makefile("rb").readline()) == pid
    theirs = Owner(pid)
    theirs.may_be_unnamed = not reads
    mine, other = ends(connection)
    if by_them:
        act.reset(theirs, act.me, (other, mine))
        os.write(writer, b"r")
        wait_state(connection, CLOSE)
        connection.close()
    else:
        act.reset(act.me, theirs, (mine, other))
        abort(connection)
        os.write(writer, b"e")
    os.close(reader)
    os.close(writer)
    os.waitpid(pid, 0)


def main(arguments):
    if arguments == ["--list"]:
        print(json.dumps([{"name": name, "what": " ".join(act.__doc__.split())} for name, act in CASES.items()]))
        return 0
    name, namespace, v4, v6, peer = arguments
    act = Case(Host(namespace, v4, v6), peer)
    status = 0
    try:
        CASES[name](act)
    except Skip as skip:
        print(skip, file=sys.stderr)
        status = 77
    except Exception:
        traceback.print_exc()
        status = 1
    act.end()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
