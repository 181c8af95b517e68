"""Resets of several kinds on fixed ports, made anew for each line on standard input; a line says that they are made.

Each has ports of its own, so that a record tells which reset it is of.
"""

import socket
import struct
import sys
import time

REFUSED = [(socket.AF_INET, "127.0.0.1", 40001, 41001), (socket.AF_INET6, "::1", 40002, 41002)]
ABORTED = (socket.AF_INET, "127.0.0.2", 40003, 41003)
UNREAD = (socket.AF_INET6, "::1", 40004, 41004)
STALLED = (socket.AF_INET, "127.0.0.1", 40005, 41005)
# A rule of its own always keeps it: once its record is there, the others have been decided.
LAST = (socket.AF_INET, "127.0.0.1", 40099, 41099)

listeners = {}


def listen(family, address, _, port):
    listener = socket.create_server((address, port), family=family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listeners[port] = listener


def connect(family, address, own, port):
    client = socket.socket(family)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((address, own))
    try:
        client.connect((address, port))
    except ConnectionRefusedError:
        client.close()
        return None, None
    return client, listeners[port].accept()[0]


def abort(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def make():
    for closed in REFUSED:
        connect(*closed)
    client, server = connect(*ABORTED)
    client.sendall(b"12345")
    server.recv(5)
    server.sendall(b"123")
    client.recv(3)
    client.sendall(b"more")
    abort(client)
    server.close()
    client, server = connect(*UNREAD)
    client.sendall(b"never read")
    server.close()
    time.sleep(0.01)
    client.close()
    client, server = connect(*STALLED)
    client.setblocking(False)
    try:
        while True:
            client.send(b"x" * 65536)
    except BlockingIOError:
        pass
    abort(client)
    server.close()
    connect(*LAST)


for end in (ABORTED, UNREAD, STALLED):
    listen(*end)
for _ in sys.stdin:
    make()
    print("made", flush=True)
