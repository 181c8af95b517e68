"""Resets of a socket whose own application wanted them, or closed it before the peer was done."""

import os
import socket
import subprocess
import time

from hosts import (
    CLOSE, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2, LAST_ACK, Process, Skip, disconnect, linger, port, wait_state, wait_unread,
)
from scenario import EVERYWHERE, THREE, received, scenario, sent
from segments import ghost_pair

LOST = received("client", "reset_by_peer", "established")
TCP_LINGER2 = 8
IPPROTO_MPTCP = 262


@scenario(sent("server", "closed_with_unread_data", "active", "established", unread_bytes=5, bytes_received=5), LOST, on=EVERYWHERE)
def close_with_unread_data(net):
    """close() while five bytes lie unread"""
    client, server = net.pair()
    client.send(b"hello")
    wait_unread(server, 5)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("server", "closed_with_unread_data", "active", "established", unread_bytes=2), LOST)
def close_with_some_unread(net):
    """close() after some of the data was read"""
    client, server = net.pair()
    client.send(b"hello")
    wait_unread(server, 5)
    server.recv(3)
    server.close()
    wait_state(client, CLOSE)


@scenario(
    sent("server", "closed_with_unread_data", "active", "close_wait", unread_bytes=5),
    received("client", "reset_by_peer", "fin_wait_2"),
)
def close_with_unread_in_close_wait(net):
    """the client has sent data and ended its half; the server closes without reading"""
    client, server = net.pair()
    client.send(b"hello")
    client.shutdown(socket.SHUT_WR)
    wait_state(server, CLOSE_WAIT)
    wait_state(client, FIN_WAIT2)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("server", "closed_with_unread_data", "active", "close_wait", unread_bytes=5), received("client", "unmatched_reset"))
def close_with_unread_after_client_left(net):
    """the same, but the client has closed: what remains of its socket is a TIME_WAIT entry"""
    client, server = net.pair()
    client.send(b"hello")
    client.close()
    wait_state(server, CLOSE_WAIT)
    time.sleep(0.05)  # the client's FIN_WAIT2 is no socket that could be asked
    server.close()


@scenario(
    sent("server", "data_after_close", "passive", "time_wait|fin_wait_2", bytes_received=5, bytes_sent=5),
    received("client", "reset_by_peer", "close_wait"),
    on=EVERYWHERE,
)
def data_after_half_close(net):
    """the server ends its half, waits, and closes; then the client sends data"""
    client, server = net.pair()
    client.send(b"hello")
    server.send(server.recv(5))
    client.recv(5)
    server.shutdown(socket.SHUT_WR)
    wait_state(server, FIN_WAIT2)
    server.close()
    client.send(b"more")
    wait_state(client, CLOSE)


@scenario(
    sent("server", "data_after_close", "passive", "time_wait|fin_wait_2", bytes_received=5),
    received("client", "reset_by_peer", "close_wait"),
)
def data_after_lingering_close(net):
    """close() under SO_LINGER with time to spare waits until its FIN is acknowledged; then the client sends data"""
    client, server = net.pair()
    client.send(b"hello")
    server.recv(5)
    linger(server, 5)
    server.close()
    wait_state(client, CLOSE_WAIT)
    client.send(b"more")
    wait_state(client, CLOSE)


@scenario(sent("server", "closed_with_unread_data", "active", "established", unread_bytes=5), LOST)
def close_on_exec(net):
    """exec() closes the socket while data lie unread: nobody is killed"""
    listener = net.listen()

    def serve(ready):
        server, _ = listener.accept()
        wait_unread(server, 5)
        ready()
        os.execv("/bin/sleep", ["sleep", "1"])  # Python's sockets are close-on-exec

    process = Process(serve)
    client = net.connect(port(listener))
    listener.close()
    client.send(b"hello")
    process.wait_ready()
    wait_state(client, CLOSE)
    process.wait()


@scenario(sent("server", "linger_zero", "active", "established", unread_bytes=0), LOST, on=EVERYWHERE)
def linger_zero(net):
    """close() under SO_LINGER with time 0"""
    client, server = net.pair()
    linger(server)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("client", "linger_zero", "active", "established"), received("server", "reset_by_peer", "established"), on=THREE)
