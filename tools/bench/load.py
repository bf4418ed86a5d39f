"""The load: wrk, h2load, curl, and what an idle connection costs."""
import base64, hashlib, re, select, socket, subprocess, sys, threading, time

from parts import HEADERS, PIKO, ROOT, free_port, get, rss, scratch, start, wait_for

UNIT = {"us": 1, "ms": 1e3, "s": 1e6}


def flags():
    return [f for name, value in HEADERS.items() for f in ("-H", f"{name}: {value}")]


class Load:
    """What wrk or h2load saw: requests, requests a second, latency in microseconds."""

    def __init__(self, requests, rate, p50=None, p99=None):
        self.requests, self.rate, self.p50, self.p99 = requests, rate, p50, p99


def wrk(port, seconds, connections=64, path="/", post=None, tls=False):
    """`post`: bytes of a body that each request sends."""
    args = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", *flags()]
    if post:
        script = scratch / f"post-{post}.lua"
        script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {post})\n')
        args += ["-s", script]
    out = subprocess.run([*args, f"{'https' if tls else 'http'}://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True).stdout
    errors = re.search(r"Socket errors:.*|Non-2xx.*", out)
    if errors:
        sys.exit(f"the load met errors: {errors[0]}")
    quantile = lambda q: (lambda m: float(m[1]) * UNIT[m[2]])(re.search(rf"{q}%\s+([\d.]+)(us|ms|s)", out))
    return Load(int(re.search(r"(\d+) requests in", out)[1]), float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), quantile(50), quantile(99))


def h2load(port, seconds, clients, streams):
    out = subprocess.run(["h2load", "-t1", f"-c{clients}", f"-m{streams}", f"-D{seconds}", *flags(), f"http://127.0.0.1:{port}/"],
                         capture_output=True, text=True, check=True).stdout
    done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", out)
    if not done or done[2] != "0" or done[3] != "0":
        sys.exit(f"h2load met errors:\n{out}")
    return Load(int(done[1]), float(re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", out)[1]))


class Busy:
    """So many processes that do nothing but compute, while the block runs."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(self.count)]

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()


def transfer(port, up, mib=256):
    """MiB/s with curl."""
    url = f"http://127.0.0.1:{port}"
    common = ["curl", "-sf", "-o", "/dev/null", *flags(), "-w", "%{time_total}"]
    if up:
        zeros = scratch / f"zeros-{mib}"
        if not zeros.exists():
            zeros.write_bytes(bytes(mib << 20))
        args = common + ["-H", "Expect:", "-T", str(zeros), "-X", "POST", url + "/"]
    else:
        args = common + [f"{url}/bytes/{mib << 20}"]
    return mib / float(subprocess.run(args, capture_output=True, text=True, check=True).stdout)


def plugin_us(chain):
    """p50 of a pooled call, microseconds."""
    out = subprocess.run([PIKO, "plugin", "bench", ROOT / "plugins/dist/path-router.wasm", "--chain", str(chain), "--live", "a", "--request", "GET /a/b",
                          "--config", "{routes: [{path: /a, endpoint: a, only_if_live: true}]}", "-H", "host: example.com"], capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"piko plugin bench: {out.stderr}")
    return float(re.search(r"^pooled\s+\d+\s+([\d.]+)", out.stdout, re.M)[1])


def loop_once(port):
    """Milliseconds until an endless loop in a plugin is cut and answered 503."""
    began = time.perf_counter()
    status, _ = get(port, headers={"x-piko-endpoint": "loop", "x-chaos": "loop"})
    took = (time.perf_counter() - began) * 1e3
    # A good request in between keeps the breaker closed, which would answer at once.
    good, _ = get(port, headers={"x-piko-endpoint": "loop", "x-api-key": "bench"})
    if (status, good) != (503, 200):
        sys.exit(f"a looping plugin answered {status}, and {good} when it did not loop")
    return took


def with_client(port, looping, pause, work):
    """Does the work while another client sends requests that loop, or as many that do not."""
    ended = threading.Event()

    def client():
        while not ended.is_set():
            if looping:
                loop_once(port)
            else:
                time.sleep(pause)
                get(port, headers={"x-piko-endpoint": "loop"})
                get(port, headers={"x-piko-endpoint": "loop"})

    thread = threading.Thread(target=client)
    thread.start()
    try:
        return work()
    finally:
        ended.set()
        thread.join()


REQUEST = "".join(f"{n}: {v}\r\n" for n, v in {"host": "bench", **HEADERS}.items())
KINDS = {
    "silent client": (None, None),
    "kept client": (f"GET / HTTP/1.1\r\n{REQUEST}\r\n", b"Hello, World!"),
    "WebSocket": (f"GET / HTTP/1.1\r\n{REQUEST}upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
                  f"sec-websocket-key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n", b"\r\n\r\n"),
}


def idle_kib(process, port, kind, count):
    """KiB of the process for each idle connection of that kind. The first batch also fills the allocator's spare
    pages; the second is what one more costs."""
    send, until = KINDS[kind]
    held, memory = [], []
    try:
        for _ in (1, 2):
            for _ in range(count):
                s = socket.create_connection(("127.0.0.1", port), 10)
                held.append(s)
                if send:
                    s.sendall(send.encode())
                    seen = b""
                    while until not in seen:
                        more = s.recv(4096)
                        if not more:
                            sys.exit(f"a {kind} was closed: {seen[:200]}")
                        seen += more
            time.sleep(2)
            memory.append(rss(process))
        watch = select.poll()
        for s in held:
            watch.register(s, select.POLLIN)
        if closed := len(watch.poll(0)):
            sys.exit(f"{closed} of {len(held)} idle connections ({kind}) were closed meanwhile")
    finally:
        for s in held:
            s.close()
    return (memory[1] - memory[0]) / count


def websocket_service():
    """Takes every upgrade and says nothing more. Returns its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    held = []

    def one(s):
        head = b""
        while b"\r\n\r\n" not in head:
            head += s.recv(4096)
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)[1]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        s.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: " + accept + b"\r\n\r\n")
        held.append(s)

    def serve():
        while True:
            s, _ = listener.accept()
            threading.Thread(target=one, args=(s,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def delayed(port, seconds):
    """A relay to the port that holds each byte for so long, each way. Returns its port; runs in a process of its own."""
    at = free_port()
    start(f"relay-{at}", sys.executable, ROOT / "tools/bench/relay.py", at, port, seconds)
    wait_for("the relay listens", lambda: socket.create_connection(("127.0.0.1", at), 1).close() is None)
    return at
