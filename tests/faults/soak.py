#!/usr/bin/env python3
"""make soak: mixed traffic for SOAK_SECONDS (1800): is anything lost, and does anything grow in the second half?"""
import asyncio, collections, os, sys, time

import lab
from lab import agent, cluster, descriptors, port, rss, serving, threads
from load import Connection, Load, frame, websocket

#: What the second half may add: resident memory, as a share and in KiB, whichever is more (an allocator keeps what a burst
#: needed); descriptors, which move with the traffic; threads.
GROWTH, GROWTH_KIB, DESCRIPTORS, THREADS = 0.08, 4096, 12, 0


class Counts:
    """What is looked at, of each process, over the time of one half."""

    def __init__(self, processes):
        self.processes, self.seen = processes, []

    def look(self, at):
        row = {name: (rss(one), descriptors(one), threads(one)) for name, one in self.processes.items()}
        self.seen.append((at, row))
        said = "  ".join(f"{name} {kib >> 10} MiB {fds} fds {count} threads" for name, (kib, fds, count) in row.items())
        print(f"{at:6.0f} s  {said}", flush=True)

    def grown(self, half):
        """Compares medians of the third and the last quarter."""
        quarter = lambda low, high: [row for at, row in self.seen if low <= at < high]
        third, last = quarter(half, half * 1.5), quarter(half * 1.5, half * 3)
        median = lambda rows, name, which: sorted(row[name][which] for row in rows)[len(rows) // 2]
        for name in self.processes:
            (kib, fds, count), (more_kib, more_fds, more) = ([median(rows, name, which) for which in range(3)] for rows in (third, last))
            if more_kib - kib > max(kib * GROWTH, GROWTH_KIB):
                yield f"{name}: {kib} KiB grew to {more_kib}"
            if more_fds - fds > DESCRIPTORS:
                yield f"{name}: {fds} descriptors grew to {more_fds}"
            if more - count > THREADS:
                yield f"{name}: {count} threads grew to {more}"


async def sockets(number, until, count):
    while time.time() < until:
        try:
            reader, writer = await websocket(number)
            for _ in range(20):
                writer.write(frame())
                await asyncio.wait_for(reader.read(100), 10)
                await asyncio.sleep(0.2)
            writer.close()
            count["WebSockets"] += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            count[f"WebSockets lost: {type(error).__name__}"] += 1
            await asyncio.sleep(0.1)


async def hang_up(number, until, count):
    """Clients that leave in the middle."""
    while time.time() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"GET /stream/9 HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: e\r\n\r\n")
        await reader.read(50)
        writer.close()
        count["hung up"] += 1
        await asyncio.sleep(0.1)


async def come_and_go(until, count):
    """Agents of node 3, each with an endpoint of its own."""
    while time.time() < until:
        name = f"guest-{count['guests']}"
        count["guests"] += 1
        guest = agent("guest", port(3, 1), lab.SERVICE, name)
        try:
            await serving([port(1, 0)], name)
        except AssertionError:
            count["guests lost"] += 1
        guest.kill()
        guest.wait()
        lab.started.remove(guest)
        await asyncio.sleep(1)


async def main(seconds):
    lab.service()
    nodes = await cluster(3)
    agents = {f"agent{number}": agent(f"agent{number}", port(number, 1)) for number in (1, 2)}
    proxies = [port(number, 0) for number in nodes]
    await serving(proxies)
    counts, count = Counts({**{f"n{number}": one for number, one in nodes.items()}, **agents}), collections.Counter()
    loads = {"GET and POST, kept": Load(proxies, 80, ("GET", "POST")), "GET, new connections": Load(proxies, 20, keep=False),
             "1 MiB": Load(proxies, 3, path="/big/1", keep=False)}
    nobody = Load(proxies, 5, endpoint="nobody")
    begun, until = time.time(), time.time() + seconds
    side = [*(sockets(number, until, count) for number in proxies * 2), hang_up(proxies[0], until, count), come_and_go(until, count)]
    side = [asyncio.create_task(one) for one in side]
    while time.time() < until:
        counts.look(time.time() - begun)
        await asyncio.sleep(min(15, seconds / 20))
    for load in [*loads.values(), nobody]:
        await load.stop()
    await asyncio.wait(side, timeout=60)
    wrong = list(counts.grown(seconds / 2))
    for name, load in loads.items():
        print(f"{name}: {load.said()} lost, the longest took {load.longest():.2f} s")
        if load.failed():
            wrong.append(f"{name}: {load.said()} lost")
    print(f"others: {dict(count)}; an endpoint that nobody has: {nobody.said()}")
    wrong += [f"{what}: {number}" for what, number in count.items() if "lost" in what]
    print("not met: " + "; ".join(wrong) if wrong else "nothing lost, nothing grew")
    return bool(wrong)


if __name__ == "__main__":
    lab.enter()
    try:
        sys.exit(asyncio.run(main(int(os.environ.get("SOAK_SECONDS", "1800")))))
    finally:
        lab.end()
