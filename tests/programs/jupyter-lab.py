"""JupyterLab: its page, its files, and a kernel that computes over a WebSocket"""

import json
import uuid

import requests
import websocket

from common import digest, python, step

KIND = "http"
NEEDS = []
PIP = ["ipykernel", "jupyterlab", "requests", "websocket-client"]
TOKEN = "secret"


def start(work, port):
    yield [python(), "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}",
           f"--ServerApp.root_dir={work}", "--ServerApp.port_retries=0", "--ServerApp.allow_remote_access=True"]


def ask(way, method, path, **more):
    return requests.request(method, way.url(path), headers={"Authorization": f"token {TOKEN}"}, timeout=30, **more)


@step
def page(way):
    answer = ask(way, "GET", "/lab")
    return answer.status_code, "jupyter-config-data" in answer.text


@step
def login_is_asked_for(way):
    answer = requests.get(way.url("/lab"), timeout=20, allow_redirects=False)
    return answer.status_code, answer.headers.get("Location")


@step
def save_and_read_a_notebook(way):
    cells = [{"cell_type": "code", "source": "x" * 100_000, "metadata": {}, "outputs": [], "execution_count": None, "id": "a"}]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    name = way.name.replace(" ", "-") + ".ipynb"
    put = ask(way, "PUT", f"/api/contents/{name}", json={"type": "notebook", "content": content})
    got = ask(way, "GET", f"/api/contents/{name}").json()
    return put.status_code, digest(json.dumps(got["content"]["cells"][0]["source"]).encode())


@step
def a_kernel_computes(way):
    kernel = ask(way, "POST", "/api/kernels").json()["id"]
    session = uuid.uuid4().hex
    url = way.url(f"/api/kernels/{kernel}/channels?session_id={session}&token={TOKEN}", "ws")
    # As a browser does: jupyter compares Origin with Host.
    ws = websocket.create_connection(url, timeout=40, origin=way.url(""))
    head = {"msg_id": uuid.uuid4().hex, "username": "", "session": session, "msg_type": "execute_request", "version": "5.3"}
    ws.send(json.dumps({"header": head, "parent_header": {}, "metadata": {}, "channel": "shell",
                        "content": {"code": "print('x' * 10); 6 * 7", "silent": False, "store_history": False, "user_expressions": {}}}))
    seen = {}
    while "execute_reply" not in seen or "execute_result" not in seen or "stream" not in seen:
        message = json.loads(ws.recv())
        seen[message["header"]["msg_type"]] = message["content"]
    ws.close()
    gone = ask(way, "DELETE", f"/api/kernels/{kernel}").status_code
    return seen["stream"]["text"], seen["execute_result"]["data"]["text/plain"], seen["execute_reply"]["status"], gone


@step
def static_files(way):
    return [ask(way, "GET", path).status_code for path in ("/static/favicons/favicon.ico", "/api", "/api/none")]
