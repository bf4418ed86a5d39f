"""A plugin for Piko: says hello to requests for /hello, and lets all others pass with a header."""

from wit_world import exports
from wit_world.imports.types import Response, Verdict_Next, Verdict_Respond


class Lifecycle(exports.Lifecycle):
    def init(self, config):
        pass


class RequestHook(exports.RequestHook):
    def on_request(self, req):
        if req.path_with_query() == "/hello":
            return Verdict_Respond(Response(200, [], b"hello from {{name}}\n"))
        req.set_header("x-plugin", b"{{name}}")
        return Verdict_Next()
