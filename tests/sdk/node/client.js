// A client, run as `node --require @opentelemetry/auto-instrumentations-node/register client.js http|fetch PORT
// REFUSED_PORT CASE...`.
const http = require("node:http");
const net = require("node:net");
const { setTimeout: sleep } = require("node:timers/promises");

const [library, port, refusedPort, ...cases] = process.argv.slice(2);
const base = `http://127.0.0.1:${port}`;

function callHttp(url, { body, abortAfter } = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method: body ? "POST" : "GET", agent: callHttp.agent }, (answer) => {
      answer.on("error", reject).on("end", resolve).on("aborted", reject).resume();
    });
    request.on("error", reject).end(body);
    if (abortAfter) setTimeout(() => request.destroy(), abortAfter);
  });
}

async function callFetch(url, { body, abortAfter } = {}) {
  const signal = abortAfter ? AbortSignal.timeout(abortAfter) : undefined;
  const answer = await fetch(url, { method: body ? "POST" : "GET", body, signal });
  await answer.arrayBuffer();
}

async function attempt(url, options) {
  try {
    await (library === "http" ? callHttp : callFetch)(url, options);
  } catch (error) {
    console.error(error?.cause ?? error);
  }
}

const acts = {
  connection_refused: () => attempt(`http://127.0.0.1:${refusedPort}/refused`),
  unread: () => attempt(`${base}/unread`, { body: "x".repeat(4_000_000) }),
  drip: () => attempt(`${base}/drip`, { abortAfter: 100 }),
  third_of_five: async () => {
    for (const path of ["fast", "fast", "before/third", "fast", "fast"]) await attempt(`${base}/${path}`);
  },
  one_of_eight: () =>
    Promise.all([...Array(7).fill("slow"), "later/eight"].map((path) => attempt(`${base}/${path}`))),
  // A connection in no span, while another has one.
  outside: async () => {
    const other = attempt(`${base}/slow`);
    await new Promise((resolve) => {
      const socket = net.connect(Number(port), "127.0.0.1");
      socket.on("error", console.error).on("close", resolve);
      socket.write("GET /before/outside HTTP/1.1\r\nHost: localhost\r\n\r\n");
    });
    await other;
  },
};

(async () => {
  for (const name of cases) {
    callHttp.agent = new http.Agent({ keepAlive: true });
    await (acts[name] ? acts[name]() : attempt(`${base}/${name}`));
    await sleep(600);
    callHttp.agent.destroy();
  }
  await sleep(6000); // the SDK's batch
})();
