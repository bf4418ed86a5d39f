"""WebDAV (wsgidav), by cadaver and by requests: properties, MOVE and COPY with absolute URLs, locks"""

import requests

from common import digest, pattern, python, sh, step

KIND = "http"
NEEDS = ["cadaver"]
PIP = ["cheroot", "requests", "wsgidav"]


def start(work, port):
    (work / "dav").mkdir()
    yield [python(), "-m", "wsgidav.server.server_cli", "--host=127.0.0.1", f"--port={port}", f"--root={work}/dav",
           "--auth=anonymous", "--server=cheroot", "--no-config"]


def ask(way, method, path, data=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.request(method, way.url(f"/{way.name.replace(' ', '-')}{path}"), data=data, headers=headers, timeout=20)


@step
def make_a_collection(way):
    return ask(way, "MKCOL", "").status_code, ask(way, "MKCOL", "/a").status_code, ask(way, "MKCOL", "/x/y/z").status_code


@step
def put_and_get_five_megabytes(way):
    put = ask(way, "PUT", "/a/large", pattern(5_000_000)).status_code
    return put, digest(ask(way, "GET", "/a/large").content)


@step
def get_a_range(way):
    answer = ask(way, "GET", "/a/large", Range="bytes=1000-1999")
    return answer.status_code, answer.headers["Content-Range"], digest(answer.content)


@step
def properties(way):
    answer = ask(way, "PROPFIND", "/a", Depth="1")
    return answer.status_code, answer.text.count("<ns0:response>"), "large" in answer.text, answer.headers["Content-Type"]


@step
def move(way):
    base = way.url(f"/{way.name.replace(' ', '-')}")
    answer = ask(way, "MOVE", "/a/large", Destination=f"{base}/a/moved")
    return answer.status_code, ask(way, "GET", "/a/large").status_code, ask(way, "GET", "/a/moved").status_code


@step
def copy(way):
    base = way.url(f"/{way.name.replace(' ', '-')}")
    answer = ask(way, "COPY", "/a/moved", Destination=f"{base}/a/copy")
    return answer.status_code, digest(ask(way, "GET", "/a/copy").content)


@step
def lock_and_write(way):
    body = ('<?xml version="1.0"?><lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope>'
            "<locktype><write/></locktype></lockinfo>")
    answer = ask(way, "LOCK", "/a/copy", body, Timeout="Second-60")
    token = answer.headers.get("Lock-Token", "")
    without = ask(way, "PUT", "/a/copy", b"x").status_code
    held = ask(way, "PUT", "/a/copy", b"x", If=f"({token})").status_code
    return answer.status_code, without, held, ask(way, "UNLOCK", "/a/copy", Lock_Token=token).status_code


@step
def options(way):
    answer = ask(way, "OPTIONS", "/a")
    return answer.status_code, answer.headers.get("DAV"), sorted(answer.headers.get("Allow", "").split(", "))


@step
def cadaver(way):
    (way.work / "file").write_bytes(pattern(100_000))
    commands = f"cd /{way.name.replace(' ', '-')}\nmkcol b\ncd b\nput {way.work}/file one\nmove one two\nget two {way.work}/back\nls\nquit\n"
    said = sh(["cadaver", way.url("/")], commands, env={"HOME": str(way.work), "PATH": "/usr/bin", "TERM": "dumb"})
    return digest(way.work / "back"), said.count("succeeded"), said.count("failed")


@step
def delete(way):
    return ask(way, "DELETE", "").status_code, ask(way, "GET", "/a/moved").status_code
