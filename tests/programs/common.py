"""What the programs share: where a way leads, steps, and how to run a command."""

import dataclasses
import hashlib
import pathlib
import socket
import ssl
import subprocess

# No step takes longer than this.
STEP_SECONDS = 60
# All ways, in the order in which they are gone.
WAYS = ["direct", "one node", "two nodes", "HTTPS", "NGINX", "HAProxy", "Caddy", "Envoy"]


@dataclasses.dataclass
class Way:
    """One way to a program: direct, or through nodes."""

    name: str
    # The program's own name, which is its endpoint's, too.
    host: str
    # Where that name leads.
    addr: str
    port: int
    # A folder of this way's own.
    work: pathlib.Path
    # By TLS, with HTTP/2 for clients that ask for it.
    tls: bool = False

    @property
    def authority(self):
        return f"{self.host}:{self.port}"

    def url(self, path="/", scheme="http"):
        return f"{scheme}{'s' if self.tls else ''}://{self.authority}{path}"

    def connect(self):
        """A bare connection."""
        bare = socket.create_connection((self.addr, self.port), 20)
        return ssl.create_default_context().wrap_socket(bare, server_hostname=self.host) if self.tls else bare


def step(function):
    """A step: its value has to be the same on every way. Steps of a file run in the order they are written in."""
    function.is_step = True
    return function


def sh(command, input=None, ok=True, **more):
    """Runs a command; its output, errors included. `ok`: it has to succeed."""
    if isinstance(input, str):
        input = input.encode()
    done = subprocess.run(command, input=input, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=STEP_SECONDS - 5, shell=isinstance(command, str), **more)
    text = done.stdout.decode(errors="replace").strip()
    if ok and done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {text[-300:]}")
    return text


def pattern(size):
    """Bytes that no two places of have in common, the same each time."""
    block = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(2048))
    return (block * (size // len(block) + 1))[:size]


def digest(data):
    if isinstance(data, (str, pathlib.Path)):
        data = pathlib.Path(data).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def tree(folder):
    """What is in a folder: names and contents, as one digest."""
    files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file() and ".git" not in p.parts)
    return digest("".join(f"{p.relative_to(folder)} {digest(p)}\n" for p in files).encode())


def python():
    import sys

    return sys.executable
