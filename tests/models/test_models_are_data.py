"""A model that is imported or pulled runs no code and reaches nothing outside its folder."""

import json
import tarfile

import pytest

from ovms_embedded import properties as of_the_embedded_engine
from ovms_kernel.errors import BadRequest
from ovms_kernel.models import properties
from ovms_kernel.values import ModelRef

GRAPH = """
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node: {{
    name: "Executor"
    calculator: "{calculator}"
    input_stream: "HTTP_REQUEST_PAYLOAD:input"
    output_stream: "HTTP_RESPONSE_PAYLOAD:output"
    node_options: {{ [type.googleapis.com / mediapipe.{options}]: {{ {fields} }} }}
}}
"""
TEXT = ("text_generation", "HttpLLMCalculator", "LLMCalculatorOptions")
SPEECH = ("text_to_speech", "T2sCalculator", "T2sCalculatorOptions")
IMAGES = ("image_generation", "ImageGenCalculator", "ImageGenCalculatorOptions")


def graph(calculator: str, options: str, fields: str) -> str:
    return GRAPH.format(calculator=calculator, options=options, fields=fields)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (TEXT, """models_path: "./" plugin_config: '{"extensions": ["./helper.so"]}'""", "'extensions'"),
        (TEXT, """models_path: "./" plugin_config: '{"CACHE_DIR": "/tmp/elsewhere"}'""", "'CACHE_DIR'"),
        (TEXT, """models_path: "./" plugin_config: '{"DEVICE_PROPERTIES": {"CPU": {"X": 1}}}'""", "'X'"),
        (TEXT, """models_path: "./" plugin_config: '{'""", "JSON object"),
        (TEXT, 'models_path: "../../other/model"', "models_path"),
        (TEXT, 'models_path: "/usr/share/models"', "models_path"),
        (TEXT, r'models_path: "C:\\models"', "models_path"),
        (TEXT, r'models_path: "a\\..\\..\\b"', "models_path"),
        (TEXT, 'models_path: "./" draft_models_path: "../draft"', "draft_models_path"),
        (SPEECH, 'models_path: "./" voices { name: "a" path: "../../secret.bin" }', r"voices\.path"),
        (IMAGES, 'models_path: "./" lora_adapters { alias: "a" path: "/x/a.safetensors" }', r"lora_adapters\.path"),
        (("text_generation", "PythonExecutorCalculator", "LLMCalculatorOptions"), 'models_path: "./"', "HttpLLM"),
        (("text_generation", "LocalFileContentsCalculator", "LLMCalculatorOptions"), 'models_path: "./"', "HttpLLM"),
    ],
)
async def test_a_graph_that_does_more_than_serve_its_model_is_refused(world, tiny, kind, fields, words):
    model_type, calculator, options = kind
    source = tiny(model_type)
    (source / "graph.pbtxt").write_text(graph(calculator, options, fields))
    with pytest.raises(BadRequest, match=words):
        await world.ingest.import_(source, "me/a")
    assert world.store.list() == []
    assert world.store.staging() == []


async def test_a_graph_in_an_archive_is_looked_at_too(world, tiny, tmp_path):
    source = tiny("text_generation")
    (source / "graph.pbtxt").write_text(
        graph(*TEXT[1:], """models_path: "./" plugin_config: '{"extensions": ["/x.so"]}'""")
    )
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(source, "model")
    with pytest.raises(BadRequest, match="'extensions'"):
        await world.ingest.import_(tmp_path / "model.tar", "me/a")
    assert world.store.list() == []


async def test_a_plain_graph_is_kept(world, tiny):
    source = tiny("text_to_speech")
    text = graph(
        *SPEECH[1:],
        """models_path: "./" voices { name: "a" path: "voices/a.bin" }
        plugin_config: '{"NUM_STREAMS": "1"}'""",
    )
    (source / "graph.pbtxt").write_text(text)
    model = await world.ingest.import_(source, "me/a")
    assert (model.directory / "graph.pbtxt").read_text() == text


LISTS = {
    "subconfig.json": {"model_config_list": [{"config": {"name": "x", "base_path": "/somewhere/else"}}]},
    "config.json": {"model_config_list": [], "mediapipe_config_list": [{"name": "x", "base_path": "/"}]},
}


@pytest.mark.parametrize("name", LISTS)
async def test_a_model_brings_no_list_of_further_models(world, tiny, name):
    source = tiny("embeddings")
    (source / name).write_text(json.dumps(LISTS[name]))
    with pytest.raises(BadRequest, match=r"makes the engine serve other models"):
        await world.ingest.import_(source, "me/a", model_type="embeddings")
    assert world.store.list() == []


async def test_a_hub_brings_none_either_and_nothing_large_is_fetched(puller, hub, repo):
    (repo / "subconfig.json").write_text(json.dumps(LISTS["subconfig.json"]))
    hub.add("me/model", repo)
    with pytest.raises(BadRequest, match=r"subconfig\.json"):
        await puller.ingest.pull(ModelRef("me/model"))
    assert puller.store.list() == []
    assert puller.store.staging() == []
    assert hub.sent < 1_000_000


def test_kernel_and_embedded_engine_allow_the_same_properties():
    assert properties.allowed() == of_the_embedded_engine.PROPERTIES
