"""What the services say is the smallest request really is one, to a real engine with real models."""

import logging
from pathlib import Path
from typing import Any

import pytest

from ovms_graph_embeddings import Embeddings
from ovms_graph_rerank import Rerank as RerankGraph
from ovms_graph_text_generation import TextGeneration
from ovms_kernel.compose import compose_kernel
from ovms_kernel.extensions import Extensions
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.values import Host
from ovms_platform_portable import Portable
from ovms_service_chat import Chat
from ovms_service_embed import Embed
from ovms_service_rerank import Rerank

TYPES = ("text_generation", "embeddings", "rerank")


async def test_every_kind_of_model_answers_its_probe(
    tmp_path: Path, fixtures: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = Extensions(
        services={"chat": configured(Chat), "embed": configured(Embed), "rerank": configured(Rerank)},
        platforms={"portable": Portable()},
        graphs={"text_generation": TextGeneration({}), "embeddings": Embeddings({}), "rerank": RerankGraph({})},
    )
    settings = read_settings({}, data_dir=tmp_path / "data", rest_port=18866, grpc_port=18890)
    async with compose_kernel(settings, host=Host("linux", "x86_64"), extensions=extensions) as kernel:
        await kernel.install_engine()
        for kind in TYPES:
            await kernel.import_model(fixtures / kind, f"tiny/{kind}")
            await kernel.load_model(f"tiny/{kind}")
        client = await kernel.control.client()
        probe: Any = kernel.supervisor.probe
        posts: list[str] = []
        post = client.post

        async def noted(path: str, *arguments: Any, **more: Any) -> Any:
            answer = await post(path, *arguments, **more)
            posts.append(path)  # only if it was answered
            return answer

        client.post = noted  # type: ignore[method-assign]
        with caplog.at_level(logging.DEBUG, "ovms_kernel.engine.probe"):
            monkeypatch.setattr("ovms_kernel.engine.probe.IDLE", 0.0)
            for _ in TYPES:
                assert await probe(client)
        assert set(posts) == {"/v3/chat/completions", "/v3/embeddings", "/v3/rerank"}
        assert not [each for each in caplog.records if each.name == "ovms_kernel.engine.probe"]