def linger_zero_client(net):
    """the client aborts by SO_LINGER"""
    client, server = net.pair()
    linger(client)
    client.close()
    wait_state(server, CLOSE)


@scenario(sent("server", "closed_with_unread_data", "active", "established", unread_bytes=5), LOST)
def linger_zero_with_unread_data(net):
    """SO_LINGER with time 0 and unread data: the unread data win"""
    client, server = net.pair()
    linger(server)
    client.send(b"hello")
    wait_unread(server, 5)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("server", "linger_zero", "active", "established"), LOST)
def linger_zero_with_unacked_data(net):
    """SO_LINGER with time 0 while data that were sent are not acknowledged"""
    client, server = net.pair()
    net.server.nft("tcp flags & (ack|rst) == ack drop")
    server.send(b"hello")
    wait_unread(client, 5)
    linger(server)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("client", "linger_zero", "active", "close_wait"), received("server", "reset_by_peer", "fin_wait_2"), on=THREE)
def linger_zero_in_close_wait(net):
    """the server ended its half, the client aborts"""
    client, server = net.pair()
    server.shutdown(socket.SHUT_WR)
    wait_state(server, FIN_WAIT2)
    wait_state(client, CLOSE_WAIT)
    linger(client)
    client.close()
    wait_state(server, CLOSE)


@scenario(sent("server", "linger_zero", "active", "fin_wait_2"), received("client", "reset_by_peer", "close_wait"))
def linger_zero_in_fin_wait_2(net):
    """the server ended its half, and then aborts the rest"""
    client, server = net.pair()
    server.shutdown(socket.SHUT_WR)
    wait_state(server, FIN_WAIT2)
    wait_state(client, CLOSE_WAIT)
    linger(server)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("client", "linger_zero", "active", "close_wait"), received("server", "unmatched_reset"))
def linger_zero_after_server_left(net):
    """the server closed in full, the client aborts: the reset meets a TIME_WAIT entry"""
    client, server = net.pair()
    server.close()
    wait_state(client, CLOSE_WAIT)
    time.sleep(0.05)
    linger(client)
    client.close()


@scenario(sent("server", "linger_zero", "active", "fin_wait_2"), received("client", "reset_by_peer", "close_wait"))
def linger2_in_fin_wait_2(net):
    """close() in FIN_WAIT2 under a negative TCP_LINGER2"""
    client, server = net.pair()
    server.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
    server.shutdown(socket.SHUT_WR)
    wait_state(server, FIN_WAIT2)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("server", "linger_zero", "passive", "fin_wait_1|fin_wait_2"), received("client", "reset_by_peer", "close_wait"))
def linger2_in_fin_wait_1(net):
    """close() under a negative TCP_LINGER2; the reset answers the ACK of the FIN"""
    client, server = net.pair()
    server.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
    server.close()
    wait_state(client, CLOSE)


@scenario(sent("client", "disconnect_syscall", "active", "established"), received("server", "reset_by_peer", "established"), on=EVERYWHERE)
def disconnect_syscall(net):
    """connect(AF_UNSPEC) on an established connection"""
    client, server = net.pair()
    disconnect(client)
    wait_state(server, CLOSE)


@scenario(sent("server", "disconnect_syscall", "active", "last_ack"), received("client", "reset_by_peer", "fin_wait_2"))
def disconnected_with_unsent_data(net):
    """connect(AF_UNSPEC) in LAST_ACK while the peer's closed window holds back data"""
    with net.listen() as listener:
        client = net.client.socket(net.version)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((net.target, port(listener)))
        server, _ = listener.accept()
    client.shutdown(socket.SHUT_WR)
    wait_state(server, CLOSE_WAIT)
    server.setblocking(False)
    try:
        while True:
            server.send(bytes(65536))
    except BlockingIOError:
        pass
    server.shutdown(socket.SHUT_WR)
    wait_state(server, LAST_ACK)
    wait_state(client, FIN_WAIT2)
    disconnect(server)
    wait_state(client, CLOSE)


