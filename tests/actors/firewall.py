"""Resets that netfilter sends."""

import shutil

from hosts import CLOSE, DEVICE, Skip, port, wait_state
from refused import REFUSED, _refused
from scenario import EVERYWHERE, THREE, received, scenario, sent

LOST = received("client", "reset_by_peer", "established")
REJECT = "reject with tcp reset"


def _rejected(host):
    return sent(host, "firewall_reject", "firewall")


@scenario(_rejected("server"), REFUSED, on=EVERYWHERE)
def rejected_input(net):
    """nft rejects a connection where it arrives"""
    net.server.nft(f"tcp dport 8080 {REJECT}")
    with net.listen(port=8080):
        _refused(net, 8080)


@scenario(_rejected("server"), LOST, on=THREE)
def rejected_in_connection(net):
    """nft rejects data of a connection that stands"""
    client, server = net.pair()
    net.server.nft(f"tcp dport {port(server)} {REJECT}")
    client.send(b"hello")
    wait_state(client, CLOSE)
    net.server.mute()


@scenario(_rejected("client"), REFUSED)
def rejected_output(net):
    """nft rejects a connection where it leaves"""
    net.client.nft(f"tcp dport 8080 {REJECT}", hook="output")
    with net.listen(port=8080):
        _refused(net, 8080)


@scenario(_rejected("router"), REFUSED, routed=True)
def rejected_forward(net):
    """nft on a router rejects a connection"""
    net.router.nft(f"tcp dport 8080 {REJECT}", hook="forward")
    with net.listen(port=8080):
        _refused(net, 8080)


@scenario(_rejected("router"), LOST, routed=True)
def rejected_forward_in_connection(net):
    """nft on a router rejects data of a connection that stands"""
    client, server = net.pair()
    net.router.nft(f"tcp dport {port(server)} {REJECT}", hook="forward")
    client.send(b"hello")
    wait_state(client, CLOSE)
    net.server.mute()


def _behind_bridge(net):
    """The server's address is a bridge's, which computes checksums before its port queues the segment again."""
    host = net.server
    try:
        host.run("ip", "link", "add", "br0", "type", "bridge")
    except RuntimeError as error:
        raise Skip(str(error)) from error
    host.compute_checksums("br0")
    addresses = [net.server.address[4] + "/24", net.server.address[6] + "/64"]
    host.run("ip", "address", "flush", "dev", DEVICE)
    host.run("ip", "link", "set", DEVICE, "master", "br0")
    host.run("ip", "link", "set", "br0", "up")
    for address in addresses:
        host.run("ip", "address", "add", address, "dev", "br0", *(["nodad"] if ":" in address else []))


@scenario(sent("server", "port_closed", "passive"), REFUSED)
def closed_port_behind_bridge(net):
    """a closed port behind a bridge that computes checksums itself: no firewall sent that reset"""
    _behind_bridge(net)
    _refused(net, net.closed_port())


@scenario(_rejected("server"), REFUSED)
def rejected_behind_bridge(net):
    """nft rejects a connection behind such a bridge: one record for both devices"""
    _behind_bridge(net)
    net.server.nft(f"tcp dport 8080 {REJECT}")
    with net.listen(port=8080):
        _refused(net, 8080)


@scenario(_rejected("server"), REFUSED)
def rejected_by_iptables(net):
    """iptables rejects a connection where it arrives"""
    command = "iptables" if net.version == 4 else "ip6tables"
    if not shutil.which(command):
        raise Skip(f"{command} is not installed")
    try:
        net.server.run(command, *"-A INPUT -p tcp --dport 8080 -j REJECT --reject-with tcp-reset".split())
    except RuntimeError as error:
        raise Skip(str(error)) from error
    with net.listen(port=8080):
        _refused(net, 8080)


@scenario(_rejected("server"), REFUSED)
def rejected_at_device(net):
    """nft rejects a connection at the device's ingress hook"""
    family = "ip" if net.version == 4 else "ip6"
    chain = f"table netdev t {{\n chain c {{\n type filter hook ingress device {DEVICE} priority 0\n meta protocol {family} tcp dport 8080 {REJECT}\n }}\n}}\n"
    try:
        net.server.run("nft", "-f", "-", text=chain)
    except RuntimeError as error:
        raise Skip(str(error)) from error
    with net.listen(port=8080):
        _refused(net, 8080)
