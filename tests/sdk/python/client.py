"""A client, run as `opentelemetry-instrument python client.py requests|httpx PORT REFUSED_PORT CASE...`."""

import http.client
import sys
import threading
import time

library, port, refused_port, *cases = sys.argv[1:]
base, refused = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{refused_port}"

if library == "requests":
    import requests

    ERRORS = requests.RequestException
    session = requests.Session

    def open_stream(client, url):
        answer = client.get(url, stream=True)
        next(answer.iter_content(100))
        time.sleep(0.1)
        answer.close()
else:
    import httpx

    ERRORS = httpx.HTTPError
    session = httpx.Client

    def open_stream(client, url):
        with client.stream("GET", url) as answer:
            next(answer.iter_raw(100))
            time.sleep(0.1)


def attempt(act, *arguments, **named):
    try:
        act(*arguments, **named)
    except ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


def get(case):
    with session() as client:
        attempt(client.get, f"{base}/{case}")
        time.sleep(0.5)


def unread():
    with session() as client:
        attempt(client.post, f"{base}/unread", data=b"x" * 4_000_000) if library == "requests" else attempt(
            client.post, f"{base}/unread", content=b"x" * 4_000_000
        )


def drip():
    with session() as client:
        attempt(open_stream, client, f"{base}/drip")


def connection_refused():
    with session() as client:
        attempt(client.get, f"{refused}/refused")


def third_of_five():
    with session() as client:
        for path in ("fast", "fast", "before/third", "fast", "fast"):
            attempt(client.get, f"{base}/{path}")


def one_of_eight():
    paths = ["slow"] * 7 + ["later/eight"]
    calls = [threading.Thread(target=get, args=(path,)) for path in paths]
    for call in calls:
        call.start()
    for call in calls:
        call.join()


def outside():
    """No span is open here, while one is in another thread."""
    other = threading.Thread(target=get, args=("slow",))
    other.start()
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    connection.request("GET", "/before/outside")
    try:
        connection.getresponse()
    except OSError as error:
        print(error, file=sys.stderr)
    other.join()


for case in cases:
    act = globals().get(case)
    act() if act else get(case)
    time.sleep(0.3)
