"""A server of FastAPI, run as `opentelemetry-instrument python server_fastapi.py PORT`."""

import asyncio
import json
import sys

import uvicorn
from fastapi import FastAPI, Response

app = FastAPI()


@app.get("/fast")
async def fast():
    return "ok"


@app.get("/slow")
async def slow():
    await asyncio.sleep(0.4)
    return "ok"


@app.post("/ignore")
async def ignore():
    return Response("not wanted", 413, {"connection": "close"})


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(json.dumps({"ready": True}), flush=True)


Server(uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")).run()
