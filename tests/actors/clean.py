"""Connections that end, or go on, without any reset: nothing may be recorded."""

import socket
import time

from hosts import CLOSE, CLOSE_WAIT, SYN_SENT, disconnect, linger, wait_state, wait_unread
from scenario import EVERYWHERE, THREE, scenario
from segments import ghost_pair

TCP_REPAIR = 19


@scenario(on=EVERYWHERE)
def clean_close(net):
    """both ends close in order, all data read"""
    client, server = net.pair()
    client.send(b"hello")
    wait_unread(server, 5)
    server.recv(5)
    client.close()
    wait_state(server, CLOSE_WAIT)
    server.close()
    time.sleep(0.05)


@scenario()
def client_gives_up_unheard(net):
    """close(), and connect(AF_UNSPEC), in SYN_SENT"""
    net.server.nft("tcp flags syn drop")
    for give_up in (lambda one: one.close(), disconnect):
        one = net.begin_connect(net.closed_port())
        wait_state(one, SYN_SENT)
        give_up(one)


@scenario()
def connect_killed(net):
    """`ss -K` of a connection in SYN_SENT"""
    net.server.nft("tcp flags syn drop")
    to_port = net.closed_port()
    one = net.begin_connect(to_port)
    wait_state(one, SYN_SENT)
    net.client.run("ss", "-K", "state", "syn-sent", "dport", "=", f":{to_port}")
    wait_state(one, CLOSE)


@scenario()
def user_timeout_with_unacked_data(net):
    """TCP_USER_TIMEOUT while data that were sent are not acknowledged: the connection ends without a word"""
    client, server = net.pair()
    net.client.nft("drop")
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    server.send(b"hello")
    wait_state(server, CLOSE)
    net.client.mute()


@scenario()
def time_wait_gets_data(net):
    """data to a connection in TIME_WAIT are answered by an ACK"""
    ghost, server = ghost_pair(net)
    server.close()
    ghost.expect("FA")
    ghost.send("FA")
    ghost.expect("A")
    ghost.send("PA", data=b"hello")
    ghost.expect("A")


@scenario(on=THREE)
def syn_in_connection(net):
    """a SYN in an established connection: a challenge ACK"""
    ghost, server = ghost_pair(net)
    ghost.send("S", seq=ghost.seq)
    ghost.expect("A")


@scenario()
def ack_of_unsent_data(net):
    """an ACK of data that were never sent, in an established connection, which goes on"""
    ghost, server = ghost_pair(net)
    # Older kernels say nothing to it, newer ones send a challenge ACK.
    ghost.send("A", seq=ghost.seq, ack=ghost.ack + 1000)
    ghost.send("PA", data=b"hello")
    ghost.expect("A")
    server.recv(16)


@scenario()
def old_data(net):
    """data from before the window, in an established connection"""
    ghost, server = ghost_pair(net)
    ghost.send("PA", seq=ghost.seq - 5000, data=b"hello")
    ghost.expect("A")


@scenario()
def repaired_socket_closed(net):
    """close() under TCP_REPAIR, as when a container is moved: the connection goes on elsewhere"""
    client, server = net.pair()
    server.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    server.close()
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    client.close()


@scenario()
def linger_zero_after_both_ended(net):
    """SO_LINGER with time 0 in LAST_ACK: no reset is needed"""
    client, server = net.pair()
    net.server.nft("tcp flags & (fin|rst|ack) == ack drop")
    client.shutdown(socket.SHUT_WR)
    wait_state(server, CLOSE_WAIT)
    server.shutdown(socket.SHUT_WR)
    linger(server)
    server.close()
    time.sleep(0.05)
