"""aria2c and curl from NGINX's files: eight ranges at once, resume, conditional requests, compression, ab"""

import re

from common import digest, pattern, sh, step

KIND = "http"
NEEDS = ["aria2c", "curl", "nginx", "ab"]
REASONS = {"headers_as_the_service_wrote_them": "names travel in HTTP/2, which has lower case alone; nobody may tell them apart (RFC 9110, 5.1)"}


def start(work, port):
    (work / "files").mkdir()
    (work / "files" / "large").write_bytes(pattern(30_000_000))
    (work / "files" / "small.txt").write_text("small\n" * 1000)
    (work / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {work}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; gzip on; gzip_min_length 1;\n"
        + "".join(f"{name}_temp_path {work}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"server {{ listen 127.0.0.1:{port}; root {work}/files; types {{ text/plain txt; }} add_header X-A 1; add_header X-A 2; }} }}\n")
    yield ["nginx", "-c", work / "nginx.conf", "-e", "stderr"]


@step
def eight_ranges_at_once(way):
    sh(["aria2c", "-q", "-x8", "-s8", "-k1M", "--no-conf", "-d", str(way.work), "-o", "got", way.url("/large")])
    return digest(way.work / "got")


@step
def resume(way):
    (way.work / "part").write_bytes(pattern(30_000_000)[:12_345_678])
    sh(["curl", "-sS", "-C", "-", "-o", str(way.work / "part"), way.url("/large")])
    return digest(way.work / "part")


@step
def several_ranges_in_one(way):
    return sh(["curl", "-sS", "-r", "0-9,100-109", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", way.url("/large")])


@step
def a_range_that_is_not_there(way):
    return sh(["curl", "-sS", "-r", "99999999-", "-o", "/dev/null", "-w", "%{http_code}", way.url("/large")])


@step
def headers_as_the_service_wrote_them(way):
    said = sh(["curl", "-sSI", way.url("/large")]).splitlines()
    return sorted(line for line in said[1:] if not re.match("(?i)date|server|connection|keep-alive", line))


@step
def not_modified(way):
    sh(["curl", "-sS", "--etag-save", str(way.work / "tag"), "-o", "/dev/null", way.url("/large")])
    return sh(["curl", "-sS", "--etag-compare", str(way.work / "tag"), "-o", "/dev/null", "-w", "%{http_code}", way.url("/large")])


@step
def compressed(way):
    return sh(["curl", "-sS", "--compressed", "-w", "%{http_code} %header{content-encoding}", "-o", str(way.work / "text"), way.url("/small.txt")]), \
        digest(way.work / "text")


@step
def a_hundred_on_one_connection(way):
    many = [way.url("/small.txt")] * 100
    said = sh(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n"] + [x for u in many for x in ("-o", "/dev/null", u)][2:])
    return sorted(set(said.splitlines()))


@step
def ab_with_http_1_0(way):
    said = sh(["ab", "-q", "-n", "200", "-c", "5", way.url("/small.txt")])
    return re.search(r"Failed requests:\s+(\d+)", said)[1], re.search(r"Complete requests:\s+(\d+)", said)[1]


@step
def ab_that_keeps_connections(way):
    said = sh(["ab", "-q", "-k", "-n", "200", "-c", "5", way.url("/small.txt")])
    return re.search(r"Failed requests:\s+(\d+)", said)[1], re.search(r"Keep-Alive requests:\s+(\d+)", said)[1]
