"""A server of Flask, run as `opentelemetry-instrument python server_flask.py PORT`."""

import json
import socket
import struct
import sys
import time

from flask import Flask, request
from werkzeug.serving import WSGIRequestHandler, make_server

app = Flask(__name__)


@app.get("/fast")
def fast():
    return "ok"


@app.get("/slow")
def slow():
    time.sleep(0.4)
    return "ok"


@app.post("/ignore")
def ignore():
    return "not wanted", 413, {"connection": "close"}


@app.get("/abort")
def abort():
    connection = request.environ["werkzeug.socket"]

    def body():
        yield "x" * 1000
        time.sleep(0.1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise RuntimeError("no more")

    return body()


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"


server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=Handler)
print(json.dumps({"ready": True}), flush=True)
server.serve_forever()
