"""Clients: one connection, and an open loop of requests whose answers are counted."""
import asyncio, collections, json, time

from lab import read_chunks, read_head


class Connection:
    def __init__(self, number, address="127.0.0.1"):
        self.number, self.address, self.reader, self.writer = number, address, None, None

    async def ask(self, endpoint, method="GET", path="/", body=b"", limit=30, headers=()):
        """Status and body; opens the connection, and closes it where the answer says so."""
        async with asyncio.timeout(limit):
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection(self.address, self.number)
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: {endpoint}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
            self.writer.write(head.encode() + body)
            (_, status, *_), fields = await read_head(self.reader)
            data = b""
            if "content-length" in fields:
                data = await self.reader.readexactly(int(fields["content-length"]))
            elif "chunked" in fields.get("transfer-encoding", ""):
                data = await read_chunks(self.reader)
        if fields.get("connection", "").lower() == "close":
            self.close()
        return int(status), data

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


class Load:
    """`rate` requests a second over `ports` in turn, however long they take; each on a kept or on a new connection."""

    def __init__(self, ports, rate, methods=("GET",), path="/", keep=True, endpoint="e", limit=40, address="127.0.0.1"):
        self.ports, self.rate, self.methods, self.path, self.keep = ports, rate, methods, path, keep
        self.endpoint, self.limit, self.address = endpoint, limit, address
        #: When it began, how long it took, what came of it, its method.
        self.log = []
        self.idle, self.tasks, self.on = collections.defaultdict(list), set(), True
        self.task = asyncio.create_task(self.run())

    async def one(self, count):
        number = self.ports[count % len(self.ports)]
        method = self.methods[count // len(self.ports) % len(self.methods)]
        idle, begun = self.idle[number], time.time()
        connection = idle.pop() if self.keep and idle else Connection(number, self.address)
        try:
            body = b"x" * 1000 if method == "POST" else b""
            status, data = await connection.ask(self.endpoint, method, self.path, body, self.limit)
            came = status
            if status != 200 and data.startswith(b"{"):
                came = f"{status} {json.loads(data).get('code')}"
        except Exception as error:
            came = "late" if isinstance(error, TimeoutError) else type(error).__name__
            connection.close()
        self.log.append((begun, time.time() - begun, came, method))
        # What a burst has left over is closed: kept for minutes, it would outlive the node's idle time.
        if self.keep and connection.writer and len(idle) < 8:
            idle.append(connection)
        else:
            connection.close()

    async def run(self):
        count, begun = 0, time.time()
        while self.on:
            while count < (time.time() - begun) * self.rate:
                task = asyncio.create_task(self.one(count))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                count += 1
            await asyncio.sleep(0.004)

    async def stop(self):
        self.on = False
        await self.task
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self.limit + 5)
        for idle in self.idle.values():
            for connection in idle:
                connection.close()
        return self

    def failed(self, since=0.0):
        return [one for one in self.log if one[0] >= since and one[2] != 200]

    def longest(self):
        return max((one[1] for one in self.log), default=0.0)

    def gap(self):
        """From the first failure's start to the last one's: how long it was down."""
        failed = [one[0] for one in self.failed()]
        return max(failed) - min(failed) if failed else 0.0

    def said(self, since=0.0):
        failed = self.failed(since)
        all_of_it = sum(one[0] >= since for one in self.log)
        kinds = collections.Counter(f"{one[3]} {one[2]}" for one in failed)
        return f"{len(failed)} of {all_of_it:,}" + (f" ({', '.join(f'{n} × {kind}' for kind, n in kinds.items())})" if failed else "")


async def websocket(number, endpoint="e"):
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(f"GET /ws HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: {endpoint}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                 "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
    (_, status, *_), _ = await read_head(reader)
    if status != "101":
        raise ConnectionError(f"a WebSocket was answered {status}")
    return reader, writer


def frame(text=b"hi"):
    """Masked by zeros."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text
