"""What a service that works on a fixed number of requests at once still answers in time when it is asked for more."""
import asyncio, threading, time

from parts import HEADERS

#: Requests that the service works on at once, and how long each takes: 200 a second.
AT_ONCE, WORK = 20, 0.1
CAPACITY = AT_ONCE / WORK
#: How long a client waits for its answer. Then it leaves, and the answer is for nobody.
PATIENCE = 1.0
#: Before the count, so that queues are as full as they get.
WARM_UP = 3.0
#: What fits the service: places for what it works on, and a queue that is done within half a client's patience.
LIMITS = {"endpoints": {"bench": {"in_flight": AT_ONCE}}, "limits": {"queue": int(CAPACITY * PATIENCE / 2)}}
NONE = {"limits": {"in_flight": 0, "per_endpoint": 0}}

ASK = ("GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n" + "".join(f"{n}: {v}\r\n" for n, v in HEADERS.items()) + "\r\n").encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def service():
    """First come, first served, by a pool of workers. It finds out that a client has left when it answers, as services with
    a pool do. Returns its port."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    port = []

    async def main():
        places = asyncio.Semaphore(AT_ONCE)

        async def one(reader, writer):
            try:
                await reader.readuntil(b"\r\n\r\n")
                async with places:
                    await asyncio.sleep(WORK)
                writer.write(ANSWER)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            writer.close()

        server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=4096)
        port.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True).start()
    ready.wait()
    return port[0]


def goodput(port, times, seconds):
    """Good answers a second within a client's patience, at so many times the capacity, and the median ms of a 503.
    Requests come at their time, whatever becomes of those before."""
    good, refused = [0], []

    async def one(counts):
        began = time.monotonic()
        writer = None
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(ASK)
                line = await reader.readline()
            if counts and line.split()[1:2] == [b"200"]:
                good[0] += 1
            elif counts and line.split()[1:2] == [b"503"]:
                refused.append((time.monotonic() - began) * 1e3)
        except (OSError, TimeoutError):
            pass
        finally:
            if writer:
                writer.close()

    async def main():
        began, sent, rate = time.monotonic(), 0, CAPACITY * times
        async with asyncio.TaskGroup() as all_of_them:
            while (at := time.monotonic() - began) < WARM_UP + seconds:
                for _ in range(int(at * rate) - sent):
                    sent += 1
                    all_of_them.create_task(one(at >= WARM_UP))
                await asyncio.sleep(0.005)

    asyncio.run(main())
    return good[0] / seconds, sorted(refused)[len(refused) // 2] if refused else 0.0