@scenario(sent("server", "data_after_close", "passive", "fin_wait_2|time_wait"), received("client", "reset_by_peer", "close_wait"), on=EVERYWHERE)
def data_after_close(net):
    """the server has closed in full; the client sends data"""
    client, server = net.pair()
    server.close()
    wait_state(client, CLOSE_WAIT)
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(sent("server", "data_after_close", "passive", "fin_wait_1"), LOST, on=EVERYWHERE)
def data_after_close_in_fin_wait_1(net):
    """the same, but the server's FIN was lost on its way: the kernel calls tcp_reset() though no reset came"""
    client, server = net.pair()
    net.client.nft("tcp flags & fin == fin drop")
    server.close()
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(sent("server", "data_after_close", "passive", "fin_wait_1|fin_wait_2"))
def data_with_ack_of_fin(net):
    """the segment that acknowledges the FIN brings data"""
    ghost, server = ghost_pair(net)
    server.close()
    ghost.expect("FA")
    ghost.send("PA", data=b"hello")
    ghost.expect("R")


@scenario(sent("server", "data_after_close", "passive", "fin_wait_2"), received("client", "reset_by_peer", "close_wait"), on=THREE)
def data_after_shutdown(net):
    """shutdown() of both halves, the socket kept; the client sends data"""
    client, server = net.pair()
    server.shutdown(socket.SHUT_RDWR)
    wait_state(server, FIN_WAIT2)
    wait_state(client, CLOSE_WAIT)
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(sent("server", "data_after_close", "passive", "fin_wait_1"), LOST)
def data_after_shutdown_in_fin_wait_1(net):
    """the same with the FIN lost on its way"""
    client, server = net.pair()
    net.client.nft("tcp flags & fin == fin drop")
    server.shutdown(socket.SHUT_RDWR)
    wait_state(server, FIN_WAIT1)
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(
    sent("server", "out_of_memory", "active", "fin_wait_1|fin_wait_2"),
    received("client", "reset_by_peer", "close_wait"),
    own_machine=True,
)
def too_many_orphans(net):
    """close() with tcp_max_orphans at 0, a limit that all namespaces share"""
    net.server.sysctl("net.ipv4.tcp_fin_timeout", 120)  # over a minute an orphan stays a whole socket
    first_client, first = net.pair()
    client, server = net.pair()
    first.close()
    wait_state(first_client, CLOSE_WAIT)
    time.sleep(0.5)  # the kernel counts orphans every 100 ms (tcp_orphan_update)
    path = "/proc/sys/net/ipv4/tcp_max_orphans"
    before = _write_in_first_namespace(path, "0")
    # The FIN goes before the reset: its ACK may find the socket gone, and be answered by another reset.
    net.server.nft("tcp flags & (fin|rst|ack) == ack drop")
    try:
        server.close()
        wait_state(client, CLOSE)
    finally:
        _write_in_first_namespace(path, before)


def _write_in_first_namespace(path, value):
    command = f"cat {path}; echo {value} > {path}"
    return subprocess.run(["nsenter", "-t", "1", "-n", "sh", "-c", command], check=True, capture_output=True, text=True).stdout.strip()


def _mptcp_pair(net):
    for host in {net.client, net.server}:
        host.sysctl("net.mptcp.enabled", 1)
    try:
        with net.listen(protocol=IPPROTO_MPTCP) as listener:
            client = net.connect(port(listener), protocol=IPPROTO_MPTCP)
            server, _ = listener.accept()
    except OSError as error:
        raise Skip(f"no MPTCP sockets here: {error}") from error
    client.send(b"hello")
    server.recv(5)
    server.send(b"world")
    client.recv(5)
    return client, server


@scenario(sent("server", "mptcp", "active", "established"), received("client", "reset_by_peer", "established"))
def mptcp_fastclose(net):
    """an MPTCP connection closed with unread data: fastclose"""
    client, server = _mptcp_pair(net)
    client.send(b"unread")
    wait_unread(server, 6)
    server.close()
    time.sleep(0.2)
    client.close()
