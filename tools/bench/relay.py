"""relay.py LISTEN TO SECONDS: a TCP relay that delays each byte by so long in each direction, as a long line does."""
import asyncio, sys

AT, TO, DELAY = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


async def one_way(reader, writer):
    """Reads at once and writes what is old enough: the line holds as much as was read in that time."""
    loop, line = asyncio.get_running_loop(), asyncio.Queue()

    async def read():
        while data := await reader.read(1 << 20):
            line.put_nowait((loop.time() + DELAY, data))
        line.put_nowait((loop.time() + DELAY, b""))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0, due - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        reading.cancel()


async def relay(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", TO, limit=1 << 20)
    await asyncio.gather(one_way(reader, far_writer), one_way(far_reader, writer))
    far_writer.close()
    writer.close()


async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", AT, limit=1 << 20)
    await server.serve_forever()


asyncio.run(main())
