"""The faults, one function each: causes it, and says what its clients saw and whether that is what is wanted."""
import asyncio, collections, signal, time

import hosts, lab
from lab import AGENTS, BAD_SERVICE, CLIENTS, SERVICE, active, agent, all_active, cluster, metric, nginx, node, port, ready, serving, until
from load import Connection, Load, frame, websocket

#: Name, what is wanted, the function, in the order of the report.
CASES = []
MIXED = ("GET", "POST")


def case(what, wanted):
    def add(function):
        CASES.append((function.__name__, what, wanted, function))
        return function
    return add


async def up(agents_on=(1, 2), nodes=3, *more, tunnels=1):
    """A service, nodes, and an agent on each of those."""
    service, running = lab.service(), await cluster(nodes, *more)
    agents = [agent(f"agent{number}", port(number, 1), SERVICE, "e", f"--connect.tunnels={tunnels}") for number in agents_on]
    if agents:
        await serving([port(number, 0) for number in running])
        await asyncio.sleep(0.5)
    return service, running, agents


def proxies(numbers=(1, 2, 3)):
    return [port(number, 0) for number in numbers]


async def home():
    """The node that has the only tunnel."""
    return [number for number in (1, 2, 3) if await metric(number, "piko_upstream_tunnels") == 1][0]


async def bad_service(mode, *more):
    # A client that waits for a minute sees no more of a service that hangs than one that waits for five seconds.
    await up([1], 3, "--proxy.timeout=5s", *more)
    if mode != "dead":
        lab.service(BAD_SERVICE, mode)
    agent("bad", port(2, 1), BAD_SERVICE)
    await asyncio.sleep(1.5)
    load = Load(proxies(), 100, MIXED)
    await asyncio.sleep(10)
    middle = time.time()
    await asyncio.sleep(10)
    await load.stop()
    good = len(load.failed()) <= len(load.log) / 100 and not load.failed(middle)
    return f"{load.said()}; second half {load.said(middle)}", good


@case("the service of one of two agents refuses connections", "≤ 1 % fail, second half 0")
async def service_dead():
    return await bad_service("dead")


@case("the service of one of two agents never answers", "≤ 1 % fail, second half 0 (`proxy.timeout: 5s`)")
async def service_hangs():
    return await bad_service("hang")


@case("an agent is frozen (SIGSTOP, 20 s), another is there", "no GET waits > 2.5 s, no POST that begins later than 2.5 s > 2 s")
async def freeze_agent():
    _, _, agents = await up([1, 2])
    load, begun = Load(proxies(), 60, MIXED), time.time()
    await asyncio.sleep(1)
    agents[0].send_signal(signal.SIGSTOP)
    await asyncio.sleep(20)
    agents[0].send_signal(signal.SIGCONT)
    await asyncio.sleep(3)
    await load.stop()
    # What was sent to the agent while nobody knew may be done by its service: it waits for it, and is not sent twice.
    longest = lambda method, since=0.0: max(one[1] for one in load.log if one[3] == method and one[0] >= since)
    get, post = longest("GET"), longest("POST", begun + 1 + 2.5)
    good = not any(one[3] == "GET" for one in load.failed()) and get < 2.5 and post < 2
    return f"{load.said()} failed; the longest GET took {get:.1f} s, POST from 2.5 s on {post:.1f} s", good


@case("the service of one of two agents answers 500 (`health.eject_on_5xx`)", "≤ 1 % fail, second half 0")
async def service_500():
    return await bad_service("500", "--health.eject-on-5xx=true")


@case("the clock of who makes tokens is 3 s before the node's, and 3 s behind", "refused until they are good, and from when they are not; none else")
async def token_skew():
    key = "0123456789abcdef0123456789abcdef"
    lab.service()
    node(1, 1, f"--proxy.auth.hmac-secret-key={key}", f"--upstream.auth.hmac-secret-key={key}")
    await until("the node is ready", lambda: ready(1))
    token = lambda **claims: lab.token(key, {"piko": {"endpoints": ["e"]}, **claims})
    good = token(exp=int(time.time()) + 600)
    agent("agent", port(1, 1), SERVICE, "e", f"--connect.token={good}")
    async def ask(token):
        return (await Connection(port(1, 0)).ask("e", headers=[("Authorization", f"Bearer {token}")]))[0]
    async def serves():
        return await ask(good) == 200
    await until("the agent serves", serves)
    turn = int(time.time()) + 3
    early, late = token(nbf=turn, exp=turn + 600), token(exp=turn)
    # Nobody asks in the second in which they turn: the claims have whole seconds.
    wrong, asked = collections.Counter(), 0
    while (now := time.time()) < turn + 4:
        if not turn - 0.2 < now < turn + 1.2:
            later = now > turn
            said = {"early": (await ask(early), 200 if later else 401), "late": (await ask(late), 401 if later else 200), "good": (await ask(good), 200)}
            wrong.update(f"{name} {status}" for name, (status, right) in said.items() if status != right)
            asked += len(said)
        await asyncio.sleep(0.05)
    return f"{sum(wrong.values())} of {asked} not as the token says {dict(wrong) or ''}".strip(), not wrong


