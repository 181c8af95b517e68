// One end of connections, in Node: the protocol is told in owners.py.
//
// peer.js serve ADDRESS PORT | connect ADDRESS PORT
"use strict";
const net = require("node:net");

function hold(connection) {
  connection.on("error", () => {});
  connection.on("data", (line) => {
    if (line.toString() === "who\n") connection.write(`${process.pid}\n`);
    else connection.resetAndDestroy();
  });
}

const [mode, host, port] = process.argv.slice(2);
if (mode === "serve") {
  net.createServer(hold).listen(Number(port), host);
} else {
  const connection = net.connect(Number(port), host, () => hold(connection));
}
