// A server of node:http, run as `node --require @opentelemetry/auto-instrumentations-node/register server.js PORT`.
const http = require("node:http");

const routes = {
  "/fast": (request, response) => response.end("ok"),
  "/slow": (request, response) => setTimeout(() => response.end("ok"), 400),
  "/ignore": (request, response) => {
    response.writeHead(413, { connection: "close" }).end("not wanted");
    request.destroy();
  },
  "/abort": (request, response) => {
    response.writeHead(200, { "content-length": "100000" });
    response.write("x".repeat(1000));
    setTimeout(() => request.socket.resetAndDestroy(), 100);
  },
};

const server = http.createServer((request, response) => routes[request.url](request, response));
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log(JSON.stringify({ ready: true })));
