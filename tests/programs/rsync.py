"""rsync's daemon over `piko forward`: a tree there and back, a change, a deletion"""

from common import pattern, sh, step, tree

KIND = "tcp"
NEEDS = ["rsync"]


def start(work, port):
    (work / "module").mkdir(mode=0o777)
    (work / "rsyncd.conf").write_text(f"use chroot = no\n[m]\npath = {work}/module\nread only = no\nuid = 0\ngid = 0\n")
    yield ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={work}/rsyncd.conf"]


def remote(way, path=""):
    return f"rsync://{way.host}:{way.port}/m/{way.name.replace(' ', '-')}/{path}"


@step
def send_a_tree(way):
    for n in range(200):
        file = way.work / "tree" / str(n % 7) / f"file-{n}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pattern(n * 500))
    (way.work / "tree" / "large").write_bytes(pattern(10_000_000))
    sh(["rsync", "-a", f"{way.work}/tree/", remote(way)])
    sh(["rsync", "-a", remote(way), f"{way.work}/back/"])
    return tree(way.work / "back")


@step
def send_a_change(way):
    large = bytearray(pattern(10_000_000))
    large[5_000_000:5_000_010] = b"0123456789"
    (way.work / "tree" / "large").write_bytes(large)
    (way.work / "tree" / "1" / "file-1").unlink()
    said = sh(["rsync", "-ac", "--delete", "--no-whole-file", "--stats", f"{way.work}/tree/", remote(way)])
    matched = next(line for line in said.splitlines() if "Matched data" in line)
    sh(["rsync", "-ac", "--delete", remote(way), f"{way.work}/back/"])
    return tree(way.work / "back"), matched


@step
def compressed_list(way):
    return len(sh(["rsync", "-rz", "--list-only", remote(way)]).splitlines())
