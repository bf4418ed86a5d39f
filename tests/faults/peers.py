"""The same faults behind NGINX and HAProxy alone, one hop from the services: what their passive checks make of them."""
import asyncio, signal, time

import lab
from lab import BAD_SERVICE, SERVICE, until
from load import Load

NGINX, HAPROXY = lab.BASE + 7, lab.BASE + 3


async def two_services(bad="ok"):
    good = lab.service()
    other = lab.service(BAD_SERVICE, bad) if bad != "dead" else None
    await asyncio.sleep(0.7)
    lab.nginx([SERVICE, BAD_SERVICE], listen=NGINX)
    lab.haproxy([SERVICE, BAD_SERVICE], listen=HAPROXY)
    for number in (NGINX, HAPROXY):
        async def answers():
            return (await lab.get(number, "/", 15))[0] == 200
        await until("the balancer answers", answers)
    return good, other


async def under_load(fault, *load):
    """What the clients of each balancer saw while the fault went on."""
    loads = [Load([number], *load, limit=15) for number in (NGINX, HAPROXY)]
    await fault
    for load in loads:
        await load.stop()
    return [f"{load.said(0.0)}, longest {load.longest():.1f} s" for load in loads]


async def bad_service(mode):
    await two_services(mode)
    return await under_load(asyncio.sleep(20), 100, ("GET", "POST"))


async def freeze():
    _, other = await two_services()

    async def fault():
        await asyncio.sleep(1)
        other.send_signal(signal.SIGSTOP)
        await asyncio.sleep(20)
        other.send_signal(signal.SIGCONT)
        await asyncio.sleep(3)
    return await under_load(fault(), 60)


async def kill():
    _, other = await two_services()

    async def fault():
        await asyncio.sleep(1)
        other.kill()
        await asyncio.sleep(5)
    return await under_load(fault(), 300, ("GET", "POST"))


async def slow_uploads():
    await two_services()
    worst = []
    for number in (NGINX, HAPROXY):
        writers = []
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            writers.append(writer)
        load = Load([number], 50)
        for _ in range(5):
            for writer in writers:
                writer.write(b"x")
            await asyncio.sleep(1)
        await load.stop()
        worst.append(f"{load.said()} failed, the longest took {load.longest() * 1e3:.0f} ms")
        for writer in writers:
            writer.transport.abort()
    return worst


#: The case of ours, and what NGINX and HAProxy do in its place.
PEERS = {
    "service_dead": lambda: bad_service("dead"),
    "service_hangs": lambda: bad_service("hang"),
    "freeze_agent": freeze,
    "kill_agent": kill,
    "slow_uploads": slow_uploads,
}
