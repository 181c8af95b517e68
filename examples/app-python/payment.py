"""The payment service. Its fault: of a cart that is too large it reads the start, gives up and closes the connection."""

import socket

LIMIT = 64 * 1024


def serve(connection: socket.socket) -> None:
    """Answers one request."""
    head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
    lines = (line.split(b":") for line in head.lower().split(b"\r\n"))
    length = int(next((line[1] for line in lines if line[0] == b"content-length"), 0))
    while len(body) < min(length, LIMIT):
        chunk = connection.recv(4096)
        if not chunk:
            return
        body += chunk
    if length > LIMIT:
        # The fault: the rest still comes. close() with it unread makes the kernel send a reset, and what was on its way is
        # lost. The fix: read to the end, then answer 413.
        return
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\npaid\n")


with socket.create_server(("127.0.0.1", 8001)) as listener:
    while True:
        accepted, _ = listener.accept()
        with accepted:
            serve(accepted)