@case("3,000 endpoints of one agent at one node, which is killed (-9)", "each is served by another node after 5 s")
async def many_endpoints():
    names = [f"e{n}" for n in range(3_000)]
    lab.service()
    nodes = (await cluster(3))
    nginx(proxies(), [port(number, 1) for number in nodes])
    config = lab.scratch / "many.yaml"
    listeners = "".join(f"  - endpoint_id: {name}\n    addr: 127.0.0.1:{SERVICE}\n" for name in names)
    config.write_text(f"connect:\n  url: http://127.0.0.1:{AGENTS}\n  tunnels: 1\nlisteners:\n{listeners}access_log:\n  disable: true\n")
    lab.start("many", lab.PIKO, "agent", f"--config.path={config}")
    async def one_has_it():
        return sum([await metric(number, "piko_upstream_tunnels") for number in nodes]) == 1
    await until("the tunnel", one_has_it)
    goes = await home()
    others = proxies([number for number in nodes if number != goes])
    async def all_served():
        connection = Connection(others[0])
        return all([(await connection.ask(name))[0] == 200 for name in names])
    await until("all endpoints", all_served)
    nodes[goes].kill()
    await asyncio.sleep(5)
    statuses = collections.Counter()
    for at in others:
        connection = Connection(at)
        for name in names:
            statuses[(await connection.ask(name))[0]] += 1
    return f"{dict(statuses)}", set(statuses) == {200}


@case("150 agents of an endpoint each, their node is killed (-9)", "all are back within 15 s, none fails then")
async def reconnect_storm():
    lab.service()
    nodes = await cluster(3)
    nginx(proxies(), [port(number, 1) for number in nodes])
    # One program is one agent: a hundred and fifty of them are what a small machine has room for.
    for n in range(150):
        agent(f"storm{n}", AGENTS, SERVICE, f"s{n}", "--connect.tunnels=1")
    async def tunnels():
        return sum([await metric(number, "piko_upstream_tunnels") for number in nodes if nodes[number].poll() is None])
    async def all_there():
        return await tunnels() == 150
    await until("150 tunnels", all_there, 120)
    goes = max([(await metric(number, "piko_upstream_tunnels"), number) for number in nodes])[1]
    lost, begun = await metric(goes, "piko_upstream_tunnels"), time.time()
    nodes[goes].kill()
    await until("150 tunnels again", all_there, 60)
    took = time.time() - begun
    await asyncio.sleep(1)
    statuses = collections.Counter()
    for at in proxies([number for number in nodes if number != goes]):
        connection = Connection(at)
        for n in range(150):
            statuses[(await connection.ask(f"s{n}"))[0]] += 1
    return f"{lost:.0f} tunnels back after {took:.1f} s; {dict(statuses)}", took < 15 and set(statuses) == {200}


@case("the node of the only agent is frozen (SIGSTOP, 20 s), clients at others", "down ≤ 1 s, none waits > 2.5 s")
async def freeze_sole_node():
    _, nodes, _ = await up([], 3)
    nginx(proxies(), [port(number, 1) for number in (1, 2, 3)])
    agent("agent", AGENTS)
    await serving(proxies())
    async def two():
        return sum([await metric(number, "piko_upstream_tunnels") for number in nodes]) == 2
    await until("two tunnels", two)
    with_it = [number for number in nodes if await metric(number, "piko_upstream_tunnels")]
    load = Load(proxies([number for number in nodes if number != with_it[0]]), 60)
    await asyncio.sleep(1)
    nodes[with_it[0]].send_signal(signal.SIGSTOP)
    await asyncio.sleep(20)
    nodes[with_it[0]].send_signal(signal.SIGCONT)
    await asyncio.sleep(3)
    await load.stop()
    return f"{load.said()} failed, the longest took {load.longest():.1f} s", load.gap() <= 1 and load.longest() < 2.5


