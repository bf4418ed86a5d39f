#!/usr/bin/env python3
"""Load for tools/pgo: train.py PROGRAM. What nodes and agents do all day, some seconds each, over one node and two: small
requests by HTTP/1 and HTTP/2, bodies, TLS. All of it ends in good order: a program writes its counts when it ends."""
import signal, sys
from pathlib import Path

import parts
from load import h2load, transfer, wrk
from parts import Node, agent, certificate, children, free_port, get, start, wait_for

#: One that has not ended by then has no counts, and the profile would be of something else.
PATIENCE = 60


def main():
    parts.PIKO = Path(sys.argv[1]).resolve()
    origin = free_port()
    service = start("origin", parts.PIKO, "bench", "origin", "--bind", f"127.0.0.1:{origin}")
    cert, key = certificate()
    a = Node("node-a")
    b = Node("node-b", join=a)
    t = Node("node-tls", flags=(f"--proxy.tls.cert={cert}", f"--proxy.tls.key={key}"))
    for n, node in enumerate((a, t)):
        agent(f"agent-{n}", node.upstream, f"bench/127.0.0.1:{origin}")
        wait_for("the endpoint is there", lambda: node.tunnels() >= 1)
    wait_for("the endpoint is known to the other node", lambda: get(b.proxy)[0] == 200)
    for connections, seconds in ((64, 6), (256, 3), (1, 2)):
        wrk(a.proxy, seconds, connections)
    wrk(b.proxy, 3)
    wrk(t.proxy, 2, tls=True)
    for size in (500, 10_000):
        wrk(a.proxy, 2, post=size)
    for size in (1 << 10, 64 << 10):
        wrk(a.proxy, 2, path=f"/bytes/{size}")
    for clients, streams in ((10, 10), (64, 1)):
        h2load(a.proxy, 2, clients, streams)
    for up in (False, True):
        transfer(a.proxy, up)
    # Agents first, as they would wait for nodes that are gone; then the rest.
    for child in reversed(children[:]):
        if child is service:
            continue
        child.send_signal(signal.SIGTERM)
        if child.wait(PATIENCE):
            sys.exit(f"{child.args[1]} ended with {child.returncode}; logs are in {parts.scratch}")
        children.remove(child)


try:
    main()
finally:
    parts.stop_all()
