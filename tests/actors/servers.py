"""Real servers: nginx, redis and Python's http.server."""

import os
import shutil
import signal
import sys
import tempfile
import time

from hosts import CLOSE, CLOSE_WAIT, Skip, linger, until, wait_state
from scenario import EVERYWHERE, THREE, received, scenario, sent

LOST = received("client", "reset_by_peer", "established")
NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log; user root;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 80; listen [::]:80;
    lingering_close off; lingering_timeout 300ms; reset_timedout_connection on; client_max_body_size 1k; client_header_timeout 1s;
    location /444 {{ return 444; }}
    location /slow {{ root {directory}; limit_rate 1k; }}
    location /gone {{ proxy_pass http://{upstream}:9; }}
    location / {{ root {directory}; }}
  }}
}}
"""
BODY = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 60000\r\n\r\n" + bytes(60000)


class Server:
    """A server program that is ready once its port answers."""

    def __init__(self, net, to_port, *command):
        if not shutil.which(command[0]):
            raise Skip(f"{command[0]} is not installed")
        net.server.enter()
        self.process = net.server.start(*command, stdout=sys.stderr, start_new_session=True)
        until(lambda: self._answers(net, to_port), f"{command[0]} answers")

    def _answers(self, net, to_port):
        if self.process.poll() is not None:
            raise RuntimeError("the server ended early")
        return net.server.run("ss", "-Htln", "sport", "=", f":{to_port}").strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Nginx(Server):
    """nginx with one worker."""

    def __init__(self, net):
        self.directory = tempfile.TemporaryDirectory()
        path = self.directory.name
        upstream = "127.0.0.1" if net.version == 4 else "[::1]"
        with open(f"{path}/nginx.conf", "w") as handle:
            handle.write(NGINX.format(directory=path, upstream=upstream))
        os.mkdir(f"{path}/slow")
        with open(f"{path}/slow/file", "wb") as handle:
            handle.write(bytes(100_000))
        super().__init__(net, 80, "nginx", "-p", path, "-e", f"{path}/error.log", "-c", f"{path}/nginx.conf")
        self.worker = until(self._worker, "nginx has a worker")

    def _worker(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as handle:
            children = handle.read().split()
        return int(children[0]) if children else 0

    def __exit__(self, *anything):
        super().__exit__(*anything)
        self.directory.cleanup()


def _redis(net):
    bind = net.target
    return Server(net, 6379, "redis-server", "--port", "6379", "--save", "", "--bind", bind, "--protected-mode", "no")


def _http_server(net):
    command = [sys.executable, "-u", "-m", "http.server", "8000", "--bind", net.target, "--directory", "/usr/share"]
    return Server(net, 8000, *command)


def _ended(client):
    """Until the connection is gone, everything that comes before that read."""
    try:
        while client.recv(65536):
            pass
    except OSError:
        pass
    wait_state(client, CLOSE)


@scenario(sent("server", "linger_zero", "active", "established"), LOST, on=EVERYWHERE)
def nginx_444(net):
    """nginx: return 444 under reset_timedout_connection"""
    with Nginx(net):
        client = net.connect(80)
        client.send(b"GET /444 HTTP/1.1\r\nHost: s\r\n\r\n")
        _ended(client)


@scenario(sent("server", "linger_zero", "active", "established"), LOST)
def nginx_body_does_not_come(net):
    """nginx: a body over the limit is answered 413, and then does not come (reset_timedout_connection)"""
    with Nginx(net):
        client = net.connect(80)
        client.send(BODY[: BODY.index(bytes(1))])
        _ended(client)


@scenario(sent("server", "process_killed", "active", "established"), LOST)
def nginx_worker_killed(net):
    """nginx: the worker is killed before it has read a request"""
    with Nginx(net) as nginx:
        client = net.connect(80)
        client.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.1)  # the worker has accepted
        os.kill(nginx.worker, signal.SIGSTOP)
        client.send(b"Host: s\r\n\r\n")
        time.sleep(0.05)
        os.kill(nginx.worker, signal.SIGKILL)
        _ended(client)


@scenario(sent("client", "linger_zero", "active", "established"), received("server", "reset_by_peer", "established"), on=THREE)
def nginx_client_aborts(net):
    """nginx: the client aborts in the middle of the answer"""
    with Nginx(net):
        client = net.connect(80)
        client.send(b"GET /slow/file HTTP/1.1\r\nHost: s\r\n\r\n")
        client.recv(200)
        while True:  # nothing may lie unread: that would be another cause
            client.setblocking(False)
            try:
                client.recv(65536)
            except BlockingIOError:
                break
        linger(client)
        client.close()
        time.sleep(0.05)


@scenario(
    sent("server", "port_closed", "passive"),
    received("server", "refused_by_peer", "syn_sent"),
)
def nginx_upstream_refuses(net):
    """nginx: the upstream's port is closed, on loopback"""
    with Nginx(net):
        client = net.connect(80)
        client.send(b"GET /gone HTTP/1.0\r\nHost: s\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
        assert b" 502 " in answer, answer
        client.close()


AFTER_CLOSE = (
    sent("server", "data_after_close", "passive", "fin_wait_2|time_wait"),
    received("client", "reset_by_peer", "close_wait"),
)


def _ping(client):
    client.send(b"PING\r\n")
    assert client.recv(64) == b"+PONG\r\n"


@scenario(*AFTER_CLOSE)
def redis_client_kill(net):
    """redis: CLIENT KILL, and the client sends a command all the same"""
    with _redis(net):
        client, admin = net.connect(6379), net.connect(6379)
        _ping(client)
        host, own_port = client.getsockname()[:2]
        name = f"{host}:{own_port}" if net.version == 4 else f"[{host}]:{own_port}"
        admin.send(f"CLIENT KILL {name}\r\n".encode())
        assert admin.recv(64) == b"+OK\r\n"
        wait_state(client, CLOSE_WAIT)
        client.send(b"PING\r\n")
        _ended(client)
        admin.close()


@scenario(sent("server", "process_killed", "active", "established"), LOST)
def redis_killed(net):
    """redis: kill -9 before a command was read"""
    with _redis(net) as redis:
        client = net.connect(6379)
        _ping(client)
        os.kill(redis.process.pid, signal.SIGSTOP)
        client.send(b"PING\r\n")
        time.sleep(0.05)
        os.kill(redis.process.pid, signal.SIGKILL)
        _ended(client)


@scenario(*AFTER_CLOSE)
def redis_shutdown(net):
    """redis: SHUTDOWN with another client connected, which then sends a command"""
    with _redis(net) as redis:
        client, admin = net.connect(6379), net.connect(6379)
        _ping(client)
        admin.send(b"SHUTDOWN NOSAVE\r\n")
        redis.process.wait()
        wait_state(client, CLOSE_WAIT)
        client.send(b"PING\r\n")
        _ended(client)
        admin.close()


@scenario(sent("server", "closed_with_unread_data", "active", "fin_wait_1|fin_wait_2"), received("client", "reset_by_peer", "close_wait"))
def http_server_leaves_body_unread(net):
    """Python's http.server: POST is answered 501 and its body is not read"""
    with _http_server(net):
        client = net.connect(8000)
        client.sendall(BODY)
        _ended(client)


@scenario(
    sent("client", "linger_zero", "active", "established"),
    received("server", "reset_by_peer", "established"),
)
def http_server_client_aborts(net):
    """Python's http.server: the client aborts instead of sending its request"""
    with _http_server(net):
        client = net.connect(8000)
        client.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.1)
        linger(client)
        client.close()
        time.sleep(0.05)
