"""socket.io (Node.js) by its own client: long polling alone, WebSocket alone, polling that is upgraded"""

import json

from common import sh, step

KIND = "http"
NEEDS = ["node", "npm"]

SERVER = r'''
const io = new (require("socket.io").Server)(Number(process.argv[1]), {pingInterval: 1000, maxHttpBufferSize: 1e8});
io.on("connection", socket => {
  socket.on("echo", (value, done) => done(value));
  socket.on("many", n => { for (let i = 0; i < n; i++) socket.emit("one", i); });
  socket.join("room"); socket.on("say", text => io.to("room").emit("said", text));
});
'''
CLIENT = r'''
const [url, transports, binary] = [process.argv[1], JSON.parse(process.argv[2]), Number(process.argv[3])];
const socket = require("socket.io-client").io(url, {transports, reconnection: false, timeout: 15000});
const out = {};
socket.on("connect_error", e => { console.log(JSON.stringify({error: String(e.description && e.description.message || e.message)})); process.exit(1); });
socket.on("connect", async () => {
  const echo = value => new Promise(done => socket.emit("echo", value, done));
  out.text = await echo({a: [1, "ü"]});
  const bytes = await echo(Buffer.alloc(binary, 7)); out.bytes = Buffer.from(bytes).length;
  let got = 0; const all = new Promise(done => socket.on("one", () => { if (++got == 500) done(); }));
  socket.emit("many", 500); await all; out.many = got;
  const said = new Promise(done => socket.once("said", done)); socket.emit("say", "hello"); out.said = await said;
  // Silence, for some rounds of ping and pong.
  await new Promise(done => setTimeout(done, 2500));
  out.still = socket.connected; out.ends = socket.io.engine.transport.name;
  console.log(JSON.stringify(out)); socket.close(); process.exit(0);
});
'''


def start(work, port):
    yield ["node", "-e", SERVER, port]


def client(way, *transports):
    return json.loads(sh(["node", "-e", CLIENT, way.url(""), json.dumps(transports), "300000"], ok=False).splitlines()[-1])


@step
def polling(way):
    return client(way, "polling")


@step
def websocket(way):
    return client(way, "websocket")


@step
def polling_that_is_upgraded(way):
    return client(way, "polling", "websocket")
