"""Plain programs over plain HTTP/1.1, and resets in the midst: requests, httpx and http.server of Python, nginx between.

    programs.py PORT PROXY_PORT DIRECTORY     PORT and PROXY_PORT are read; nginx keeps its files in DIRECTORY

The truth is printed as in exchanges.py: a line for each connection that was reset. The path says what the server does.
"""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import requests

from exchanges import abort, new_trace

TIMEOUT = 10
printing = threading.Lock()


def tell(name, client_port, server_port, trace, **ends):
    ends = ends or {"client": trace, "server": trace}
    with printing:
        print(json.dumps({"case": name, "client_port": client_port, "server_port": server_port, "ends": ends}), flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    client = "?"

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if "unread" not in self.path else b""
        name = f"{self.headers['User-Agent'].split('/')[0]} {self.path}"
        what = self.path.rsplit("/", 1)[-1]
        trace = self.headers.get("traceparent")
        if what == "abort":
            self.reset(name, trace)
        elif what == "middle":
            self.begin(100_000, b"x" * 1000)
            time.sleep(0.05)
            self.reset(name, trace)
        elif what == "unread":
            self.connection.close()
            self.close_connection = True
            tell(name, self.client_address[1], self.server.server_port, trace)
        elif what == "chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (b"some", body or b"more")))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.begin(5, b"whole")
            if what == "later":  # when the answer has been read
                time.sleep(0.1)
                self.reset(name, None)

    do_GET = do_POST = do_HEAD = answer

    def begin(self, length, body):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def reset(self, name, trace):
        self.close_connection = True
        # The files over it keep a socket open.
        connection = self.connection.dup()
        tell(name, self.client_address[1], self.server.server_port, trace)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    def finish(self):
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass

    def shutdown_request(self, request):
        request.close()


PATHS = ["/", "/chunks", "/abort", "/", "/", "/middle", "/chunks", "/later", "/", "/unread", "/"]


def call(session, port):
    """One session, so that connections are kept; a reset ends one and the next path begins another."""
    for path in PATHS:
        body = b"y" * 20_000 if path in ("/chunks", "/unread") else None
        headers = {"TraceParent": new_trace(), "User-Agent": f"{session.__module__.split('.')[0]}/1"}
        try:
            session.request("POST" if body else "GET", f"http://127.0.0.1:{port}{path}", headers=headers, data=body)
        except (requests.RequestException, httpx.HTTPError):
            pass
        time.sleep(0.2 if path == "/later" else 0)


NGINX = """
worker_processes 1; error_log {directory}/error.log; pid {directory}/nginx.pid; events {{}}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  upstream behind {{ server 127.0.0.1:{port}; keepalive 8; }}
  server {{ listen {proxy_port} deferred; location / {{
    proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_next_upstream off; proxy_buffering off;
  }} }}
}}
"""


def through_nginx(port, proxy_port, directory):
    """nginx is server and client at once: its upstream is reset, then its client goes away."""
    configuration = os.path.join(directory, "nginx.conf")
    with open(configuration, "w") as file:
        file.write("user root;" + NGINX.format(port=port, proxy_port=proxy_port, directory=directory))
    nginx = subprocess.Popen(["nginx", "-p", directory, "-c", configuration, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        wait_for(proxy_port)
        session = requests.Session()
        session.headers["User-Agent"] = "nginx"
        for path in ("/", "/chunks", "/abort", "/", "/middle", "/"):
            try:
                session.get(f"http://127.0.0.1:{proxy_port}{path}", headers={"traceparent": new_trace()}, timeout=TIMEOUT)
            except requests.RequestException:
                pass
        for read_first in (False, True):
            connection = socket.create_connection(("127.0.0.1", proxy_port))
            trace = new_trace()
            connection.sendall(f"GET /chunks HTTP/1.1\r\nHost: a\r\nUser-Agent: n\r\ntraceparent: {trace}\r\n".encode())
            if read_first:
                connection.sendall(b"\r\n")
                answer = b""
                while not answer.endswith(b"0\r\n\r\n"):
                    answer += connection.recv(10_000)
            own = connection.getsockname()[1]
            abort(connection)
            # Half a head was sent, or the whole answer was read.
            tell("client of nginx", own, proxy_port, None)
    finally:
        nginx.terminate()
        nginx.wait()


def wait_for(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise TimeoutError(port)


def main():
    port, proxy_port, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    call(requests.Session(), port)
    call(httpx.Client(), port)
    through_nginx(port, proxy_port, directory)


if __name__ == "__main__":
    main()
