#!/usr/bin/env python3
"""make bench: the same load, interleaved, against the service itself, a plain Pingora reverse proxy, NGINX -> NGINX,
one node and two nodes. Prints a report; `--write` puts it into docs/benchmarks.md, `--only PART,PART` runs some parts.

Everything runs on loopback, is bounded in time, and ends with this script.
"""
import argparse, os, re, resource, shutil, subprocess, sys, time
from pathlib import Path
from statistics import median

import load, overload, parts
from load import Busy, h2load, idle_kib, loop_once, plugin_us, transfer, with_client, wrk
from parts import PIKO, ROOT, Node, agent, cpu, free_port, get, nginx, rss, scratch, start, stop, wait_for
from report import Rounds, curve, table

LOOP_TIMEOUT_MS = 10
TWICE = "NGINX → NGINX"
CURVE = (1, 4, 16, 64, 256, 1024, 4096)


class Bench:
    def __init__(self, options):
        self.options = options
        self.targets, self.sections = [], []
        origin = self.origin_port = free_port()
        self.origin = start("origin", PIKO, "bench", "origin", "--bind", f"127.0.0.1:{origin}")
        plain = free_port()
        self.plain = start("plain", PIKO, "bench", "plain", "--bind", f"127.0.0.1:{plain}", "--service", f"127.0.0.1:{origin}")
        first, second = free_port(), free_port()
        nginx2 = nginx("nginx2", second, origin)
        nginx1 = nginx("nginx1", first, second)
        self.nginx = {"first": nginx1, "second": nginx2}
        self.nginx_second = second
        self.a = Node("node-a")
        self.b = Node("node-b", join=self.a)
        self.agent = agent("agent", self.a.upstream, f"bench/127.0.0.1:{origin}")
        # The same node and agent, with plugins on the way. The key is checked, a tenant set, the key stripped.
        key = {"name": "keys", "path": str(ROOT / "plugins/dist/api-key.wasm"), "endpoints": ["bench"], "config": {"keys": [{"key": "bench", "tenant": "t"}]}}
        # Another endpoint of that node has a plugin that loops when it is asked to.
        chaos = {"name": "chaos", "path": str(ROOT / "tests/plugins/chaos.wasm"), "endpoints": ["loop"], "timeout": f"{LOOP_TIMEOUT_MS}ms"}
        self.p = Node("node-p", config={"plugins": [key, chaos], "plugin_cache_dir": f"{scratch}/cache"})
        p_agent = agent("agent-p", self.p.upstream, f"bench/127.0.0.1:{origin}", f"loop/127.0.0.1:{origin}")
        #: Each path: its port, and the processes whose time counts.
        self.paths = {
            "service itself": (origin, {}),
            "plain Pingora": (plain, {"proxy": self.plain}),
            TWICE: (first, self.nginx),
            "one node": (self.a.proxy, {"node": self.a.process, "agent": self.agent}),
            "one node, api-key plugin": (self.p.proxy, {"node": self.p.process, "agent": p_agent}),
            "two nodes": (self.b.proxy, {"node": self.b.process, "second node": self.a.process, "agent": self.agent}),
        }
        if shutil.which("rathole"):
            self.paths["rathole (TCP)"] = self.rathole(origin)
        for name, (port, _) in self.paths.items():
            wait_for(f"{name} answers", lambda: get(port)[0] == 200)
            wrk(port, 1)

    def rathole(self, origin):
        """The tunnel of another project, for TCP: nothing is read of the requests."""
        server, client = scratch / "rathole-server.toml", scratch / "rathole-client.toml"
        control, port = free_port(), free_port()
        server.write_text(f'[server]\nbind_addr = "127.0.0.1:{control}"\ndefault_token = "bench"\n[server.services.bench]\nbind_addr = "127.0.0.1:{port}"\n')
        client.write_text(f'[client]\nremote_addr = "127.0.0.1:{control}"\ndefault_token = "bench"\n[client.services.bench]\nlocal_addr = "127.0.0.1:{origin}"\n')
        return port, {"server": start("rathole-server", "rathole", "--server", server), "client": start("rathole-client", "rathole", "--client", client)}

    def target(self, what, value, wanted):
        self.targets.append((what, f"{value:.2f}", wanted))

    def rounds(self, names, run, rounds=None, paths=None):
        """Runs each path in turn, several times. Requests a second, CPU seconds per 10,000 requests by process, p50, p99."""
        rates, costs, p50, p99 = (Rounds(names) for _ in range(4))
        for _ in range(rounds or self.options.rounds):
            for name in names:
                port, processes = (paths or self.paths)[name]
                before = {p: cpu(c) for p, c in processes.items()}
                got = run(port)
                rates.add(name, got.rate)
                costs.add(name, {p: (cpu(c) - before[p]) / got.requests * 1e4 for p, c in processes.items()})
                p50.add(name, got.p50), p99.add(name, got.p99)
        return rates, costs, p50, p99

    @staticmethod
    def cost(costs, name):
        return {p: median(c[p] for c in costs.figures[name]) for p in costs.figures[name][0]}

    @staticmethod
    def cpu_ratio(costs, of, to):
        return median(sum(a.values()) / sum(b.values()) for a, b in zip(costs.figures[of], costs.figures[to]))

    # The parts, in the order of the report.

    def requests(self):
        for connections, wanted in ((64, "≥ 1.05"), (256, "≥ 1.2")):
            rates, costs, _, _ = self.rounds(list(self.paths), lambda port: wrk(port, self.options.seconds, connections))
            rows = [(name, f"{rates.of(name):,.0f}", f"{rates.ratio(name, 'plain Pingora'):.2f}", f"{rates.ratio(name, TWICE):.2f}",
                     ", ".join(f"{p} {v:.3f}" for p, v in self.cost(costs, name).items())) for name in self.paths]
            self.sections += ["", f"**{connections} kept connections, 13-byte answers**", "",
                              *table(("path", "requests/s", "÷ plain Pingora", "÷ NGINX twice", "CPU-s per 10,000 requests"), rows)]
            self.target(f"one node ÷ NGINX twice, requests/s, {connections} connections", rates.ratio("one node", TWICE), wanted)
            self.target(f"node + agent ÷ NGINX twice, CPU, {connections} connections", self.cpu_ratio(costs, "one node", TWICE), "≤ 1.1")
            if connections == 64:
                self.target("two nodes ÷ one node, requests/s", rates.ratio("two nodes", "one node"), "≥ 0.7")
                self.target("with the api-key plugin ÷ without, requests/s", rates.ratio("one node, api-key plugin", "one node"), "≥ 0.95")

    def latency(self):
        names = [name for name in self.paths if name != "rathole (TCP)"]
        _, _, p50, p99 = self.rounds(names, lambda port: wrk(port, 1, 1))
        rows = [(name, f"{p50.of(name):.0f}", f"{p99.of(name):.0f}", f"{p50.ratio(name, TWICE):.2f}") for name in names]
        self.sections += ["", "**One connection**", "", *table(("path", "p50 µs", "p99 µs", "p50 ÷ NGINX twice"), rows)]
        self.target("one node ÷ NGINX twice, p50 at one connection", p50.ratio("one node", TWICE), "≤ 1.35")

    def bodies(self):
        names, rows = ["plain Pingora", TWICE, "one node"], []
        for what, args, wanted in (("GET, 1 KiB", {"path": "/bytes/1024"}, None), ("GET, 64 KiB", {"path": "/bytes/65536"}, None),
                                   ("POST, 500 bytes", {"post": 500}, "≥ 0.95"), ("POST, 10 kB", {"post": 10_000}, "≥ 0.95")):
            rates, costs, _, _ = self.rounds(names, lambda port: wrk(port, 1, **args))
            rows.append((what, *(f"{rates.of(name):,.0f}" for name in names), f"{rates.ratio('one node', TWICE):.2f}", f"{self.cpu_ratio(costs, 'one node', TWICE):.2f}"))
            if wanted:
                self.target(f"{what}: one node ÷ NGINX twice, requests/s", rates.ratio("one node", TWICE), wanted)
        self.sections += ["", "**Bodies, 64 connections, requests/s**", "", *table(("", *names, "node ÷ NGINX twice", "CPU ÷"), rows)]

    def tls(self):
        cert, key = parts.certificate()
        port = free_port()
        first = nginx("nginx-tls", port, self.nginx_second, "ssl", f"ssl_certificate {cert}; ssl_certificate_key {key};")
        node = Node("node-tls", flags=(f"--proxy.tls.cert={cert}", f"--proxy.tls.key={key}"))
        behind = agent("agent-tls", node.upstream, f"bench/127.0.0.1:{self.origin_port}")
        paths = {TWICE: (port, {"first": first, "second": self.nginx["second"]}), "one node": (node.proxy, {"node": node.process, "agent": behind})}
        wait_for("the endpoint is there", lambda: node.tunnels() >= 1)
        rates, costs, _, _ = self.rounds(list(paths), lambda port: wrk(port, 2, tls=True), paths=paths)
        self.target("TLS for clients, 64 connections: one node ÷ NGINX twice, requests/s", rates.ratio("one node", TWICE), "")
        for process in (first, node.process, behind):
            stop(process)

    def http2(self):
        if not shutil.which("h2load"):
            return
        port = free_port()
        first = nginx("nginx-h2", port, self.nginx_second, "http2")
        paths = {TWICE: (port, {"first": first, "second": self.nginx["second"]}), "one node": self.paths["one node"]}
        wait_for("NGINX answers HTTP/2", lambda: h2load(port, 1, 1, 1).requests > 0)
        rows = []
        for clients, streams, busy in ((1, 1, 0), (64, 1, 0), (10, 10, 0), (10, 100, 0), (64, 1, 16), (10, 10, 16), (10, 100, 16)):
            with Busy(busy):
                rates, _, _, _ = self.rounds(list(paths), lambda port: h2load(port, self.options.seconds, clients, streams), self.options.rounds if not busy else 4, paths)
            beside = f", beside {busy} busy processes" if busy else ""
            rows.append((f"{clients} × {streams}{beside}", *(f"{rates.of(name):,.0f}" for name in paths), f"{rates.ratio('one node', TWICE):.2f}"))
            if clients > 1:
                self.target(f"HTTP/2, {clients} × {streams}{beside}: one node ÷ NGINX (h2) → NGINX", rates.ratio("one node", TWICE), "≥ 1.0")
        self.sections += ["", "**HTTP/2 clients (h2c), connections × streams, requests/s**", "", *table(("", *paths, "÷"), rows)]
        stop(first)

    def bulk(self):
        names = ["plain Pingora", TWICE, "one node", "two nodes"]
        speed = {up: Rounds(names) for up in (False, True)}
        for _ in range(self.options.rounds):
            for name in names:
                for up in speed:
                    speed[up].add(name, transfer(self.paths[name][0], up))
        rows = [(name, f"{speed[False].of(name):.0f}", f"{speed[True].of(name):.0f}") for name in names]
        self.sections += ["", "**256 MiB on one connection, MiB/s**", "", *table(("path", "down", "up"), rows)]
        self.target("download, one node ÷ plain Pingora", speed[False].ratio("one node", "plain Pingora"), "≥ 1.0")
        self.target("upload, one node ÷ plain Pingora", speed[True].ratio("one node", "plain Pingora"), "≥ 0.95")

    def long_line(self):
        """The agent is 100 ms away (round trip) from its node."""
        far = Node("node-far")
        relay = load.delayed(far.upstream, 0.05)
        behind = agent("agent-far", relay, f"bench/127.0.0.1:{self.origin_port}")
        wait_for("the far endpoint answers", lambda: get(far.proxy)[0] == 200)
        for up in (False, True):
            mbit = median(transfer(far.proxy, up, 128) for _ in range(3)) * 8 * 1.048576
            self.target(f"one stream over a 100 ms line, {'up' if up else 'down'}, Mbit/s", mbit, "≥ 200")
        stop(behind), stop(far.process)

    def plugins(self):
        port = self.p.proxy
        cut = [loop_once(port) for _ in range(50)]
        calm, disturbed = [], []
        for _ in range(self.options.rounds):
            for looping, p99s in ((False, calm), (True, disturbed)):
                p99s.append(with_client(port, looping, LOOP_TIMEOUT_MS / 1e3, lambda: wrk(port, 1, 1).p99))
        self.target("one plugin with four host calls, p50 µs", plugin_us(1), "≤ 5")
        self.target("five such plugins in a chain, p50 µs", plugin_us(5), "≤ 25")
        self.target("an endless loop is cut, median ms after its timeout", median(cut) - LOOP_TIMEOUT_MS, "≤ 2")
        self.target("p99 of others while a client's requests loop in a plugin ÷ while they do not", median(disturbed) / median(calm), "≤ 2")

    def routable(self):
        soon = subprocess.run([PIKO, "bench", "routable", "--url", f"http://127.0.0.1:{self.a.upstream}", "--proxy", f"127.0.0.1:{self.b.proxy}",
                               "--service", f"127.0.0.1:{self.origin_port}"], capture_output=True, text=True, check=True).stdout
        self.target("listening on one node → served by the other, p99 ms", float(soon.split()[1]), "≤ 100")

    def overload(self):
        """More requests than a service can do, with limits that fit it and without."""
        rows = []
        for what, proxy in (("without limits", overload.NONE), ("with limits", overload.LIMITS)):
            node = Node("node-overload", config={"proxy": proxy})
            behind = agent("agent-overload", node.upstream, f"bench/127.0.0.1:{overload.service()}")
            wait_for("the endpoint is there", lambda: node.tunnels() >= 1)
            (at, _), (above, refused) = (overload.goodput(node.proxy, times, self.options.seconds + 3) for times in (1, 3))
            rows.append((what, f"{at:.0f}", f"{above:.0f}", f"{refused:.1f}"))
            self.target(f"goodput at 3 × capacity ÷ at capacity, {what}", above / at, "≥ 0.9" if proxy is overload.LIMITS else "")
            stop(behind), stop(node.process)
        self.sections += ["", f"**Overload: a service that does {overload.CAPACITY:.0f} requests/s, clients that wait {overload.PATIENCE:.0f} s**", "",
                          *table(("", "good answers/s at capacity", "at 3 × capacity", "ms to a 503, median"), rows)]

    def memory(self):
        """What one more idle thing costs, in a node of its own."""
        count = self.options.idle
        node = Node("node-idle")
        tunnels = []
        for batch in (1, 2):
            start(f"idle-{batch}", PIKO, "bench", "tunnels", "--url", f"http://127.0.0.1:{node.upstream}", "--tunnels", count)
            wait_for("the tunnels are open", lambda: node.tunnels() >= batch * count, 60)
            time.sleep(2)
            tunnels.append(rss(node.process))
        self.target("node, KiB per idle tunnel", (tunnels[1] - tunnels[0]) / count, "≤ 24")
        stop(node.process)
        for kind, wanted in (("silent client", "≤ 17"), ("kept client", "≤ 30"), ("WebSocket", "≤ 36")):
            node = Node("node-idle")
            service = load.websocket_service() if kind == "WebSocket" else self.origin_port
            behind = agent("agent-idle", node.upstream, f"bench/127.0.0.1:{service}")
            wait_for("the endpoint is there", lambda: node.tunnels() >= 1)
            self.target(f"node, KiB per idle {kind}", idle_kib(node.process, node.proxy, kind, count), wanted)
            stop(behind), stop(node.process)

    def curve(self):
        """The cost of a request by how many connections there are."""
        names = [TWICE, "one node"]
        rate, cost = {n: [] for n in names}, {n: [] for n in names}
        for connections in CURVE:
            rates, costs, _, _ = self.rounds(names, lambda port: wrk(port, self.options.seconds, connections), max(3, self.options.rounds // 3))
            for name in names:
                rate[name].append(rates.of(name))
                cost[name].append(median(sum(c.values()) for c in costs.figures[name]))
        rows = [(n, *(f"{rate[name][i]:,.0f}" for name in names), *(f"{cost[name][i]:.3f}" for name in names)) for i, n in enumerate(CURVE)]
        self.sections += ["", "**From 1 to 4,096 connections**", "", "![requests a second by connections](benchmarks-rate.svg)", "",
                          "![CPU of a request by connections](benchmarks-cost.svg)", "",
                          *table(("connections", *(f"{n}, requests/s" for n in names), *(f"{n}, CPU-s per 10,000" for n in names)), rows)]
        self.pictures = {"rate": curve("Requests a second", "requests/s", CURVE, rate), "cost": curve("CPU seconds per 10,000 requests", "CPU-s", CURVE, cost)}


PARTS = ("requests", "latency", "bodies", "tls", "http2", "bulk", "long_line", "plugins", "routable", "overload", "memory", "curve")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--idle", type=int, default=1000, help="idle connections and tunnels of each kind")
    parser.add_argument("--only", help="these parts: " + ", ".join(PARTS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else PARTS
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    bench = Bench(options)
    for part in PARTS:
        if part in chosen:
            print(f"… {part}", file=sys.stderr, flush=True)
            getattr(bench, part)()
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    head = [f"Measured {time.strftime('%Y-%m-%d')} on {os.cpu_count()} cores ({model[1] if model else 'unknown'}), Linux {os.uname().release}; "
            f"load, proxies and service share them. Medians of {options.rounds} interleaved rounds; ratios are taken round by round.", ""]
    report = "\n".join(head + table(("figure", "measured", "wanted"), bench.targets) + bench.sections) + "\n"
    print(report)
    if options.write:
        page = ROOT / "docs" / "benchmarks.md"
        mark = "<!-- written by make bench -->\n"
        page.write_text(page.read_text().split(mark)[0] + mark + report)
        for name, picture in getattr(bench, "pictures", {}).items():
            (ROOT / "docs" / f"benchmarks-{name}.svg").write_text(picture)


try:
    main()
finally:
    parts.stop_all()
