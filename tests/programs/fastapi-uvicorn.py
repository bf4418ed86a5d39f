"""FastAPI on uvicorn, by curl, requests and websockets: JSON, forms, uploads, streams, server-sent events, WebSocket"""

import concurrent.futures
import hashlib
import time

import requests
import websockets.sync.client

from common import digest, pattern, python, sh, step

KIND = "http"
NEEDS = ["curl"]
REASONS = {
    ("each_method", "HTTPS"): "the service is told by `X-Forwarded-Proto` that its client came by HTTPS",
    ("upload_by_curl_with_expect", "HTTPS"): "curl does not wait for 100 Continue over HTTP/2",
    ("an_early_refusal_is_read", "HTTPS"): "curl 7.88 takes a RST_STREAM of NO_ERROR after the whole answer (RFC 9113, 8.1) for an error, of NGINX, too",
    ("a_body_that_breaks_off_is_seen", "Caddy"): "Caddy 2.6 ends a broken answer as if it were whole, in front of the service itself, too",
}
PIP = ["fastapi", "python-multipart", "requests", "uvicorn", "websockets"]

SERVER = r'''
import asyncio, hashlib, sys
from fastapi import FastAPI, Form, Request, UploadFile, WebSocket
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
import uvicorn
app = FastAPI()

@app.get("/items/{item}")
def item(item: int, q: str | None = None): return {"item": item, "q": q}

@app.api_route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def echo(request: Request):
    body = await request.body()
    return {"method": request.method, "path": request.url.path, "query": str(request.query_params), "body": len(body),
            "cookies": request.cookies, "host": request.headers["host"].split(":")[0], "scheme": request.url.scheme}

@app.get("/slash/")
def slash(): return "here"

@app.post("/login")
def login(user: str = Form()):
    answer = RedirectResponse("/items/1", 303); answer.set_cookie("session", user, httponly=True); answer.set_cookie("b", "2")
    return answer

@app.post("/upload")
async def upload(file: UploadFile): return {"name": file.filename, "digest": hashlib.sha256(await file.read()).hexdigest()[:16]}

@app.post("/refuse")
async def refuse(): return PlainTextResponse("too large", 413)

@app.put("/stream")
async def stream(request: Request):
    h, n = hashlib.sha256(), 0
    async for part in request.stream(): h.update(part); n += len(part)
    return {"bytes": n, "digest": h.hexdigest()[:16]}

@app.get("/events")
async def events():
    async def each():
        for n in range(5):
            yield f"id: {n}\ndata: event {n}\n\n"
            await asyncio.sleep(0.3)
    return StreamingResponse(each(), media_type="text/event-stream")

@app.get("/large")
def large():
    block = bytes(range(256)) * 256
    return StreamingResponse((block for _ in range(320)), media_type="application/octet-stream")

@app.get("/broken")
def broken():
    def each():
        yield b"x" * 1000
        raise RuntimeError("breaks off")
    return StreamingResponse(each())

@app.get("/late")
async def late(seconds: float):
    await asyncio.sleep(seconds); return "late"

@app.get("/status/{code}")
def status(code: int): return PlainTextResponse(None, code)

@app.websocket("/ws")
async def ws(socket: WebSocket):
    await socket.accept(subprotocol="echo" if "echo" in socket.scope["subprotocols"] else None)
    async for message in socket.iter_text():
        if message == "close": await socket.close(4001, "as asked"); return
        await socket.send_text(message)

@app.websocket("/refused")
async def refused(socket: WebSocket): await socket.close()

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=1)
'''


def start(work, port):
    yield [python(), "-c", SERVER, port]


def curl(way, path, *more, ok=True):
    return sh(["curl", "-sS", "-m", "50", *more, way.url(path)], ok=ok)


