"""Peers that stop answering."""

import socket

from hosts import CLOSE, CLOSE_WAIT, FIN_WAIT2, keepalive, wait_state
from scenario import THREE, received, scenario, sent

LOST = received("client", "reset_by_peer", "established")


def _silence(net):
    """The client hears nothing but resets."""
    net.client.nft("tcp flags & rst != rst drop")


@scenario(sent("server", "keepalive_timeout", "active", "established"), LOST, on=THREE)
def keepalive_timeout(net):
    """keepalive probes go unanswered"""
    client, server = net.pair()
    keepalive(server)
    _silence(net)
    wait_state(client, CLOSE)


@scenario(sent("server", "user_timeout", "active", "established"), LOST)
def user_timeout(net):
    """TCP_USER_TIMEOUT runs out on an idle connection with keepalive, before its probes are spent"""
    client, server = net.pair()
    keepalive(server, probes=9)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)
    _silence(net)
    wait_state(client, CLOSE)


@scenario(sent("server", "keepalive_timeout", "active", "established"), received("client", "unmatched_reset"))
def keepalive_timeout_unheard(net):
    """the same, and the reset is dropped by netfilter where it arrives"""
    client, server = net.pair()
    keepalive(server)
    net.client.nft("drop")
    wait_state(server, CLOSE)
    net.client.mute()


@scenario(sent("server", "keepalive_timeout", "active", "close_wait"), received("client", "reset_by_peer", "fin_wait_2"))
def keepalive_timeout_in_close_wait(net):
    """keepalive probes go unanswered after the peer ended its half"""
    client, server = net.pair()
    client.shutdown(socket.SHUT_WR)
    wait_state(server, CLOSE_WAIT)
    wait_state(client, FIN_WAIT2)
    keepalive(server)
    _silence(net)
    wait_state(client, CLOSE)
