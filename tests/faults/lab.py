"""Nodes, agents, balancers, a service and load, on loopback of a network namespace of their own. All that is started here
is ended, by its id, when this process ends.
"""
import asyncio, atexit, base64, collections, hashlib, hmac, json, os, resource, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIKO = os.environ.get("PIKO", str(ROOT / "bin/piko"))
# The namespace is ours alone: so are its ports. Outgoing connections take others, see `enter`.
BASE = 40_000
SERVICE = BASE + 5
BAD_SERVICE = BASE + 6
CLIENTS, AGENTS = BASE + 1, BASE + 2
scratch = Path(tempfile.mkdtemp(prefix="piko-faults-"))
started = []


def enter():
    """Runs this program again in a network namespace of its own. Exits with a word where that is not permitted."""
    if os.environ.get("PIKO_FAULTS_NETNS"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 34900")
        return
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        print("skipped: network namespaces are not permitted here; run as root", file=sys.stderr)
        sys.exit(0)
    if not shutil.which(PIKO):
        print(f"there is no program at {PIKO}: make piko, or set PIKO", file=sys.stderr)
        sys.exit(1)
    os.environ["PIKO_FAULTS_NETNS"] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])


resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@atexit.register
def end():
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            # NGINX and HAProxy, when killed, leave their workers.
            process.terminate() if process.args[0] in ("nginx", "haproxy") else process.kill()
    for process in started:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    started.clear()


def start(name, *args):
    with open(scratch / f"{name}.log", "ab") as log:
        process = subprocess.Popen([str(arg) for arg in args], stdout=log, stderr=log)
    started.append(process)
    return process


def port(number, which):
    """Of node 1, 2, 3: proxy 0, upstream 1, admin 2, gossip 3, peer 4."""
    return BASE + number * 10 + which


def node(number, nodes=3, *more):
    at = lambda which: f"127.0.0.1:{port(number, which)}"
    join = ",".join(f"127.0.0.1:{port(other, 3)}" for other in range(1, nodes + 1))
    flags = {"cluster.node-id-prefix": f"n{number}-", "proxy.bind-addr": at(0), "upstream.bind-addr": at(1), "admin.bind-addr": at(2),
             "cluster.gossip.bind-addr": at(3), "cluster.peer.bind-addr": at(4), "cluster.join": join,
             "cluster.abort-if-join-fails": "false", "proxy.access-log.disable": "true"}
    return start(f"node{number}", PIKO, "server", *(f"--{name}={value}" for name, value in flags.items()), *more)


def agent(name, to, service=SERVICE, endpoint="e", *more):
    return start(name, PIKO, "agent", f"--endpoints={endpoint}/127.0.0.1:{service}", f"--connect.url=http://127.0.0.1:{to}",
                 "--access-log.disable=true", *more)


def service(number=SERVICE, mode="ok"):
    return start("service", sys.executable, __file__, number, mode)


def token(key, claims):
    """Signed with HS256 (RFC 7515)."""
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return signed + "." + part(hmac.digest(key.encode(), signed.encode(), "sha256"))


