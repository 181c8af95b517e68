"""Resets that are made by hand: what the socket that they reach makes of them."""

import socket

from hosts import CLOSE, CLOSE_WAIT, LAST_ACK, SYN_SENT, port, state, wait_state
from scenario import PLAIN, THREE, received, scenario
from segments import Ghost, Sniffer, forge, ghost_pair
import time


@scenario(received("server", "reset_by_peer", "established"), on=THREE)
def exact_reset(net):
    """a reset with the sequence number that is due"""
    ghost, server = ghost_pair(net)
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "reset_by_peer", "established"))
def exact_reset_with_ack(net):
    """the same with an ACK"""
    ghost, server = ghost_pair(net)
    ghost.send("RA")
    wait_state(server, CLOSE)


@scenario(received("server", "reset_by_peer", "established", unread_bytes=5))
def reset_with_unread_data(net):
    """a reset while data wait to be read"""
    ghost, server = ghost_pair(net)
    ghost.send("PA", data=b"hello")
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "bad_segment", "established"), on=THREE)
def reset_in_window(net):
    """a reset within the window, but not at the number that is due: a challenge ACK"""
    ghost, server = ghost_pair(net)
    ghost.send("R", seq=ghost.seq + 100)
    ghost.expect("A")


@scenario(received("server", "bad_segment", "established"))
def reset_beyond_window(net):
    """a reset far beyond the window"""
    ghost, server = ghost_pair(net)
    ghost.send("R", seq=ghost.seq + 100_000_000)
    time.sleep(0.05)


@scenario(received("server", "bad_segment", "established"))
def reset_of_the_past(net):
    """a reset from before the window"""
    ghost, server = ghost_pair(net)
    ghost.send("R", seq=ghost.seq - 5000)
    time.sleep(0.05)


@scenario(received("server", "reset_by_peer", "close_wait"))
def reset_in_close_wait(net):
    """a reset after the peer ended its half"""
    ghost, server = ghost_pair(net)
    ghost.send("FA")
    wait_state(server, CLOSE_WAIT)
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "reset_by_peer", "last_ack"))
def reset_in_last_ack(net):
    """a reset after both ended, the last ACK outstanding"""
    ghost, server = ghost_pair(net)
    ghost.send("FA")
    wait_state(server, CLOSE_WAIT)
    server.shutdown(socket.SHUT_WR)
    wait_state(server, LAST_ACK)
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "reset_by_peer", "fin_wait_1"))
def reset_in_fin_wait_1(net):
    """a reset after this end ended its half, which the peer has not acknowledged"""
    ghost, server = ghost_pair(net)
    server.shutdown(socket.SHUT_WR)
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "reset_by_peer", "fin_wait_1"))
def reset_of_orphan(net):
    """the same, and the application has closed the socket"""
    ghost, server = ghost_pair(net)
    server.close()
    ghost.expect("FA")
    ghost.send("R")


@scenario(received("server", "reset_by_peer", "closing"))
def reset_in_closing(net):
    """a reset after both ended at once"""
    ghost, server = ghost_pair(net)
    server.shutdown(socket.SHUT_WR)
    ghost.expect("FA")
    ghost.send("FA", ack=ghost.ack - 1)
    ghost.expect("A")
    ghost.send("R")
    wait_state(server, CLOSE)


@scenario(received("server", "unmatched_reset"), on=THREE)
def reset_to_closed_port(net):
    """a reset to a port that nobody listens on"""
    Ghost(net, net.closed_port()).send("R")


@scenario(received("server", "unmatched_reset"), on=THREE)
def reset_to_listener(net):
    """a reset to a listener that knows no such connection"""
    with net.listen() as listener:
        Ghost(net, port(listener)).send("R")
        time.sleep(0.05)


@scenario(received("server", "unmatched_reset"), on=THREE)
def reset_to_time_wait(net):
    """a reset to a connection in TIME_WAIT"""
    ghost, server = ghost_pair(net)
    server.close()
    ghost.expect("FA")
    ghost.send("FA")
    ghost.expect("A")
    ghost.send("R")


@scenario(received("server", "reset_by_peer", "syn_received"), on=THREE)
def reset_in_handshake(net):
    """a reset before the last ACK of a handshake"""
    with net.listen() as listener:
        ghost = Ghost(net, port(listener))
        ghost.half_open()
        ghost.send("R")
        time.sleep(0.05)


@scenario(received("server", "bad_segment|reset_by_peer", "syn_received"))
def bad_reset_in_handshake(net):
    """the same with a number beyond the window: the connection request lives on"""
    with net.listen() as listener:
        ghost = Ghost(net, port(listener))
        ghost.half_open()
        ghost.send("R", seq=ghost.seq + 100_000_000)
        time.sleep(0.05)


@scenario(received("server", "unmatched_reset"))
def reset_dropped_by_netfilter(net):
    """a reset that netfilter drops before the socket sees it"""
    net.server.nft("tcp flags & rst == rst drop")
    ghost, server = ghost_pair(net)
    ghost.send("R")
    time.sleep(0.05)


def _connecting(net):
    """A connection attempt of the client that the server does not answer, and the client's SYN."""
    net.server.nft("tcp flags & (syn|rst) == syn drop")
    sniffer = Sniffer(net.client)
    one = net.begin_connect(net.closed_port())
    syn = sniffer.expect("S")
    return one, syn, (net.target, syn.port), (net.client.address[net.version], syn.source_port)


@scenario(received("client", "refused_by_peer", "syn_sent"))
def forged_refusal(net):
    """a reset that answers the SYN, made by hand"""
    one, syn, server, client = _connecting(net)
    forge(net.server, server, client, "RA", ack=syn.seq + 1)
    wait_state(one, CLOSE)


@scenario(received("client", "bad_segment", "syn_sent"), on=PLAIN)
def refusal_without_ack(net):
    """a reset without ACK to a connection attempt, which ignores it"""
    one, syn, server, client = _connecting(net)
    forge(net.server, server, client, "R", seq=5)
    time.sleep(0.05)
    assert state(one) == SYN_SENT
    one.close()


@scenario(received("client", "bad_segment", "syn_sent"))
def refusal_with_bad_ack(net):
    """a reset that acknowledges what was never sent, to a connection attempt, which ignores it"""
    one, syn, server, client = _connecting(net)
    forge(net.server, server, client, "RA", ack=syn.seq + 1000)
    time.sleep(0.05)
    assert state(one) == SYN_SENT
    one.close()
