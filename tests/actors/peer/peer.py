"""One end of connections, in Python: owners.py describes the protocol.

peer.py serve ADDRESS PORT | fork ... | prefork ... | threads ... | connect ADDRESS PORT | fd NUMBER
"""

import os
import socket
import struct
import sys
import threading

PREFORKED = 3


def hold(connection):
    """Says whose it is, and does what the other end asks."""
    try:
        lines = connection.makefile("rb")
        lines.readline()
        connection.sendall(b"%d\n" % os.getpid())
        if lines.readline() == b"reset\n":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    connection.close()


def listen(address, port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, int(port)))
    listener.listen(128)
    return listener


def accept(listener, use):
    while True:
        connection, _ = listener.accept()
        use(connection)


def in_child(connection):
    """The parent accepts, the child serves; the parent's copy is closed at once."""
    if os.fork() == 0:
        hold(connection)
        os._exit(0)
    connection.close()


def in_thread(connection):
    threading.Thread(target=hold, args=[connection], daemon=True).start()


def main(mode, *rest):
    if mode == "fd":
        hold(socket.socket(fileno=int(rest[0])))
    elif mode == "connect":
        hold(socket.create_connection((rest[0], int(rest[1]))))
    else:
        listener = listen(*rest)
        if mode == "prefork":
            for _ in range(PREFORKED):
                if os.fork() == 0:
                    break
            else:
                os.wait()
        accept(listener, {"serve": hold, "prefork": hold, "fork": in_child, "threads": in_thread}[mode])


main(*sys.argv[1:])
