"""Processes that die with connections open, and connections that an administrator kills."""

import os
import signal
import socket

from hosts import CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT2, Process, linger, port, wait_state, wait_unread
from scenario import EVERYWHERE, THREE, received, scenario, sent

LOST = received("client", "reset_by_peer", "established")
KILLED = sent("server", "process_killed", "active", "established")


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


@scenario(KILLED, LOST)
def exited_with_unread_data(net):
    """the owner exits by itself, with status 0, while data lie unread"""
    client, process = _served(net, _unread, lambda: os._exit(0))
    process.wait()
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
