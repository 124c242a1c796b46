"""The engine of ``_services_engine`` with an OVMS's command line, so that a plugin starts it itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import _services_engine as quick

from ovms_kernel.testing.misbehaving import _serve_grpc

AVAILABLE = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": "OK"}}


class Engine(quick.Engine):
    config = Path()

    def data_received(self, data: bytes) -> None:
        path = data[:4096].partition(b" ")[2].partition(b" ")[0]
        if path.startswith(b"/v1/config"):
            entries = json.loads(self.config.read_text("utf-8"))["model_config_list"]
            quick.ANSWERS[path] = quick._json(
                {each["config"]["name"]: {"model_version_status": [AVAILABLE]} for each in entries}
            )
        super().data_received(data)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--rest_port", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--config_path", type=Path)
    options, _ = parser.parse_known_args()
    if options.version:
        print("OpenVINO Model Server 1.0-quick")
        return
    Engine.config = options.config_path
    grpc_server = _serve_grpc(options.port)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", options.rest_port)
    options.config_path.with_name("quick-engine-ready").write_text(str(time.time()))
    await server.serve_forever()
    del grpc_server


if __name__ == "__main__":
    asyncio.run(main())
