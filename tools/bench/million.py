#!/usr/bin/env python3
"""make million: a million mixed requests on kept connections, of which none may be lost. million.py [PROGRAM] [REQUESTS]

GET, DELETE, POST and PUT with bodies of 0 to 70,000 bytes, by length and in chunks, by HTTP/1 and HTTP/2, straight to the
agent's node and by way of another one. A request is lost when its connection ends before its answer, when its answer is late,
no 200, or has a body of another size than any that was asked for. Ends after MINUTES, whatever has come by then.
"""
import re, subprocess, sys, time
from pathlib import Path

import parts
from load import flags
from parts import Node, agent, free_port, get, scratch, start, stop_all, wait_for

MINUTES = 20
SLICE_S = 10
#: Of bodies, bytes: both sides of a read, a frame, and what is held for another try.
SIZES = (0, 1, 500, 10_000, 16_384, 70_000)

SCRIPT = """
local sizes = {%s}
local requests, sizes_of, next_one, threads = {}, {[13] = true}, 0, {}
bad = 0
function setup(thread) table.insert(threads, thread) end
function init()
  table.insert(requests, wrk.format("GET", "/"))
  table.insert(requests, wrk.format("DELETE", "/"))
  for _, size in ipairs(sizes) do
    local body = string.rep("x", size)
    table.insert(requests, wrk.format("GET", "/bytes/" .. size))
    sizes_of[size] = true
    if size > 0 then
      -- The service answers how many bytes came.
      sizes_of[-size] = true
      table.insert(requests, wrk.format("POST", "/", nil, body))
      table.insert(requests, wrk.format("PUT", "/", nil, body))
      wrk.headers["Transfer-Encoding"] = "chunked"
      local head = wrk.format("POST", "/")
      wrk.headers["Transfer-Encoding"] = nil
      table.insert(requests, head .. string.format("%%x\\r\\n", size) .. body .. "\\r\\n0\\r\\n\\r\\n")
    end
  end
end
function request()
  next_one = next_one %% #requests + 1
  return requests[next_one]
end
function response(status, headers, body)
  if status ~= 200 or not (sizes_of[#body] or sizes_of[-(tonumber(body) or 0)]) then bad = bad + 1 end
end
function done()
  local all = 0
  for _, thread in ipairs(threads) do all = all + thread:get("bad") end
  io.write("bad ", all, "\\n")
end
"""


def http1(port, script):
    """So many requests, and how many of them were lost."""
    args = ["wrk", "-t1", "-c64", f"-d{SLICE_S}s", "--timeout", "20s", *flags(), "-s", script, f"http://127.0.0.1:{port}"]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    lost = sum(map(int, errors.groups())) if errors else 0
    return int(re.search(r"(\d+) requests in", out)[1]), lost + int(re.search(r"^bad (\d+)", out, re.M)[1])


def http2(port, body):
    count = 20_000
    args = ["h2load", "-t1", "-c10", "-m10", f"-n{count}", *flags(), *(["-d", body] if body else []), f"http://127.0.0.1:{port}/"]
    out = subprocess.run(args, capture_output=True, text=True, check=True, timeout=120).stdout
    succeeded = int(re.search(r"(\d+) succeeded", out)[1])
    return count, count - succeeded


def main():
    if len(sys.argv) > 1:
        parts.PIKO = Path(sys.argv[1]).resolve()
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    origin = free_port()
    start("origin", parts.PIKO, "bench", "origin", "--bind", f"127.0.0.1:{origin}")
    a = Node("node-a")
    b = Node("node-b", join=a)
    agent("agent", a.upstream, f"bench/127.0.0.1:{origin}")
    for node in (a, b):
        wait_for("the endpoint is there", lambda: get(node.proxy)[0] == 200)
    script, body = scratch / "mixed.lua", scratch / "body"
    script.write_text(SCRIPT % ", ".join(map(str, SIZES)))
    body.write_bytes(bytes(10_000))
    ways = [lambda: http1(a.proxy, script), lambda: http1(b.proxy, script), lambda: http2(a.proxy, None), lambda: http2(b.proxy, body)]
    sent = lost = turns = 0
    end = time.monotonic() + 60 * MINUTES
    while sent < wanted and time.monotonic() < end:
        more, missing = ways[turns % len(ways)]()
        sent, lost, turns = sent + more, lost + missing, turns + 1
    print(f"{sent:,} requests, {lost:,} lost")
    if sent < wanted:
        sys.exit(f"no more than {sent:,} of {wanted:,} requests within {MINUTES} minutes")
    sys.exit(lost > 0)


try:
    main()
finally:
    stop_all()
