"""The payment service. Its fault: it closes the connection on a cart that is too large, without reading it."""

import socket

LIMIT = 64 * 1024


def serve(connection: socket.socket) -> None:
    """Answers one request."""
    head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
    length = int(next((line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0))
    if length > LIMIT:
        # The fault: the body still comes. close() with it unread makes the kernel send a reset, and what was on its way is
        # lost. The fix: read to the end, then answer 413.
        return
    while len(body) < length:
        chunk = connection.recv(65536)
        if not chunk:
            return
        body += chunk
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\npaid\n")


with socket.create_server(("127.0.0.1", 8001)) as listener:
    while True:
        accepted, _ = listener.accept()
        with accepted:
            serve(accepted)