@case("a node is frozen (SIGSTOP, 20 s) that has one of two agents", "none waits > 2.5 s (GET)")
async def freeze_node():
    _, nodes, _ = await up([1, 2])
    load = Load(proxies([2, 3]), 60)
    await asyncio.sleep(1)
    nodes[1].send_signal(signal.SIGSTOP)
    await asyncio.sleep(20)
    nodes[1].send_signal(signal.SIGCONT)
    healed = await until("all are active again", lambda: all_active(nodes))
    await load.stop()
    return (f"{load.said()} failed, the longest took {load.longest():.1f} s; whole again after {healed:.1f} s",
            not load.failed() and load.longest() < 2.5)


@case("two nodes cut from each other (20 s) while both see a third, clients at one, the agent at the other", "≤ 1 % from 2 s on; the status names the cut link")
async def cut_link():
    nodes = await hosts.cluster()
    hosts.agent(2, "far")
    load = Load([hosts.PROXY], 60, endpoint="far", limit=8, address=hosts.address(1))
    async def served():
        return load.log and load.log[-1][2] == 200
    await until("the endpoint is served", served)
    load.log.clear()
    await asyncio.sleep(1)
    begun = time.time()
    hosts.between(nodes, 1, 2, "add")
    async def named():
        links = {one["id"][:2]: {far[:2] for far in one["links"]} for one in await hosts.status(3)}
        return links == {"n1": {"n3"}, "n2": {"n3"}, "n3": {"n1", "n2"}}
    shown = await until("the status names the cut link", named, 15)
    await asyncio.sleep(20 - (time.time() - begun))
    hosts.between(nodes, 1, 2, "del")
    healed = await until("all is whole again", hosts.whole)
    await asyncio.sleep(1)
    await load.stop()
    later = sum(one[0] >= begun + 2 for one in load.log)
    return (f"{load.said()} failed, from 2 s on {load.said(begun + 2)}, the longest took {load.longest():.1f} s; shown after {shown:.1f} s, whole again after {healed:.1f} s",
            len(load.failed(begun + 2)) <= later / 100)


@case("SIGTERM with WebSockets open on the node, POSTs of 1.5 s, grace 6 s", "0 taken and cut")
async def drain_with_streams():
    _, nodes, _ = await up([1, 2], 3, "--grace-period=6s")
    sockets = [await websocket(port(1, 0)) for _ in range(8)]
    for reader, writer in sockets:
        writer.write(frame())
        await reader.read(10)
    begun, came = time.time(), collections.Counter()
    nodes[1].send_signal(signal.SIGTERM)
    async def post():
        connection = Connection(port(1, 0))
        try:
            status, _ = await connection.ask("e", "POST", "/slow/1500", b"x")
            came["answered" if status == 200 else f"refused {status}"] += 1
        except ConnectionRefusedError:
            came["refused"] += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            came["cut"] += 1
        connection.close()
    tasks = []
    while time.time() < begun + 7:
        tasks.append(asyncio.create_task(post()))
        await asyncio.sleep(0.1)
    await asyncio.wait(tasks)
    codes = collections.Counter()
    for reader, _ in sockets:
        last = await asyncio.wait_for(reader.read(100), 2)
        codes[int.from_bytes(last[2:4], "big") if last[:1] == b"\x88" else "no close frame"] += 1
    said = ", ".join(f"{count} {what}" for what, count in came.items())
    return f"{said}; WebSockets: {', '.join(f'{count} × {code}' for code, count in codes.items())}", not came["cut"] and codes[1001] == 8


@case("GET and POST on kept connections, no fault at all (24,000)", "0 lost")
async def kept():
    await up([1], 1)
    lost = 0
    async def client(method, body):
        nonlocal lost
        connection = Connection(port(1, 0))
        for _ in range(500):
            try:
                lost += (await connection.ask("e", method, "/", body))[0] != 200
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                lost += 1
                connection.close()
        connection.close()
    for method, body in (("GET", b""), ("POST", b"x"), ("POST", b"x" * 100_000)):
        await asyncio.gather(*(client(method, body) for _ in range(16)))
    return f"{lost} of 24,000", not lost


