"""Segments that fit no connection, and segments that no state accepts."""

from hosts import CLOSE, Process, port, until, wait_state
from scenario import EVERYWHERE, THREE, received, scenario, sent
from segments import OPTION_MSS, Ghost, Sniffer, forge

UNKNOWN = sent("server", "unknown_connection", "passive")
UNMATCHED = received("client", "unmatched_reset")
PORT = 4001  # of the client, which has no connection there


def _to_closed_port(net, flags, data=b""):
    """From the client's own address, so that the answer meets a host that owns no such connection."""
    to = (net.target, net.closed_port())
    forge(net.client, (net.client.address[net.version], PORT), to, flags, seq=100, ack=200, data=data)
    until(lambda: net.server.resets_sent(), "the server has answered")


@scenario(UNKNOWN, UNMATCHED, on=EVERYWHERE)
def ack_to_closed_port(net):
    """an ACK to a port that nobody listens on"""
    _to_closed_port(net, "A")


@scenario(UNKNOWN, UNMATCHED)
def data_to_closed_port(net):
    """data to a port that nobody listens on"""
    _to_closed_port(net, "PA", data=b"hello")


@scenario(UNKNOWN, UNMATCHED)
def fin_to_closed_port(net):
    """a FIN to a port that nobody listens on"""
    _to_closed_port(net, "FA")


@scenario(UNKNOWN, UNMATCHED)
def syn_ack_to_closed_port(net):
    """a SYN-ACK that nobody asked for"""
    _to_closed_port(net, "SA")


@scenario(UNKNOWN, UNMATCHED)
def no_flags_to_closed_port(net):
    """a segment without any flag, as a scanner sends it"""
    _to_closed_port(net, "")


@scenario(UNKNOWN)
def ack_from_ghost_to_closed_port(net):
    """an ACK made by hand, from an address behind the client"""
    ghost = Ghost(net, net.closed_port())
    ghost.send("A", ack=5)
    ghost.expect("R")


@scenario(sent("server", "unknown_connection", "passive", "listen"), UNMATCHED, on=EVERYWHERE)
def ack_to_listener(net):
    """an ACK to a listener that knows no such connection"""
    with net.listen() as listener:
        to = (net.target, port(listener))
        forge(net.client, (net.client.address[net.version], PORT), to, "A", seq=100, ack=200)
        until(lambda: net.server.resets_sent(), "the listener has answered")


@scenario(sent("server", "unknown_connection", "passive", "listen"))
def syn_ack_to_listener(net):
    """a SYN-ACK to a listener"""
    with net.listen() as listener:
        ghost = Ghost(net, port(listener))
        ghost.send("SA", ack=5)
        ghost.expect("R")


@scenario(sent("server", "unknown_connection|bad_segment", "passive", "listen|syn_received"))
def bad_ack_in_handshake(net):
    """the last ACK of a handshake acknowledges what was never sent"""
    with net.listen() as listener:
        ghost = Ghost(net, port(listener))
        ghost.half_open()
        ghost.send("A", ack=ghost.ack + 1000)
        ghost.expect("R")


@scenario(UNKNOWN, received("client", "reset_by_peer", "established"), on=THREE)
def half_open(net):
    """the server's process died unheard, and nobody listens any more; the client sends data"""
    client = _half_open(net)
    client.send(b"hello")
    wait_state(client, CLOSE)


@scenario(sent("server", "unknown_connection", "passive", "listen"), received("client", "reset_by_peer", "established"), on=THREE)
def half_open_restarted(net):
    """the server's process died unheard and was started again; the client sends data"""
    client = _half_open(net)
    with net.listen(port=client.getpeername()[1]):
        client.send(b"hello")
        wait_state(client, CLOSE)


def _half_open(net):
    """A client whose server has forgotten it: what the server's end said at its death was lost on its way."""
    net.server.sysctl("net.ipv4.tcp_orphan_retries", 1)
    listener = net.listen()

    def serve(ready):
        accepted, _ = listener.accept()
        ready()
        accepted.recv(1)

    process = Process(serve)
    client = net.connect(port(listener))
    listener.close()
    process.wait_ready()
    net.client.nft("tcp flags & fin == fin drop")
    process.kill()
    left = lambda: net.server.run("ss", "-Htan", "sport", "=", f":{client.getpeername()[1]}")
    until(lambda: not left().strip(), "the server's end is forgotten")
    return client


def _unanswered(net):
    """A connection attempt of the client that the server does not answer, and the client's SYN."""
    net.server.nft("tcp flags & (syn|rst) == syn drop", "tcp flags & (syn|ack|rst) == (syn|ack) drop")
    sniffer = Sniffer(net.client)
    one = net.begin_connect(net.closed_port())
    return one, sniffer.expect("S"), sniffer


def _from_server(net, syn, flags, **fields):
    """A segment from the server's address and port to the client that sent this SYN."""
    own = (net.client.address[net.version], syn.source_port)
    forge(net.server, (net.target, syn.port), own, flags, **fields)


BAD_ANSWER = (sent("client", "bad_segment", "passive", "syn_sent"), received("server", "unmatched_reset"))


@scenario(*BAD_ANSWER, on=THREE)
def syn_ack_with_bad_ack(net):
    """a SYN-ACK that acknowledges what was never sent"""
    one, syn, sniffer = _unanswered(net)
    _from_server(net, syn, "SA", seq=7, ack=syn.seq + 1000, options=OPTION_MSS)
    sniffer.expect("R")
    one.close()


@scenario(*BAD_ANSWER)
def syn_ack_with_bad_timestamp(net):
    """a SYN-ACK that echoes a timestamp which was never sent (PAWS)"""
    one, syn, sniffer = _unanswered(net)
    stamp = b"\x08\x0a" + (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
    _from_server(net, syn, "SA", seq=7, ack=syn.seq + 1, options=OPTION_MSS + stamp)
    sniffer.expect("R")
    one.close()


@scenario(sent("client", "bad_segment", "passive", "syn_received"), received("server", "unmatched_reset"))
def bad_ack_in_simultaneous_open(net):
    """both ends open at once, and then an ACK of what was never sent"""
    one, syn, sniffer = _unanswered(net)
    _from_server(net, syn, "S", seq=7, options=OPTION_MSS)
    sniffer.expect("SA")
    _from_server(net, syn, "A", seq=8, ack=syn.seq + 1000)
    sniffer.expect("R")
    net.client.mute()  # it takes itself for connected, and would say goodbye
    one.close()
