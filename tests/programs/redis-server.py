"""redis over `piko forward`, by redis-cli: values, pipelines, publish and subscribe, a megabyte"""

import subprocess
import time

from common import digest, pattern, sh, step

KIND = "tcp"
NEEDS = ["redis-server", "redis-cli"]


def start(work, port):
    yield ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", work]


def cli(way, *words, **more):
    return sh(["redis-cli", "-h", way.host, "-p", str(way.port), *words], **more)


@step
def set_and_get(way):
    return cli(way, "set", "a", "ü 1"), cli(way, "get", "a"), cli(way, "incrby", f"n-{way.name}", "5")


@step
def a_pipeline_of_ten_thousand(way):
    return cli(way, "--pipe", input="".join(f"SET k{n} v{n}\r\n" for n in range(10_000))).splitlines()[-1]


@step
def a_megabyte(way):
    cli(way, "-x", "set", "large", input=pattern(1_000_000))
    return digest(sh(["redis-cli", "-h", way.host, "-p", str(way.port), "--raw", "getrange", "large", "0", "200000"]).encode())


@step
def publish_and_subscribe(way):
    listener = subprocess.Popen(["redis-cli", "-h", way.host, "-p", str(way.port), "subscribe", "c"], stdout=subprocess.PIPE, text=True)
    head = [listener.stdout.readline().strip() for _ in range(3)]
    time.sleep(1)
    heard = cli(way, "publish", "c", "hello")
    got = [listener.stdout.readline().strip() for _ in range(3)]
    listener.kill()
    listener.wait()
    return head, heard, got


@step
def benchmark(way):
    return sh(["redis-benchmark", "-h", way.host, "-p", str(way.port), "-n", "2000", "-c", "20", "-t", "set,get", "-q"]).count("requests per second")
