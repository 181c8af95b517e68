"""Processes that die with connections open, and connections that an administrator kills."""

import os
import signal
import socket

import uring
from hosts import CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT2, Process, Skip, linger, port, wait_state, wait_unread
from scenario import EVERYWHERE, THREE, received, scenario, sent

LOST = received("client", "reset_by_peer", "established")
KILLED = sent("server", "process_killed", "active", "established")
EXITED = sent("server", "process_exited", "active", "established")


def _served(net, prepare, ending=None):
    """A connection whose server's end is held by a process of its own."""
    listener = net.listen()

    def serve(ready):
        accepted, _ = listener.accept()
        prepare(accepted)
        ready()
        if ending:
            ending()
        signal.pause()

    process = Process(serve)
    client = net.connect(port(listener))
    listener.close()
    client.send(b"hello")
    process.wait_ready()
    return client, process


def _unread(accepted):
    wait_unread(accepted, 5)


@scenario(dict(KILLED, facts={"tcp.connection.unread_bytes": 5}), LOST, on=EVERYWHERE)
def killed_with_unread_data(net):
    """SIGKILL of the owner while data lie unread"""
    client, process = _served(net, _unread)
    process.kill()
    wait_state(client, CLOSE)


def _lingering(accepted):
    accepted.recv(5)
    linger(accepted)


@scenario(KILLED, LOST, on=THREE)
def killed_with_linger_zero(net):
    """SIGKILL of the owner of a socket under SO_LINGER with time 0"""
    client, process = _served(net, _lingering)
    process.kill()
    wait_state(client, CLOSE)


@scenario(KILLED, LOST)
def crashed_with_unread_data(net):
    """the owner dies by SIGSEGV while data lie unread"""
    client, process = _served(net, _unread)
    process.kill(signal.SIGSEGV)
    wait_state(client, CLOSE)


@scenario(EXITED, LOST)
def exited_with_unread_data(net):
    """the owner exits by itself, with status 0, while data lie unread"""
    client, process = _served(net, _unread, lambda: os._exit(0))
    process.wait()
    wait_state(client, CLOSE)


@scenario(sent("server", "process_oom_killed", "active", "established"), LOST)
def killed_for_memory(net):
    """the kernel's OOM killer ends the owner while data lie unread"""
    group, limit = memory_group()
    try:
        client, process = _served(net, _unread, lambda: _exhaust(group, limit))
        process.wait()
        wait_state(client, CLOSE)
    finally:
        os.rmdir(group)


def memory_group():
    """A control group that limits memory, and the file with its limit."""
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = f"{root}/reset-collector-tests-{os.getpid()}"
        try:
            os.mkdir(group)
        except OSError:
            continue
        if os.path.exists(f"{group}/{limit}"):
            return group, f"{group}/{limit}"
        os.rmdir(group)
    raise Skip("no control group with a memory limit can be made")


def _exhaust(group, limit):
    with open(limit, "w") as handle:
        handle.write(str(64 << 20))
    for swap in ("memory.swap.max", "memory.swappiness"):
        if os.path.exists(f"{group}/{swap}"):
            with open(f"{group}/{swap}", "w") as handle:
                handle.write("0")
    with open(f"{group}/cgroup.procs", "w") as handle:
        handle.write(str(os.getpid()))
    taken = []
    while True:
        taken.append(bytearray(b"x") * (1 << 20))


def _needs_collector_thread():
    """Before 6.10 the garbage collection runs in whichever process closes a Unix socket, and that one closes the connection."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 10):
        raise Skip("this kernel's garbage collection of Unix sockets has no thread of its own")


def _in_flight(accepted):
    """The connection is now in the queue of a Unix socket that is in its own queue, too: no process can reach it, and the
    kernel's garbage collection has the last reference."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for carried in (accepted, right):
        socket.send_fds(left, [b"x"], [carried.fileno()])
    left.close()
    right.detach()
    accepted.close()


def _read_one_in_flight(accepted):
    wait_unread(accepted, 5)
    accepted.recv(1)
    _in_flight(accepted)


def _unread_in_flight(accepted):
    wait_unread(accepted, 5)
    _in_flight(accepted)


@scenario(KILLED, LOST)
def killed_in_flight(net):
    """SIGKILL of the owner of a connection that only a Unix socket's garbage collection closes"""
    _needs_collector_thread()
    client, process = _served(net, _read_one_in_flight)
    process.kill()
    wait_state(client, CLOSE)


@scenario(EXITED, LOST)
def exited_in_flight(net):
    """the same, the owner exits and has read nothing"""
    _needs_collector_thread()
    client, process = _served(net, _unread_in_flight, lambda: os._exit(3))
    process.wait()
    wait_state(client, CLOSE)


@scenario(KILLED, LOST)
def killed_with_direct_descriptor(net):
    """SIGKILL of the owner of a connection that io_uring's own table of files has alone"""
    client, process = _served(net, uring.hold_alone)
    process.kill()
    wait_state(client, CLOSE)


@scenario(
    sent("server", "data_after_close", "passive", "fin_wait_2|time_wait"),
    received("client", "reset_by_peer", "close_wait"),
)
def killed_and_then_data(net):
    """SIGKILL of the owner with nothing unread sends a FIN; the client sends data all the same"""
    client, process = _served(net, lambda accepted: accepted.recv(5))
    process.kill()
    wait_state(client, CLOSE_WAIT)
    client.send(b"more")
    wait_state(client, CLOSE)


def _ss_kill(host, state, to_port):
    host.run("ss", "-K", "state", state, "sport", "=", f":{to_port}")


ADMIN = sent("server", "socket_destroyed", "active", "established")


@scenario(ADMIN, LOST, on=EVERYWHERE)
def connection_killed(net):
    """`ss -K` of an established connection"""
    client, server = net.pair()
    _ss_kill(net.server, "established", port(server))
    wait_state(client, CLOSE)


@scenario(ADMIN, LOST)
def connection_with_unread_data_killed(net):
    """`ss -K` of a connection with unread data"""
    client, server = net.pair()
    client.send(b"hello")
    wait_unread(server, 5)
    _ss_kill(net.server, "established", port(server))
    wait_state(client, CLOSE)


@scenario(sent("server", "socket_destroyed", "active", "close_wait"), received("client", "reset_by_peer", "fin_wait_2"))
def connection_in_close_wait_killed(net):
    """`ss -K` of a connection whose peer has ended its half"""
    client, server = net.pair()
    client.shutdown(socket.SHUT_WR)
    wait_state(server, CLOSE_WAIT)
    wait_state(client, FIN_WAIT2)
    _ss_kill(net.server, "close-wait", port(server))
    wait_state(client, CLOSE)


@scenario(sent("server", "listener_closed|socket_destroyed", "active", "established"), LOST)
def listener_killed_by_ss(net):
    """`ss -K` of a listener with a connection that waits to be accepted"""
    listener = net.listen()
    client = net.connect(port(listener))
    wait_state(client, ESTABLISHED)
    _ss_kill(net.server, "listening", port(listener))
    wait_state(client, CLOSE)
