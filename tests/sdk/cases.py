"""What a client does to an instrumented server, whatever they speak: `Call` is one connection of peer.py or peer_grpc.py.

A call that is reset tells of the requests that are open on it, and of none where all have been answered.
"""

import sys
import time

# Slow answers take 0.4 s.
IN_TIME = 0.25


def at_work(make):
    """A call that the server has worked on for a tenth of a second; a busy machine may take a few tries for that."""
    for _ in range(20):
        call = make()
        sent = time.monotonic()
        time.sleep(0.1)
        if time.monotonic() - sent < IN_TIME:
            return call
        call.end()
    sys.exit("this machine is too busy")


def asking(Call, port, case, times=1):
    """A call with so many requests under way that the server takes its time for."""
    call = Call(port, case)
    for _ in range(times):
        call.send("slow")
    return call


def client_aborts(Call, port, case):
    at_work(lambda: asking(Call, port, case)).reset()


def third_of_five(Call, port, case):
    def make():
        call = Call(port, case)
        for _ in range(2):
            call.ask("fast")
            time.sleep(0.02)
        call.send("slow")
        return call

    at_work(make).reset()
    rest = Call(port, case)
    for _ in range(2):
        rest.ask("fast")
    rest.socket.close()


def one_of_eight(Call, port, case):
    calls = [Call(port, case) for _ in range(7)]
    for call in calls:
        call.send("slow")
    at_work(lambda: asking(Call, port, case)).reset()
    for call in calls:
        call.end()


def control_complete(Call, port, case):
    call = Call(port, case)
    call.ask("fast")
    time.sleep(0.02)
    call.reset()


def control_idle(Call, port, case):
    call = Call(port, case)
    call.ask("fast")
    time.sleep(0.3)
    call.reset()


def control_no_request(Call, port, case):
    call = Call(port, case)
    time.sleep(0.05)
    call.reset()


def play(own, Call, port, names):
    """Does the cases by name, a peer's own or those of all, one after the other."""
    for name in names:
        if name in own:
            own[name](port, name)
        else:
            globals()[name](Call, port, name)
        time.sleep(0.3)
