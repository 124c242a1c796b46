"""An OpenVINO Model Server that pip installs.

The front process (``cli``, ``server``, ``manager``, ``rest``, ``grpc_service``) imports no OpenVINO: it reads the
configuration, checks requests and speaks REST and gRPC. Every graph has a worker process of its own (``worker``),
because openvino-genai keeps Python's global lock while it loads models and steps generations: in one process, a health
probe would wait for them. A graph that crashes or does not load harms no other, and an unloaded one frees its memory.
"""

SERVER_NAME = "OpenVINO Model Server"
SERVER_VERSION = "2026.4.1"
"""The OVMS whose interface and library this is; the version of this package is that of its distribution."""
