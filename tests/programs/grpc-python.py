"""gRPC (grpcio): all four kinds of call, metadata, statuses, deadlines, large messages"""

import time

import grpc

from common import digest, pattern, python, step

KIND = "h2c"
NEEDS = []
PIP = ["grpcio"]
REASONS = {("not_there", "Caddy"): "of every twenty answers that are trailers alone, Caddy 2.6 passes one without its status, in front of the service "
           "itself, too"}
SERVER = r'''
import concurrent.futures, sys, time
import grpc
def unary(request, context):
    context.set_trailing_metadata((("trailing", "t"),)); context.send_initial_metadata((("initial", "i"),))
    if request == b"fail": context.abort(grpc.StatusCode.FAILED_PRECONDITION, "grün, as asked")
    if request == b"sleep": time.sleep(5)
    if request == b"who": return dict(context.invocation_metadata()).get("who", "").encode()
    return request
def server(request, context):
    for n in range(int(request)): yield b"%d" % n
def client(requests, context): return b"%d" % sum(len(r) for r in requests)
def both(requests, context):
    for r in requests: yield r[::-1]
handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary), "Server": grpc.unary_stream_rpc_method_handler(server),
            "Client": grpc.stream_unary_rpc_method_handler(client), "Both": grpc.stream_stream_rpc_method_handler(both)}
options = [("grpc.max_receive_message_length", 64 << 20)]
s = grpc.server(concurrent.futures.ThreadPoolExecutor(20), options=options)
s.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
s.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"); s.start(); s.wait_for_termination()
'''


def start(work, port):
    yield [python(), "-c", SERVER, port]


def channel(way):
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
    if way.tls:
        return grpc.secure_channel(way.authority, grpc.ssl_channel_credentials(), options=options)
    return grpc.insecure_channel(way.authority, options=options)


@step
def unary(way):
    with channel(way) as c:
        return c.unary_unary("/test.Test/Unary")(b"hello", timeout=15)


@step
def server_stream(way):
    with channel(way) as c:
        return len(list(c.unary_stream("/test.Test/Server")(b"2000", timeout=30)))


@step
def client_stream(way):
    with channel(way) as c:
        return c.stream_unary("/test.Test/Client")((pattern(10_000) for _ in range(300)), timeout=30)


@step
def both_streams(way):
    with channel(way) as c:
        return digest(b"".join(c.stream_stream("/test.Test/Both")((b"%d" % n for n in range(1000)), timeout=30)))


@step
def metadata(way):
    with channel(way) as c:
        answer, call = c.unary_unary("/test.Test/Unary").with_call(b"who", timeout=15, metadata=(("who", "me"), ("x-bin", b"\x00\xff")))
        return answer, dict(call.initial_metadata()).get("initial"), dict(call.trailing_metadata()).get("trailing")


@step
def status(way):
    with channel(way) as c:
        try:
            c.unary_unary("/test.Test/Unary")(b"fail", timeout=15)
        except grpc.RpcError as e:
            return e.code().name, e.details()


@step
def deadline(way):
    with channel(way) as c:
        began = time.monotonic()
        try:
            c.unary_unary("/test.Test/Unary")(b"sleep", timeout=1)
        except grpc.RpcError as e:
            return e.code().name, time.monotonic() - began < 4


@step
def cancelled(way):
    with channel(way) as c:
        call = c.unary_unary("/test.Test/Unary").future(b"sleep")
        time.sleep(0.5)
        call.cancel()
        return call.cancelled(), c.unary_unary("/test.Test/Unary")(b"next", timeout=15)


@step
def large_message(way):
    with channel(way) as c:
        return digest(c.unary_unary("/test.Test/Unary")(pattern(20_000_000), timeout=40))


@step
def not_there(way):
    with channel(way) as c:
        try:
            c.unary_unary("/test.Test/None")(b"x", timeout=15)
        except grpc.RpcError as e:
            return e.code().name


@step
def many_calls(way):
    with channel(way) as c:
        call = c.unary_unary("/test.Test/Unary")
        return len([f.result() for f in [call.future(b"%d" % n, timeout=30) for n in range(1000)]])
