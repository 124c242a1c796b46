"""What the tests of services share: a stub of the engine over a real socket, and a call as the kernel admits it."""

import json
import os
import re
from contextlib import asynccontextmanager

import pytest

from ovms_kernel.testing.hub import FakeHub
from ovms_kernel.testing.stub import StubClient, StubEngine
from ovms_kernel.values import Call

MODELS = {
    "llm": "text_generation",
    "vectors": "embeddings",
    "ranker": "rerank",
    "painter": "image_generation",
    "listener": "speech_to_text",
    "speaker": "text_to_speech",
}


@pytest.fixture
async def stub():
    async with StubEngine() as engine:
        yield engine


@pytest.fixture
async def engine(stub):
    client = StubClient(stub.endpoint, dict(MODELS))
    yield client
    await client.aclose()


@pytest.fixture
def call():
    """Make a call of a request's fields."""

    def make(timeout=None, *, files=None, local_files=True, **body):
        raw = b"" if files else json.dumps(body).encode()
        return Call("c", "s", body.get("model") or "", body, raw, files or {}, timeout=timeout, local_files=local_files)

    return make


@pytest.fixture
def ask(engine, call):
    """Ask a service with a request's fields, and ``files``, and return the decoded answer."""

    async def run(service, **body):
        return json.loads((await service.invoke(call(**body), engine)).body)

    return run


@pytest.fixture
def served():
    """Serve a stub client for a service under test, outside of the fixtures."""

    @asynccontextmanager
    async def run(answers):
        async with StubEngine(answers) as stub:
            client = StubClient(stub.endpoint, dict(MODELS))
            try:
                yield stub, client
            finally:
                await client.aclose()

    return run


def events_in(pieces):
    """The server-sent events of pieces, each of which holds one or several."""
    return re.findall(rb".+?\n\n", b"".join(pieces), re.DOTALL)


TINY = {
    "tiny/text": "text_generation",
    "tiny/embeddings": "embeddings",
    "tiny/rerank": "rerank",
    "tiny/image": "image_generation",
    "tiny/listener": "speech_to_text",
    "tiny/speaker": "text_to_speech",
}


@pytest.fixture(scope="session")
def hub(fixtures):
    """A hub on this machine that offers the tiny model that sees."""
    with FakeHub() as hub:
        hub.add("tiny/vision", fixtures / "vision_text_generation")
        yield hub


@pytest.fixture(scope="session")
async def house(tmp_path_factory, fixtures, hub, inference):
    """The whole kernel with the embedded engine and one tiny model of each type, none of them loaded yet."""
    from ovms_kernel.compose import compose_kernel
    from ovms_kernel.settings import read_settings

    settings = read_settings(
        {},
        data_dir=tmp_path_factory.mktemp("house"),
        platform="portable",
        rest_port=20000 + os.getpid() % 10000,  # two runs at once must not look for the same ports
        grpc_port=30000 + os.getpid() % 10000,
        hubs={"modelscope": {"endpoint": hub.url}},
    )
    async with compose_kernel(settings) as kernel:
        await kernel.install_engine()
        for model, folder in TINY.items():
            await kernel.import_model(fixtures / folder, model)
        yield kernel
