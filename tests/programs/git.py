"""git over smart HTTP (git http-backend): clone, push with a chunked body, fetch"""

import os
import pathlib

from common import WAYS, digest, pattern, python, sh, step, tree

KIND = "http"
NEEDS = ["git"]

SERVER = r'''
import http.server, os, subprocess, sys
BACKEND = os.path.join(subprocess.check_output(["git", "--exec-path"], text=True).strip(), "git-http-backend")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
    def do_GET(self):
        path, _, query = self.path.partition("?")
        env = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[2], GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
                   REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""), REMOTE_USER="me",
                   HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
                   GIT_PROTOCOL=self.headers.get("Git-Protocol", ""))
        done = subprocess.run([BACKEND], env=env, input=b"".join(self.body()), stdout=subprocess.PIPE)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        self.send_response(int(status[:3]))
        for name, value in fields:
            if name != "Status": self.send_header(name, value)
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_): pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def git(*command, at, **more):
    env = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", GIT_TERMINAL_PROMPT="0",
               GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@b",
               GIT_AUTHOR_DATE="2026-01-01T00:00:00Z", GIT_COMMITTER_DATE="2026-01-01T00:00:00Z")
    return sh(["git", "-c", "safe.directory=*", "-C", at, *command], env=env, **more)


def start(work, port):
    (work / "seed").mkdir()
    git("init", "-q", "-b", "main", at=work / "seed")
    for n in range(50):
        (work / "seed" / f"file-{n}").write_bytes(pattern(1000 + n))
    git("add", ".", at=work / "seed")
    git("commit", "-q", "-m", "one", at=work / "seed")
    # A repository for each way: what one pushes, the others must not find there.
    for name in (name.replace(" ", "-") for name in WAYS):
        git("clone", "-q", "--bare", "seed", f"{name}.git", at=work)
        git("config", "http.receivepack", "true", at=work / f"{name}.git")
    yield [python(), "-c", SERVER, port, work]


def clone_of(way):
    return way.work / "clone"


@step
def clone(way):
    git("clone", "-q", way.url(f"/{way.name.replace(' ', '-')}.git"), "clone", at=way.work)
    return tree(clone_of(way))


@step
def push_ten_megabytes(way):
    (clone_of(way) / "large").write_bytes(os.urandom(10_000_000))
    (clone_of(way) / "large").write_bytes(pattern(10_000_000)[::-1])
    git("add", ".", at=clone_of(way))
    git("commit", "-q", "-m", "two", at=clone_of(way))
    # Above http.postBuffer (1 MiB) git sends chunks, after asking by an empty request.
    git("-c", "core.compression=0", "push", "-q", "origin", "HEAD:refs/heads/more", at=clone_of(way))
    return git("ls-remote", "origin", at=clone_of(way))


@step
def fetch_into_another(way):
    git("clone", "-q", "-b", "more", "--depth", "1", way.url(f"/{way.name.replace(' ', '-')}.git"), "again", at=way.work)
    return digest(pathlib.Path(way.work / "again" / "large"))


@step
def a_repository_that_is_not_there(way):
    return git("ls-remote", way.url("/none.git"), at=way.work, ok=False)
