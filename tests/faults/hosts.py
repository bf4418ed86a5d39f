"""Three nodes on hosts of their own: a network namespace each, on a switch in ours. They go with their processes."""
import json, os, subprocess

import lab
from lab import PIKO, SERVICE, get, start, until

NUMBERS = (1, 2, 3)
PROXY, UPSTREAM, ADMIN, GOSSIP, PEER = range(8000, 8005)
#: Where clients, agents and services are.
OURS = "10.9.0.254"


def address(number):
    return f"10.9.0.{number}"


def ip(*args):
    subprocess.run(["ip", *args], check=True)


def inside(process, *args):
    subprocess.run(["nsenter", "-t", str(process.pid), "-n", "ip", *args], check=True)


async def plugged(number):
    """A node that begins once its host has a network."""
    ports = {"proxy": PROXY, "upstream": UPSTREAM, "admin": ADMIN, "cluster.gossip": GOSSIP, "cluster.peer": PEER}
    flags = [f"--{name}.bind-addr={address(number)}:{port}" for name, port in ports.items()]
    join = ",".join(f"{address(other)}:{GOSSIP}" for other in NUMBERS)
    words = [PIKO, "server", *flags, f"--cluster.node-id-prefix=n{number}-", f"--cluster.join={join}", "--cluster.insecure=true",
             "--cluster.abort-if-join-fails=false", "--proxy.access-log.disable=true"]
    wait = f"until ip addr show eth0 2>/dev/null | grep -q '{address(number)}/'; do sleep 0.05; done; exec \"$@\""
    process = start(f"host{number}", "unshare", "--net", "sh", "-c", wait, "node", *words)

    async def apart():
        return os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    await until("it has a namespace", apart)
    # Named by the process: what an earlier run has left is another.
    port = f"p{process.pid}"
    ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
    ip("link", "set", port, "master", "br0", "up")
    inside(process, "link", "set", "lo", "up")
    inside(process, "link", "set", "eth0", "up")
    inside(process, "addr", "add", f"{address(number)}/24", "dev", "eth0")
    return process


async def status(number):
    return json.loads((await get(ADMIN, "/status/cluster/nodes", address=address(number)))[1])


async def whole():
    """Each knows all three as active, and linked to both others."""
    for number in NUMBERS:
        nodes = await status(number)
        if sum(one["status"] == "active" and len(one["links"]) == 2 for one in nodes) != 3:
            return False
    return True


async def cluster():
    lab.service()
    if subprocess.run(["ip", "link", "show", "br0"], capture_output=True).returncode:
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", f"{OURS}/24", "dev", "br0")
        ip("link", "set", "br0", "up")
    nodes = {number: await plugged(number) for number in NUMBERS}
    await until("the cluster is whole", whole)
    return nodes


def agent(number, endpoint):
    """An agent of that node."""
    return start(f"agent{number}{endpoint}", PIKO, "agent", f"--endpoints={endpoint}/127.0.0.1:{SERVICE}",
                 f"--connect.url=http://{address(number)}:{UPSTREAM}", "--connect.tunnels=1", "--access-log.disable=true")


def between(nodes, one, other, way):
    """Nothing passes between two of them (`add`), or again (`del`); nothing is closed."""
    for here, there in ((one, other), (other, one)):
        inside(nodes[here], "route", way, "blackhole", address(there))
