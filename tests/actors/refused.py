"""Connections that are refused: closed ports, full queues, listeners that go away."""

import errno
import os
import signal
import socket

from hosts import CLOSE, Process, disconnect, port, state, until, wait_state
from scenario import EVERYWHERE, THREE, received, scenario, sent
from segments import Ghost

REFUSED = received("client", "refused_by_peer", "syn_sent")
LOST = received("client", "reset_by_peer", "established")
CHILD = sent("server", "listener_closed", "active", "established")


def _refused(net, to_port):
    try:
        net.connect(to_port).close()
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            raise
        return
    raise AssertionError("the connection was not refused")


@scenario(sent("server", "port_closed", "passive"), REFUSED, on=EVERYWHERE)
def closed_port(net):
    """connect() to a port that nobody listens on"""
    _refused(net, net.closed_port())


@scenario(sent("server", "port_closed", "passive"), REFUSED, routed=True)
def closed_port_behind_router(net):
    """the same with a router between, which only forwards"""
    _refused(net, net.closed_port())


@scenario(sent("server", "port_closed", "passive"))
def syn_from_ghost_to_closed_port(net):
    """a SYN made by hand to a closed port"""
    ghost = Ghost(net, net.closed_port())
    ghost.send("S")
    ghost.expect("RA")


def _waiting(net, count=1):
    """A listener with connections that nobody has accepted."""
    listener = net.listen()
    waiting = [net.connect(port(listener)) for _ in range(count)]
    for one in waiting:
        one.send(b"hello")
    return listener, waiting


def _all_closed(connections):
    for one in connections:
        wait_state(one, CLOSE)


@scenario(dict(CHILD, times=3), dict(LOST, times=3), on=EVERYWHERE)
def listener_closed(net):
    """close() of a listener with three connections that wait to be accepted"""
    listener, waiting = _waiting(net, 3)
    listener.close()
    _all_closed(waiting)


@scenario(CHILD, LOST)
def listener_shut_down(net):
    """shutdown() of a listener with a connection that waits to be accepted"""
    listener, waiting = _waiting(net)
    listener.shutdown(socket.SHUT_RDWR)
    _all_closed(waiting)


@scenario(CHILD, LOST)
def listener_disconnected(net):
    """connect(AF_UNSPEC) on a listener with a connection that waits to be accepted"""
    listener, waiting = _waiting(net)
    disconnect(listener)
    _all_closed(waiting)


@scenario(sent("server", "process_killed", "active", "established"), LOST)
def listener_killed(net):
    """SIGKILL of the owner of a listener with a connection that waits to be accepted"""
    listener = net.listen()
    process = Process(lambda ready: ready())
    process.wait_ready()
    to_port = port(listener)
    listener.close()  # the process holds the last one
    waiting = net.connect(to_port)
    process.kill(signal.SIGKILL)
    _all_closed([waiting])


@scenario(sent("server", "process_exited", "active", "established", times=2), dict(LOST, times=2), on=EVERYWHERE)
def listener_exited(net):
    """the owner of a listener exits with two connections that wait to be accepted"""
    listener = net.listen()
    reader, writer = os.pipe()
    process = Process(lambda ready: (ready(), os.read(reader, 1), os._exit(0)))
    process.wait_ready()
    to_port = port(listener)
    listener.close()
    waiting = [net.connect(to_port) for _ in range(2)]
    os.write(writer, b"x")
    process.wait()
    _all_closed(waiting)


@scenario(sent("server", "unknown_connection", "passive"), LOST)
def listener_closed_in_handshake(net):
    """the listener closes between the SYN-ACK and the last ACK; the client, which thinks it is connected, sends data"""
    net.server.nft("tcp flags & (syn|ack) == ack drop")
    listener = net.listen()
    client = net.connect(port(listener))
    listener.close()
    net.server.flush()
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(sent("server", "accept_queue_overflow", "passive", "syn_received|listen"), LOST, on=THREE)
def accept_queue_overflow(net):
    """a second connection ends its handshake while the accept queue is full, under tcp_abort_on_overflow"""
    net.server.sysctl("net.ipv4.tcp_abort_on_overflow", 1)
    with net.listen(backlog=3) as listener:  # four may wait
        first = [net.connect(port(listener)) for _ in range(3)]
        net.server.nft("tcp flags & (syn|ack) == ack drop")
        both = [net.connect(port(listener)) for _ in range(2)]
        net.server.flush()  # the SYN-ACKs are sent again within a second, and so are the ACKs
        until(lambda: any(state(one) == CLOSE for one in both), "one of two is reset")
        accepted = [listener.accept() for _ in range(4)]
    assert len(first) + 1 == len(accepted)


def _half_open_expired(net, listener):
    """A queue of four with three connections, and two clients that take themselves for connected: the queue was full when
    the handshake of one ended, and its half-open request has expired since. The two clients, and the others."""
    net.server.sysctl("net.ipv4.tcp_synack_retries", 1)
    number = port(listener)
    first = [net.connect(number) for _ in range(3)]
    net.server.nft("tcp flags & (syn|ack) == ack drop")
    both = [net.connect(number) for _ in range(2)]
    net.server.flush()  # the SYN-ACKs are sent again within a second, and so are the ACKs
    half_open = lambda: net.server.run("ss", "-Htan", "state", "syn-recv", "sport", "=", f":{number}")
    until(lambda: not half_open().strip(), "the half-open request has expired")
    return both, first


def _one_is_reset(both):
    for one in both:
        one.send(b"hello")
    until(lambda: any(state(one) == CLOSE for one in both), "one of two is reset")


@scenario(sent("server", "accept_queue_overflow", "passive", "listen"), LOST, on=THREE)
def accept_queue_full(net):
    """data of a connection whose half-open request expired meet a listener whose accept queue is full"""
    with net.listen(backlog=3) as listener:
        both, first = _half_open_expired(net, listener)
        _one_is_reset(both)
        accepted = [listener.accept() for _ in range(4)]
        accepted[-1][0].recv(5)
    assert len(first) + 1 == len(accepted)


@scenario(sent("server", "unknown_connection", "passive", "listen"), LOST)
def accept_queue_no_longer_full(net):
    """the same, but the queue has room by the time that the data come"""
    with net.listen(backlog=3) as listener:
        both, first = _half_open_expired(net, listener)
        accepted = [listener.accept() for _ in range(4)]
        _one_is_reset(both)
        accepted[-1][0].recv(5)
    assert len(first) + 1 == len(accepted)


@scenario(
    sent("client", "unknown_connection", "passive"),
    received("server", "reset_by_peer", "syn_received"),
    on=THREE,
)
def client_gave_up(net):
    """the client closes before the SYN-ACK comes"""
    net.client.nft("tcp flags & (syn|ack) == (syn|ack) drop")
    with net.listen() as listener:
        net.begin_connect(port(listener)).close()
        net.client.flush()  # the SYN-ACK is sent again within a second
        until(lambda: net.client.resets_sent(), "the client has sent its reset")
