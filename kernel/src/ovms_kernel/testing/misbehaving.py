"""A real process that passes for an OVMS and goes wrong on demand.

``python -m ovms_kernel.testing.misbehaving --how … <OVMS flags>`` answers health over REST and gRPC, says of every
model in ``config.json`` that it is available, and otherwise does what ``--how`` says, several of these with commas:

``never-ready``       listens on nothing
``slow=SECONDS``      listens after that time
``busy=SECONDS``      has found its port taken: it answers nothing for that time and then exits with 1, as OVMS does
``exit=CODE``         writes an error to its log and exits at once
``exit-after=COUNT``  exits with code 9 at that request to a generative endpoint, before it answers
``cut``               breaks off in the middle of a stream and exits
``ignore-sigterm``    has to be killed
``hang-after=COUNT``  answers nothing any more after that many requests of any kind
``child``             starts a child that outlives it unless its whole group is ended
``no-grpc``           answers REST only
``version=VERSION``   says that this is its version
``broken``            cannot even tell its version
``fail=MODEL``        says of that model that it could not be loaded
``wedged``            answers its health but no request to a generative endpoint
``leak``              takes memory at such a request until there is none, and is killed as the system would do it
``strict``            ends with an error if ``config.json`` is damaged, as OVMS does
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

VERSION = "2026.3.0-misbehaving"
EVENTS = [b'data: {"choices":[{"index":0,"delta":{"content":"%d "}}]}\n\n' % number for number in range(20)]


def main() -> None:
    """Behave, or not."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--how", default="")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--rest_port", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--config_path", type=Path)
    options, _ = parser.parse_known_args()
    how = {name: value for name, _, value in (each.partition("=") for each in options.how.split(","))}
    if "broken" in how:
        sys.exit("error while loading shared libraries: libmissing.so.1: cannot open shared object file")
    if options.version:
        print(f"OpenVINO Model Server {how.get('version', VERSION)}\nOpenVINO backend 2026.3.0")  # noqa: T201 - a program
        return
    if "exit" in how:
        print("[2026-01-01 00:00:00.000][1][serving][error][main.cpp:1] The disk is made of cheese", flush=True)  # noqa: T201
        os._exit(int(how["exit"]))
    if "ignore-sigterm" in how:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "child" in how:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if "strict" in how:
        json.loads(options.config_path.read_text("utf-8"))
    if "never-ready" in how:
        threading.Event().wait()
    if "busy" in how:
        _wait_on_busy_port(options.rest_port, float(how["busy"]))
    if "slow" in how:
        time.sleep(float(how["slow"]))
    # A gRPC server that nobody holds stops.
    server = _serve_grpc(options.port) if "no-grpc" not in how else None
    _serve_rest(options, how)
    del server


def _serve_grpc(port: int) -> Any:  # noqa: ANN401 - grpc's own
    """Answer health over gRPC and return the server."""
    import grpc

    from ovms_kernel.engine.protos import ovms_kserve_pb2 as kserve

    class Health(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:  # noqa: ANN401 - grpc's own
            name = details.method.rpartition("/")[2]
            if name != "ServerLive":
                return None
            return grpc.unary_unary_rpc_method_handler(
                lambda _request, _context: kserve.ServerLiveResponse(live=True),
                request_deserializer=kserve.ServerLiveRequest.FromString,
                response_serializer=kserve.ServerLiveResponse.SerializeToString,
            )

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Health(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


def _wait_on_busy_port(port: int, seconds: float) -> None:
    """Stand for the other program on the port, which accepts connections and answers nothing, and for OVMS's end."""
    with socket.create_server(("127.0.0.1", port)):
        time.sleep(seconds)
    print(  # noqa: T201 - a program
        f"[2026-01-01 00:00:00.000][1][serving][error][server.cpp:1] Failed to start REST server at port {port}",
        flush=True,
    )
    os._exit(1)


def _leak() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    taken = []
    try:
        while True:
            taken.append(bytearray(64 << 20))
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)


class _Handler(BaseHTTPRequestHandler):
    """Answers as the words in ``how`` say."""

    options: ClassVar[argparse.Namespace]
    how: ClassVar[dict[str, str]]
    count: ClassVar[dict[str, int]] = {"all": 0, "generative": 0}
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.count["all"] += 1
        if "hang-after" in self.how and self.count["all"] > int(self.how["hang-after"]):
            threading.Event().wait()
        entries = json.loads(self.options.config_path.read_text("utf-8"))["model_config_list"]
        if self.path.startswith("/v2/models/"):
            name = unquote(self.path.removeprefix("/v2/models/").removesuffix("/ready"))
            self._answer({}, 200 if name in [each["config"]["name"] for each in entries] else 404)
        elif self.path.startswith("/v1/config"):
            self._answer({each["config"]["name"]: self._status(each["config"]["name"]) for each in entries})
        else:
            self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if not self.path.startswith("/v3/"):
            return self.do_GET()
        self.count["generative"] += 1
        if "wedged" in self.how:
            threading.Event().wait()
        if "leak" in self.how:
            _leak()
        if "exit-after" in self.how and self.count["generative"] >= int(self.how["exit-after"]):
            os._exit(9)
        if not body.get("stream"):
            return self._answer({"object": "answer", "choices": [], "asked": body})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate([*EVENTS, b"data: [DONE]\n\n"]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            if "cut" in self.how and number == 5:
                os._exit(9)
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _status(self, name: str) -> dict[str, Any]:
        state, code = ("LOADING", "FAILED_PRECONDITION") if self.how.get("fail") == name else ("AVAILABLE", "OK")
        status = {"error_code": code, "error_message": code}
        return {"model_version_status": [{"version": "1", "state": state, "status": status}]}

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _serve_rest(options: argparse.Namespace, how: dict[str, str]) -> None:
    _Handler.options, _Handler.how = options, how
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", options.rest_port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