def nginx(servers, agents=(), listen=CLIENTS):
    """Before nodes or services; with the usual passive check of one failure a second."""
    upstream = lambda ports: " ".join(f"server 127.0.0.1:{number} max_fails=1 fail_timeout=1s;" for number in ports)
    server = lambda number, name, connection: f"""server {{ listen 127.0.0.1:{number}; client_max_body_size 0; location / {{ proxy_http_version 1.1;
        proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection {connection}; proxy_buffering off;
        proxy_request_buffering off; proxy_read_timeout {"10s" if not agents else "1h"}; proxy_pass http://{name}; }} }}"""
    folders = " ".join(f"{name}_temp_path {scratch}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    both = f"upstream u {{ {upstream(agents)} }} {server(AGENTS, 'u', 'upgrade')}" if agents else ""
    path = scratch / f"nginx-{listen}.conf"
    path.write_text(f"""worker_processes 1; daemon off; pid {scratch}/nginx-{listen}.pid; error_log {scratch}/nginx.err;
events {{ worker_connections 4096; }}
http {{ access_log off; {folders} map $http_upgrade $way {{ default upgrade; "" close; }}
upstream p {{ {upstream(servers)} }} {server(listen, 'p', '$way')} {both} }}""")
    return start("nginx", "nginx", "-c", path)


def haproxy(servers, listen=BASE + 3, maxconn=1_000, queue="1s"):
    """Before services; passive and active checks as its manual has them, and a second try of what was not sent."""
    lines = "\n".join(f"    server s{number} 127.0.0.1:{number} check inter 1s observe layer7 error-limit 5 on-error mark-down maxconn {maxconn}"
                      for number in servers)
    path = scratch / "haproxy.cfg"
    path.write_text(f"""global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 10s
    timeout queue {queue}
    retries 2
    option redispatch 1
listen p
    bind 127.0.0.1:{listen}
    balance leastconn
{lines}
""")
    return start("haproxy", "haproxy", "-db", "-f", path)


# The service -----------------------------------------------------------------------------------------


async def read_head(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    return lines[0].split(" "), {name.lower(): value.strip() for name, _, value in fields}


async def read_chunks(reader):
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def serve(reader, writer, mode, name):
    """`/slow/MS` answers late, `/stream/S` with events for so long, `/big/MIB` with so much; else `ok`. A WebSocket echoes."""
    try:
        while True:
            (_, path, _), fields = await read_head(reader)
            if length := int(fields.get("content-length", 0)):
                await reader.readexactly(length)
            elif "chunked" in fields.get("transfer-encoding", ""):
                await read_chunks(reader)
            if mode == "hang":
                await asyncio.sleep(3600)
            if fields.get("upgrade", "").lower() == "websocket":
                return await echo(reader, writer, fields["sec-websocket-key"])
            word, _, value = path[1:].partition("/")
            if word == "slow":
                await asyncio.sleep(int(value) / 1000)
            if word == "stream":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                until = time.time() + float(value)
                while time.time() < until:
                    writer.write(b"9\r\ndata: x\n\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.1)
                writer.write(b"0\r\n\r\n")
            elif word == "big":
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {int(value) << 20}\r\n\r\n".encode())
                for _ in range(int(value) << 4):
                    writer.write(bytes(1 << 16))
                    await writer.drain()
            else:
                status = "500 x" if mode == "500" else "200 OK"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def echo(reader, writer, key):
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    writer.write(f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
    while frame := await reader.read(4096):
        # One short frame, masked by zeros: sent back unmasked.
        length = frame[1] & 127
        writer.write(bytes([frame[0], length]) + frame[6:6 + length])
        await writer.drain()
        if frame[0] & 15 == 8:
            return


# What is looked at ----------------------------------------------------------------------------------


async def get(number, path, limit=5, address="127.0.0.1"):
    async with asyncio.timeout(limit):
        reader, writer = await asyncio.open_connection(address, number)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
    return int(head.split()[1]), body


async def until(what, check, limit=40):
    """Seconds until it is so."""
    begun = time.time()
    while time.time() - begun < limit:
        try:
            if await check():
                return time.time() - begun
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError, IndexError):
            pass
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {limit} s: {what}; logs in {scratch}")


async def ready(number):
    return (await get(port(number, 2), "/ready", 2))[0] == 200


async def active(number):
    nodes = json.loads((await get(port(number, 2), "/status/cluster/nodes"))[1])
    return sum(one["status"] == "active" for one in nodes)


async def metric(number, name):
    lines = (await get(port(number, 2), "/metrics"))[1].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


async def cluster(count=3, *more):
    nodes = {number: node(number, count, *more) for number in range(1, count + 1)}
    for number in nodes:
        await until(f"node {number} is ready", lambda: ready(number))
    await until("all are active", lambda: all_active(nodes))
    return nodes


async def all_active(nodes):
    return all([await active(number) == len(nodes) for number in nodes])


async def serving(numbers, endpoint="e"):
    """Each of these ports answers 200 for the endpoint."""
    from load import Connection
    for number in numbers:
        async def answers():
            one = Connection(number)
            try:
                return (await one.ask(endpoint, limit=3))[0] == 200
            finally:
                one.close()
        await until(f"{endpoint} is served at {number}", answers)


def rss(process):
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def threads(process):
    return len(os.listdir(f"/proc/{process.pid}/task"))


if __name__ == "__main__":
    async def main():
        number, mode = int(sys.argv[1]), sys.argv[2]
        one = lambda reader, writer: serve(reader, writer, mode, str(number))
        async with await asyncio.start_server(one, "127.0.0.1", number, backlog=4096) as server:
            await server.serve_forever()
    asyncio.run(main())