@step
def each_method(way):
    return {m: requests.request(m, way.url("/echo?a=1&b=%20%2F"), data=b"x" * 100, timeout=20).json()
            for m in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


@step
def head(way):
    answer = requests.head(way.url("/items/1"), timeout=20)
    return answer.status_code, answer.headers.get("content-length"), len(answer.content)


@step
def validation_error(way):
    answer = requests.get(way.url("/items/none"), timeout=20)
    return answer.status_code, answer.json()["detail"][0]["type"]


@step
def redirect_to_a_slash(way):
    answer = requests.get(way.url("/slash"), timeout=20, allow_redirects=False)
    return answer.status_code, answer.headers["location"], requests.get(way.url("/slash"), timeout=20).json()


@step
def login_and_cookies(way):
    with requests.Session() as session:
        session.post(way.url("/login"), data={"user": "me"}, timeout=20)
        return session.get(way.url("/echo"), timeout=20).json()["cookies"]


@step
def upload_a_form(way):
    return requests.post(way.url("/upload"), files={"file": ("ö.bin", pattern(20_000_000))}, timeout=50).json()


@step
def upload_in_chunks(way):
    return requests.put(way.url("/stream"), data=(pattern(65_000) for _ in range(200)), timeout=50).json()


@step
def upload_by_curl_with_expect(way):
    (way.work / "large").write_bytes(pattern(3_000_000))
    said = curl(way, "/stream", "-v", "-T", str(way.work / "large"), "-H", "Expect: 100-continue", "-o", "/dev/null", "-w", "%{http_code}")
    return said.split()[-1][-3:], "100 Continue" in said


@step
def an_early_refusal_is_read(way):
    (way.work / "huge").write_bytes(bytes(5_000_000))
    return [curl(way, "/refuse", "-H", "Expect:", "--data-binary", f"@{way.work}/huge", "-w", "%{http_code}") for _ in range(5)]


@step
def download_20_megabytes(way):
    answer = requests.get(way.url("/large"), timeout=50)
    return answer.status_code, len(answer.content), digest(answer.content)


@step
def many_downloads_at_once(way):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sorted(pool.map(lambda _: digest(requests.get(way.url("/large"), timeout=50).content), range(8)))


@step
def a_body_that_breaks_off_is_seen(way):
    # A broken answer, or 502: where head and break come in one moment, a node may know of the break first.
    try:
        return requests.get(way.url("/broken"), timeout=20).status_code == 502
    except requests.exceptions.RequestException:
        return True


@step
def events_come_one_by_one(way):
    began, times, lines = time.monotonic(), [], []
    with requests.get(way.url("/events"), stream=True, timeout=20) as answer:
        for line in answer.iter_lines(chunk_size=1):
            if line.startswith(b"data"):
                times.append(time.monotonic() - began)
                lines.append(line.decode())
    return lines, times[-1] - times[0] > 0.8, answer.headers["content-type"]


@step
def late_headers(way):
    return requests.get(way.url("/late?seconds=12"), timeout=30).status_code


@step
def statuses_without_a_body(way):
    with requests.Session() as session:
        return [(session.get(way.url(f"/status/{code}"), timeout=20).status_code, session.get(way.url("/items/1"), timeout=20).json())
                for code in (204, 304, 404, 418, 500, 503)]


@step
def requests_around_the_idle_close(way):
    # uvicorn closes after a second. Direct, a request that meets the close fails; with an agent between, none may.
    if way.name == "direct":
        return [200]
    with requests.Session() as session:
        codes = set()
        for pause in (0.9, 0.95, 0.98, 0.99, 1.0, 1.01, 1.02, 1.05):
            codes.add(session.get(way.url("/items/1"), timeout=20).status_code)
            time.sleep(pause)
    return sorted(codes)


@step
def websocket(way):
    with websockets.sync.client.connect(way.url("/ws", "ws"), subprotocols=["echo"], max_size=None) as ws:
        got = []
        for message in ("hello", "ü" * 70_000, "", "x" * 1_000_000):
            ws.send(message)
            got.append(hashlib.sha256(ws.recv(timeout=20).encode()).hexdigest()[:8])
        ws.send("close")
        try:
            ws.recv(timeout=20)
        except websockets.exceptions.ConnectionClosed as e:
            got.append([e.rcvd.code, e.rcvd.reason])
        return got, ws.subprotocol, ws.protocol.extensions != []


@step
def websocket_refused(way):
    try:
        websockets.sync.client.connect(way.url("/refused", "ws"))
    except websockets.exceptions.InvalidStatus as e:
        return e.response.status_code


@step
def http_1_0(way):
    with way.connect() as s:
        s.sendall(f"GET /large HTTP/1.0\r\nHost: {way.host}\r\n\r\n".encode())
        data = b""
        while part := s.recv(65536):
            data += part
    headers, _, body = data.partition(b"\r\n\r\n")
    return len(body), digest(body), b"chunked" in headers.lower()


@step
def pipelined(way):
    with way.connect() as s:
        one = f"GET /items/%d HTTP/1.1\r\nHost: {way.authority}\r\n%s\r\n"
        s.sendall(((one % (1, "")) + (one % (2, "")) + (one % (3, "Connection: close\r\n"))).encode())
        data = b""
        while part := s.recv(65536):
            data += part
    return data.count(b"HTTP/1.1 200"), [data.count(b'"item":%d' % n) for n in (1, 2, 3)]