@case("three rolling restarts (SIGTERM) behind NGINX", "0 failed, 0 event streams of 3 s cut, WebSockets told 1001")
async def rolling():
    _, nodes, _ = await up([], 3, "--grace-period=5s")
    nginx(proxies(), [port(number, 1) for number in nodes])
    for name in ("a", "b"):
        agent(name, AGENTS)
    await serving([*proxies(), CLIENTS])
    streams, sockets, on = collections.Counter(), collections.Counter(), True
    async def events():
        while on:
            connection = Connection(CLIENTS)
            try:
                status, body = await connection.ask("e", path="/stream/3")
                streams["whole" if status == 200 and len(body) > 100 else status] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                streams["cut"] += 1
            connection.close()
    async def messages():
        while on:
            try:
                reader, writer = await websocket(CLIENTS)
                sockets["opened"] += 1
                while on:
                    writer.write(frame())
                    told = await asyncio.wait_for(reader.read(100), 10)
                    if not told or told[0] & 15 == 8:
                        sockets[f"told {int.from_bytes(told[2:4], 'big')}" if told else "cut"] += 1
                        break
                    await asyncio.sleep(0.1)
                writer.close()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                sockets[type(error).__name__] += 1
                await asyncio.sleep(0.1)
    load, slow = Load([CLIENTS], 150, MIXED), Load([CLIENTS], 20, path="/slow/1000")
    side = [asyncio.create_task(events()) for _ in range(6)] + [asyncio.create_task(messages()) for _ in range(10)]
    await asyncio.sleep(2)
    for number in nodes:
        nodes[number].send_signal(signal.SIGTERM)
        await until("it has ended", lambda: asyncio.sleep(0, nodes[number].poll() is not None))
        nodes[number] = node(number, 3, "--grace-period=5s")
        await until(f"node {number} is ready", lambda: ready(number))
        await until("all are active", lambda: all_active(nodes))
        await asyncio.sleep(1)
    on = False
    await load.stop()
    await slow.stop()
    await asyncio.wait(side, timeout=12)
    cut = sum(count for what, count in streams.items() if what != "whole")
    wrong = sockets["cut"]
    return (f"{load.said()}; of 1 s {slow.said()}; event streams {dict(streams)}; WebSockets {dict(sockets)}",
            not load.failed() and not slow.failed() and not cut and not wrong)


def spared(load):
    """No GET failed, and of POSTs no more than were at work: nobody may send them twice."""
    failed = load.failed()
    return len(failed) <= 20 and not any(one[3] == "GET" for one in failed)


async def killed(victim, load_ports, after=5, **how):
    load = Load(load_ports, 300, MIXED, **how)
    await asyncio.sleep(1)
    victim.kill()
    await asyncio.sleep(after)
    await load.stop()
    return load


@case("kill -9 of a node with one of two agents, clients at others", "0 GETs fail, POSTs that were at work may")
async def kill_node():
    _, nodes, _ = await up([1, 2])
    load = await killed(nodes[1], proxies([2, 3]))
    return load.said(), spared(load)


@case("kill -9 of the node that has the only tunnel, agent through NGINX", "0 GETs fail, POSTs that were at work may")
async def kill_sole_node():
    _, nodes, _ = await up([])
    nginx(proxies(), [port(number, 1) for number in nodes])
    agent("agent", AGENTS, SERVICE, "e", "--connect.tunnels=1")
    await serving(proxies())
    at = await home()
    load = await killed(nodes[at], proxies([number for number in nodes if number != at]))
    return load.said(), spared(load)


@case("kill -9 of a node, clients and agents through NGINX", "0 GETs fail, POSTs that were at work may")
async def kill_behind_nginx():
    _, nodes, _ = await up([])
    nginx(proxies(), [port(number, 1) for number in nodes])
    for name in ("a", "b"):
        agent(name, AGENTS)
    await serving([*proxies(), CLIENTS])
    load = await killed(nodes[1], [CLIENTS], keep=False)
    return load.said(), spared(load)


@case("kill -9 of one of two agents", "0 GETs fail, POSTs that were at work may")
async def kill_agent():
    _, _, agents = await up([1, 2])
    load = await killed(agents[0], proxies())
    return load.said(), spared(load)


@case("kill -9 of the only agent, another starts at once", "0 GETs fail, POSTs that were at work may")
async def replace_agent():
    _, _, agents = await up([1])
    load = Load(proxies(), 300, MIXED)
    await asyncio.sleep(1)
    agents[0].kill()
    agent("another", port(1, 1))
    await asyncio.sleep(4)
    await load.stop()
    return load.said(), spared(load)


@case("kill -9 of the service, back after 1 s", "each fails at once, none from 1 s after it is back")
async def kill_service():
    service, _, _ = await up([1, 2])
    load = Load(proxies(), 100, MIXED)
    await asyncio.sleep(1)
    service.kill()
    service.wait()
    await asyncio.sleep(1)
    lab.service()
    await serving([SERVICE])
    since = time.time() + 1
    await asyncio.sleep(4)
    await load.stop()
    slowest = max((one[1] for one in load.failed()), default=0)
    return f"{load.said()}, each within {slowest * 1e3:.0f} ms; later {load.said(since)}", not load.failed(since) and slowest < 2


