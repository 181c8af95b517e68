"""The list of scenarios: each is a function that makes resets, with the records that are due for them beside it."""

PLAIN = ("v4", "v6")
EVERYWHERE = ("v4", "v6", "mapped", "lo4", "lo6")
THREE = ("v4", "v6", "mapped")

SCENARIOS = {}


def sent(host, cause, origin, state=None, times=1, **facts):
    """A record that is due for a reset that the host sent. `|` parts alternatives that are all true; a state of None is
    not judged, because there is no connection to have one. Facts are attributes tcp.connection.*."""
    return _due("transmit", host, cause, origin, state, times, facts)


def received(host, cause, state=None, times=1, **facts):
    """A record that is due for a reset that reached the host."""
    return _due("receive", host, cause, "peer", state, times, facts)


def _due(direction, host, cause, origin, state, times, facts):
    named = {f"tcp.connection.{name}": value for name, value in facts.items()}
    return {"direction": direction, "host": host, "cause": cause, "origin": origin, "state": state, "times": times, "facts": named}


def scenario(*due, on=PLAIN, routed=False, own_machine=False):
    """Enters a function into the list, under its own name; its documentation is what the table says. Nothing due: no
    reset may appear on the wire, and no record. routed: a router stands between. own_machine: it changes what the
    whole machine shares, and so runs in a virtual machine only."""

    def enter(act):
        SCENARIOS[act.__name__] = {
            "act": act,
            "group": act.__module__,
            "what": " ".join(act.__doc__.split()),
            "due": list(due),
            "on": list(on),
            "routed": routed,
            "own_machine": own_machine,
        }
        return act

    return enter
