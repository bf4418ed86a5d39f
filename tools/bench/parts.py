"""The parts of the bench: what is started, and how it is asked. All on loopback, all ended by `stop_all`."""
import http.client, json, os, re, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PIKO = ROOT / "bin" / "piko"
TICK = os.sysconf("SC_CLK_TCK")
HEADERS = {"x-piko-endpoint": "bench", "x-api-key": "bench"}
scratch = Path(tempfile.mkdtemp(prefix="piko-bench-"))
children = []


def start(name, *args, env=None):
    log = open(scratch / f"{name}.log", "w")
    child = subprocess.Popen([str(a) for a in args], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                             env={**os.environ, **(env or {})})
    children.append(child)
    return child


def stop(child):
    child.send_signal(signal.SIGKILL)
    child.wait()
    children.remove(child)


def stop_all():
    for child in reversed(list(children)):
        stop(child)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, check, within=30):
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"not within {within} s: {what}; logs are in {scratch}")


def get(port, path="/", headers=HEADERS):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    c.request("GET", path, headers=headers)
    answer = c.getresponse()
    body = answer.read()
    c.close()
    return answer.status, body


def cpu(child):
    """CPU seconds of a process."""
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(child):
    """Resident memory, KiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text())[1])


def certificate():
    """A certificate of its own for localhost: the files of it and of its key."""
    cert, key = scratch / "cert.pem", scratch / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def nginx(name, port, upstream, listen="", server=""):
    """One worker, kept connections on both sides, nothing buffered on disk."""
    conf = scratch / f"{name}.conf"
    temp = "".join(f"{n}_temp_path {scratch}/{name}-{n};" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(f"""
daemon off; master_process off; pid {scratch}/{name}.pid; worker_processes 1; error_log {scratch}/{name}.error;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
  access_log off; {temp} keepalive_requests 100000000; client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0;
  upstream next {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} {listen}; {server}
    location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; proxy_pass http://next; }}
  }}
}}""")
    program = "/usr/sbin/nginx" if os.path.exists("/usr/sbin/nginx") else "nginx"
    return start(name, program, "-c", conf, "-e", scratch / f"{name}.error")


class Node:
    """One `piko server`, ready."""

    def __init__(self, name, join=None, config=None, flags=()):
        self.ports = {p: free_port() for p in ("proxy", "upstream", "admin", "cluster.gossip", "cluster.peer")}
        args = [f"--{p}.bind-addr=127.0.0.1:{n}" for p, n in self.ports.items()]
        if join:
            args.append(f"--cluster.join=127.0.0.1:{join.ports['cluster.gossip']}")
        if config:
            file = scratch / f"{name}.yaml"
            file.write_text(json.dumps(config))
            args.append(f"--config.path={file}")
        self.process = start(name, PIKO, "server", "--proxy.access-log.disable=true", "--log.level=warn", *args, *flags)
        wait_for(f"{name} is ready", lambda: get(self.admin, "/ready")[0] == 200)

    proxy = property(lambda self: self.ports["proxy"])
    upstream = property(lambda self: self.ports["upstream"])
    admin = property(lambda self: self.ports["admin"])

    def metric(self, name):
        found = re.search(rf"^{name} (\S+)".encode(), get(self.admin, "/metrics")[1], re.M)
        return float(found[1]) if found else 0.0

    def tunnels(self):
        return self.metric("piko_upstreams_connected_upstreams")


def agent(name, upstream, *listeners):
    return start(name, PIKO, "agent", f"--endpoints={','.join(listeners)}", f"--connect.url=http://127.0.0.1:{upstream}",
                 "--access-log.disable=true", "--log.level=warn")