@case("300 uploads of a byte a second", "others answer within 1 s")
async def slow_uploads():
    await up([1], 1)
    writers = []
    for _ in range(150):
        _, writer = await asyncio.open_connection("127.0.0.1", port(1, 0))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: e\r\nContent-Length: 1000000\r\n\r\n")
        writers.append(writer)
    load = Load([port(1, 0)], 50)
    for _ in range(5):
        for writer in writers:
            writer.write(b"x")
        await asyncio.sleep(1)
    await load.stop()
    for writer in writers:
        writer.transport.abort()
    return f"{load.said()} failed, the longest took {load.longest() * 1e3:.0f} ms", not load.failed() and load.longest() < 1


@case("40 clients that stop reading (64 MiB each), others on the same tunnel", "others answer within 1 s")
async def stalled_readers():
    await up([1], 1)
    writers = []
    for _ in range(40):
        _, writer = await asyncio.open_connection("127.0.0.1", port(1, 0), limit=1024)
        writer.write(b"GET /big/64 HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: e\r\n\r\n")
        writers.append(writer)
    await asyncio.sleep(2)
    load = Load([port(1, 0)], 20, limit=8)
    await asyncio.sleep(8)
    await load.stop()
    for writer in writers:
        writer.transport.abort()
    return f"{load.said()} failed, the longest took {load.longest() * 1e3:.0f} ms", not load.failed() and load.longest() < 1


async def goodput(number, clients, seconds=6):
    """Requests of 100 ms, from so many clients that ask again at once, and give up after 1 s. Good answers a second."""
    good, shed, until_ = 0, [], time.time() + seconds
    async def client():
        nonlocal good
        while time.time() < until_:
            connection, begun = Connection(number), time.time()
            try:
                status, _ = await connection.ask("e", path="/slow/100", limit=1)
                good += status == 200
                if status == 503:
                    shed.append(time.time() - begun)
                    await asyncio.sleep(0.2)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                pass
            connection.close()
    await asyncio.gather(*(client() for _ in range(clients)))
    return good / seconds, sorted(shed)


@case("three times as many requests as there are places (20 places, requests of 100 ms)", "goodput ≥ 0.9 of that at capacity")
async def overload():
    await up([1], 1, "--proxy.limits.per-endpoint=20", "--proxy.limits.queue=10")
    at, _ = await goodput(port(1, 0), 20)
    over, shed = await goodput(port(1, 0), 60)
    median = shed[len(shed) // 2] * 1e3 if shed else 0
    return f"{at:.0f}/s at capacity, {over:.0f}/s above it; {len(shed)} × 503, half of them within {median:.0f} ms", over >= 0.9 * at


@case("the agent of half of 40 clients with affinity is killed, and another comes", "only those of agents that go or come move")
async def affinity():
    path = lab.scratch / "affinity.yaml"
    path.write_text("proxy: {endpoints: {e: {affinity: {header: x-user}}}}\n")
    lab.service()
    lab.service(BAD_SERVICE)
    await cluster(3, f"--config.path={path}")
    first, second = agent("first", port(1, 1)), agent("second", port(2, 1), BAD_SERVICE)
    await serving(proxies())
    async def owners():
        owners, unsure = [], 0
        for user in range(40):
            seen = set()
            for number in proxies():
                connection = Connection(number)
                status, body = await connection.ask("e", headers=[("x-user", f"user-{user}")])
                connection.close()
                seen.add((status, body))
            unsure += len(seen) != 1
            owners.append(min(seen)[1])
        return owners, unsure
    await asyncio.sleep(1)
    before, unsure = await owners()
    first.kill()
    await asyncio.sleep(0.5)
    after, unsure_after = await owners()
    moved = sum(a != b for a, b in zip(before, after))
    due = sum(one == str(SERVICE).encode() for one in before)
    agent("third", port(3, 1))
    await asyncio.sleep(1)
    last, unsure_last = await owners()
    came = sum(a != b for a, b in zip(after, last))
    return (f"{moved} moved of the {due} that it had; {came} of 40 moved to the one that came; nodes disagreed on {unsure + unsure_after + unsure_last}",
            moved == due and 0 < came < 40 and not unsure + unsure_after + unsure_last)
