"""The shop: its checkout sends the cart to the payment service."""

import flask
import requests

app = flask.Flask(__name__)


@app.post("/checkout/<int:size>")
def checkout(size: int):
    """Pays for a cart of so many bytes."""
    try:
        answer = requests.post("http://127.0.0.1:8001/pay", data=b"x" * size, timeout=10)
    except requests.ConnectionError as error:
        return f"payment failed: {error}\n", 502
    return f"payment said {answer.status_code}\n", 200 if answer.ok else 502


app.run(port=8000)
