"""Every graph driver: what it recognises, what it builds, and that every option of its calculator can be set."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from ovms_graph_embeddings import pooling_of
from ovms_graph_text_generation import cache_gigabytes, detect_parsers, template_of
from ovms_kernel.drivers import GraphOptions, ModelFiles
from ovms_kernel.errors import BadRequest
from ovms_kernel.extensions import compose
from ovms_kernel.models.graph_writer import parse_graph, print_graph
from ovms_kernel.models.model_card import read_files
from ovms_kernel.models.protos import ovms_graph_pb2 as pb
from ovms_kernel.settings import Settings
from ovms_kernel.values import Host

HOST = Host(os="linux", machine="x86_64", memory=16 << 30)
EXTENSIONS = compose(Settings(Path("unused")), HOST, kinds=("graphs",))
OPTIONS: dict[str, Any] = {
    "text_generation": pb.LLMCalculatorOptions,
    "embeddings": pb.EmbeddingsCalculatorOVOptions,
    "rerank": pb.RerankCalculatorOVOptions,
    "image_generation": pb.ImageGenCalculatorOptions,
    "speech_to_text": pb.S2tCalculatorOptions,
    "text_to_speech": pb.T2sCalculatorOptions,
}
TYPES = sorted(OPTIONS)


def options_of(graph, message):
    chosen = message()
    assert graph.node[0].node_options[0].Unpack(chosen)
    return chosen


def build(model_type, files=None, host=HOST, section=None, **values):
    made: Any = type(EXTENSIONS.graphs[model_type])
    driver = made(section or {})
    graph = driver.build(files or describe(), GraphOptions(host, values))
    return options_of(graph, OPTIONS[model_type])


def describe(identifier="model", sizes=None, **texts):
    named = {
        name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja"): text
        for name, text in texts.items()
    }
    texts = {name: text if isinstance(text, str) else json.dumps(text) for name, text in named.items()}
    return ModelFiles(identifier, sizes or {"openvino_model.xml": 1, "openvino_model.bin": 1}, texts)


def architecture(name, identifier="model", **more):
    return describe(identifier, config_json={"architectures": [name]}, **more)


def recognised(files):
    scores = {kind: driver.recognises(files) for kind, driver in EXTENSIONS.graphs.items()}
    best = max(scores, key=lambda kind: scores[kind])
    return best if scores[best] else ""


# -- recognition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TYPES)
def test_a_real_model_is_recognised_by_its_files(fixtures, model_type):
    assert recognised(read_files(fixtures / model_type, "model")) == model_type


@pytest.mark.parametrize(
    ("files", "model_type"),
    [
        (architecture("WhisperForConditionalGeneration"), "speech_to_text"),
        (architecture("SeamlessM4Tv2ForSpeechToText"), "speech_to_text"),
        (architecture("Qwen3ASRForConditionalGeneration"), "speech_to_text"),
        (describe(config_json={"architectures": None, "n_mels": 80}), "text_to_speech"),
        (architecture("SpeechT5ForTextToSpeech"), "text_to_speech"),
        (architecture("ParlerTTSForConditionalGeneration"), "text_to_speech"),
        (architecture("XLMRobertaForSequenceClassification"), "rerank"),
        (architecture("Qwen3ForCausalLM", "Qwen3-Reranker-0.6B"), "rerank"),
        (architecture("Qwen3ForCausalLM", modules_json=[{"type": "sentence_transformers.LogitScore"}]), "rerank"),
        (describe(model_index_json={"_class_name": "StableDiffusionXLPipeline"}), "image_generation"),
        (describe(model_index_json={"_class_name": "FluxPipeline"}), "image_generation"),
        (describe(model_index_json={"_class_name": "LTXPipeline"}), ""),
        (architecture("SD3Transformer2DModel"), "image_generation"),
        (architecture("BertModel"), "embeddings"),
        (architecture("Qwen3ForCausalLM", "Qwen3-Embedding-0.6B"), "embeddings"),
        (
            architecture("Qwen3ForCausalLM", modules_json=[{"type": "sentence_transformers.models.Pooling"}]),
            "embeddings",
        ),
        (architecture("NewModel"), "embeddings"),
        (architecture("Qwen3ForCausalLM", "Qwen3-8B"), "text_generation"),
        (architecture("Qwen3ForCausalLM", "embed", modules_json=[{"type": "other"}]), "text_generation"),
        (architecture("InternVLChatModel"), "text_generation"),
        (architecture("Qwen2VLForConditionalGeneration"), "text_generation"),
        (describe(sizes={"model-Q4_K_M.gguf": 1}), "text_generation"),
        (describe(config_json="{broken"), ""),
    ],
)
def test_the_rules_of_detection(files, model_type):
    assert recognised(files) == model_type


# -- options -------------------------------------------------------------------------------------------------------


def sample(field):
    """Return a value that differs from the field's default, and how it reads back."""
    if field.enum_type is not None:
        value = next(each for each in field.enum_type.values if each.number != field.default_value)
        return value.name, value.number
    if field.cpp_type == field.CPPTYPE_BOOL:
        return not field.default_value, not field.default_value
    if field.name == "plugin_config":
        return {"NUM_STREAMS": "2"}, '{"NUM_STREAMS":"2"}'
    if "resolution" in field.name:
        return "256x256", "256x256"
    if field.cpp_type == field.CPPTYPE_STRING:
        return "CPU", "CPU"
    if field.cpp_type == field.CPPTYPE_FLOAT:
        return 0.5, 0.5
    return 7, 7


PLAIN = [
    (model_type, field)
    for model_type in TYPES
    for field in OPTIONS[model_type].DESCRIPTOR.fields
    if field.message_type is None and not field.is_repeated
]
NEEDS = {"num_images_per_prompt": {"resolution": "256x256"}, "guidance_scale": {"resolution": "256x256"}}


@pytest.mark.parametrize(("model_type", "field"), PLAIN, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("layer", ["model", "section", "text"])
def test_every_option_can_be_set(model_type, field, layer):
    value, expected = sample(field)
    given = {field.name: value} | NEEDS.get(field.name, {})
    if field.name.startswith("draft_"):
        given.setdefault("draft_models_path", "draft")
    if layer == "text":
        given = {name: json.dumps(each) if isinstance(each, dict) else str(each) for name, each in given.items()}
    options = build(model_type, **given) if layer != "section" else build(model_type, section=given)
    assert getattr(options, field.name) == expected


def test_options_that_are_tables_can_be_set():
    eviction = {
        "start_size": 32,
        "recent_size": 128,
        "max_cache_size": 672,
        "aggregation_mode": "SUM",
        "kv_crush_config": {"budget": 8, "anchor_point_mode": "MEAN"},
    }
    sparse = {"mode": "XATTENTION", "xattention_threshold": 0.8, "xattention_block_size": 64}
    options = build("text_generation", cache_eviction_config=eviction, sparse_attention_config=sparse)
    assert options.cache_eviction_config.kv_crush_config.anchor_point_mode == 3
    assert options.cache_eviction_config.max_cache_size == 672
    assert options.sparse_attention_config.mode == 1
    voices = build("text_to_speech", voices=[{"name": "anna", "path": "/voices/anna.bin"}]).voices
    assert (voices[0].name, voices[0].path) == ("anna", "/voices/anna.bin")
    image = build(
        "image_generation",
        lora_adapters=[{"alias": "a", "path": "loras/a.safetensors", "alpha": 0.5, "mode": "FUSE"}],
        composite_lora_adapters=[{"alias": "c", "components": [{"adapter_alias": "a", "alpha": 0.25}]}],
    )
    assert (image.lora_adapters[0].mode, image.composite_lora_adapters[0].components[0].alpha) == (2, 0.25)


def test_layers_win_over_each_other():
    options = build(
        "text_generation",
        section={
            "max_num_seqs": 3,
            "cache_size": 5,
            "plugin_config": {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"},
        },
        max_num_seqs=4,
        plugin_config='{"NUM_STREAMS": "2"}',
    )
    assert (options.max_num_seqs, options.cache_size) == (4, 5)
    assert json.loads(options.plugin_config) == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "2"}


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("text_generation", {"max_num_sqs": 1}, "max_num_sqs is not an option"),
        ("text_generation", {"cache_size": "lots"}, "a whole number"),
        ("text_generation", {"cache_size": -1}, "a whole number"),
        ("text_generation", {"cache_size": 1.5}, "a whole number"),
        ("text_generation", {"pipeline_type": "FAST"}, "one of LM, VLM"),
        ("text_generation", {"dynamic_split_fuse": "perhaps"}, "true or false"),
        ("text_generation", {"plugin_config": "{broken"}, "JSON object"),
        ("text_generation", {"plugin_config": {"extensions": ["/tmp/x.so"]}}, "'extensions'"),
        ("embeddings", {"plugin_config": {"CACHE_DIR": "/tmp"}}, "'CACHE_DIR'"),
        ("rerank", {"plugin_config": '{"DEVICE_PROPERTIES": {"GPU": {"CONFIG_FILE": "x.xml"}}}'}, "'CONFIG_FILE'"),
        ("speech_to_text", {"plugin_config": {"NUM_STREAMS": [1]}}, "NUM_STREAMS"),
        ("text_generation", {"draft_device": "CPU"}, "draft_models_path"),
        ("text_generation", {"cache_eviction_config": {"start_size": 1}}, "not complete"),
        ("text_generation", {"cache_eviction_config": 3}, "a table"),
        ("embeddings", {"pooling": "MAX"}, "CLS, LAST, MEAN"),
        ("text_to_speech", {"speed_min": 3, "speed_max": 2}, "speed_min"),
        ("text_to_speech", {"voices": [{"name": "a", "path": "voices/a.bin"}]}, "does not have"),
        ("image_generation", {"device": "CPU GPU"}, "three"),
        ("image_generation", {"device": "NPU"}, "exactly one resolution"),
        ("image_generation", {"default_resolution": "auto"}, "WIDTHxHEIGHT"),
        ("image_generation", {"resolution": "1x1 1x1"}, "twice"),
        ("image_generation", {"resolution": "64x64", "max_resolution": "64x64"}, "cannot be set"),
        ("image_generation", {"default_resolution": "9000x1"}, "above"),
        ("image_generation", {"guidance_scale": 1.0}, "exactly one resolution"),
        (
            "image_generation",
            {"composite_lora_adapters": [{"alias": "c", "components": [{"adapter_alias": "x"}]}]},
            "x",
        ),
    ],
)
def test_what_the_engine_would_refuse_is_refused_beforehand(model_type, values, words):
    with pytest.raises(BadRequest, match=words):
        build(model_type, **values)


# -- what is built -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TYPES)
def test_the_text_parses_back_to_the_same_message(fixtures, model_type):
    graph = EXTENSIONS.graphs[model_type].build(read_files(fixtures / model_type, "model"), GraphOptions(HOST))
    text = print_graph(graph, "Written by a test\nwith a second line")
    assert text.startswith("# Written by a test with a second line\n")
    assert parse_graph(text) == graph
    assert text_format.Parse(text, pb.CalculatorGraphConfig()) == graph


def test_no_value_can_break_the_text():
    evil = 'x"\n} node { name: "evil'
    options = GraphOptions(HOST, {"plugin_config": {"DEVICE_ID": evil}})
    graph = EXTENSIONS.graphs["text_generation"].build(describe(), options)
    again = parse_graph(print_graph(graph, evil))
    assert len(again.node) == 1
    assert json.loads(options_of(again, pb.LLMCalculatorOptions).plugin_config) == {"DEVICE_ID": evil}


WIRING = {
    "text_generation": ("LLMExecutor", "HttpLLMCalculator", "HTTP_REQUEST_PAYLOAD:input", True,
                        ["LLM_NODE_RESOURCES:llm", "LLM_NODE_EXECUTION_CONTEXTS:llm_ctx"]),
    "embeddings": ("EmbeddingsExecutor", "EmbeddingsCalculatorOV", "REQUEST_PAYLOAD:input", False,
                   ["EMBEDDINGS_NODE_RESOURCES:embeddings_servable"]),
    "rerank": ("RerankExecutor", "RerankCalculatorOV", "REQUEST_PAYLOAD:input", False,
               ["RERANK_NODE_RESOURCES:rerank_servable"]),
    "image_generation": ("ImageGenExecutor", "ImageGenCalculator", "HTTP_REQUEST_PAYLOAD:input", False,
                         ["IMAGE_GEN_NODE_RESOURCES:pipes"]),
    "speech_to_text": ("S2tExecutor", "S2tCalculator", "HTTP_REQUEST_PAYLOAD:input", True,
                       ["STT_NODE_RESOURCES:s2t_servable"]),
    "text_to_speech": ("T2sExecutor", "T2sCalculator", "HTTP_REQUEST_PAYLOAD:input", False,
                       ["TTS_NODE_RESOURCES:t2s_servable"]),
}  # fmt: skip


@pytest.mark.parametrize("model_type", TYPES)
def test_the_wiring_is_that_of_ovms(model_type):
    name, calculator, stream, loopback, side_packets = WIRING[model_type]
    graph = EXTENSIONS.graphs[model_type].build(describe(), GraphOptions(HOST))
    node = graph.node[0]
    assert (node.name, node.calculator, list(node.input_side_packet)) == (name, calculator, side_packets)
    assert list(graph.input_stream) == [stream]
    assert list(graph.output_stream) == [stream.replace("REQUEST", "RESPONSE").replace(":input", ":output")]
    assert ("LOOPBACK:loopback" in node.input_stream) == loopback == ("LOOPBACK:loopback" in node.output_stream)
    if loopback:
        assert node.input_stream_info[0].tag_index == "LOOPBACK:0"
        handler = node.input_stream_handler
        assert handler.input_stream_handler == "SyncSetInputStreamHandler"
        options = handler.options.Extensions[pb.SyncSetInputStreamHandlerOptions.ext]
        assert list(options.sync_set[0].tag_index) == ["LOOPBACK:0"]


@pytest.mark.parametrize(
    ("devices", "device"),
    [(("CPU",), "CPU"), (("CPU", "NPU"), "CPU"), (("CPU", "GPU"), ""), (("CPU", "GPU", "NPU"), "")],
)
@pytest.mark.parametrize("model_type", TYPES)
def test_the_device_is_what_the_host_has_and_never_npu_unasked(model_type, devices, device):
    host = Host(os="linux", machine="x86_64", devices=devices)
    options = build(model_type, host=host)
    assert (options.device if hasattr(options, "device") else options.target_device) == device


@pytest.mark.parametrize(("gigabytes", "cache"), [(0, 0), (4, 1), (16, 2), (64, 8), (512, 10)])
def test_the_cache_follows_memory(gigabytes, cache):
    assert cache_gigabytes(gigabytes << 30) == cache
    assert build("text_generation", host=Host(os="linux", machine="x86_64", memory=gigabytes << 30)).cache_size == cache


def test_gguf_is_named_by_its_first_part():
    sizes = {f"m-Q4_K_M-0000{part}-of-00003.gguf": 1 for part in (1, 2, 3)} | {"mmproj.gguf": 1}
    assert build("text_generation", describe(sizes=sizes)).models_path == "./m-Q4_K_M-00001-of-00003.gguf"


def test_adapters_in_the_folder_are_registered():
    sizes = {"unet/openvino_model.xml": 1, "unet/openvino_model.bin": 1, "loras/style.safetensors": 1}
    options = build("image_generation", describe(sizes=sizes))
    assert [(each.alias, each.path) for each in options.lora_adapters] == [("style", "loras/style.safetensors")]
    assert not options.lora_adapters[0].HasField("mode")
    options = build("image_generation", describe(sizes=sizes), device="NPU", resolution="512x512")
    assert options.lora_adapters[0].mode == options.lora_adapters[0].STATIC


def test_k17_speeds_are_left_out_unless_set():
    options = build("text_to_speech")
    assert not options.HasField("speed_min")
    assert not options.HasField("speed_max")


# -- parsers and pooling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "parsers"),
    [
        ("<|start|>assistant<|channel|>final", ("gptoss", "gptoss")),
        ("<|start|><|message|><|eom|><|eot|><tool_call></tool_call>", ("", "")),
        ("<|tool_call>call:", ("gemma4", "gemma4")),
        ("<tool_call><function=x><parameter=y></parameter></tool_call>", ("qwen3coder", "")),
        ("<think></think><tool_call><function=x><parameter=y></parameter>", ("qwen3coder", "qwen3")),
        ('<param name="x">', ("minicpm5", "minicpm5")),
        ("<|tool_call_start|>", ("lfm2", "")),
        ("keep_past_thinking message.thinking", ("lfm2", "lfm2")),
        ("functools[", ("phi4", "")),
        ("[TOOL_CALLS]x[ARGS]", ("devstral", "")),
        ("[TOOL_CALLS]", ("mistral", "")),
        ("[AVAILABLE_TOOLS]\n[/AVAILABLE_TOOLS]", ("mistral", "")),
        ("[AVAILABLE_TOOLS]", ("", "")),
        ("<|python_tag|>", ("llama3", "")),
        ("<tool_call>x</tool_call>", ("hermes3", "")),
        ("<tool_call>x</tool_call><think>", ("hermes3", "qwen3")),
        ("<think>", ("", "qwen3")),
        ("plain", ("", "")),
    ],
)
def test_parsers_come_from_the_template(template, parsers):
    assert detect_parsers(template) == parsers
    options = build("text_generation", describe(chat_template_jinja=template))
    assert (options.tool_parser, options.reasoning_parser) == parsers


def test_the_template_beside_the_tokenizer_wins():
    tokenizer = {"chat_template": "<tool_call></tool_call>"}
    assert template_of(describe(tokenizer_config_json=tokenizer, chat_template_jinja="own")) == "own"
    assert template_of(describe(tokenizer_config_json=tokenizer)) == "<tool_call></tool_call>"
    several = {"chat_template": [{"name": "tool_use", "template": "[TOOL_CALLS]"}]}
    assert detect_parsers(template_of(describe(tokenizer_config_json=several)))[0] == "mistral"


def test_a_parser_that_is_set_wins_over_the_template():
    options = build("text_generation", describe(chat_template_jinja="<think>"), reasoning_parser="none")
    assert options.reasoning_parser == "none"


@pytest.mark.parametrize(
    ("texts", "pooling"),
    [
        ({"1_Pooling__config_json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}}, "MEAN"),
        ({"1_Pooling__config_json": {"pooling_mode_cls_token": True}}, "CLS"),
        ({"1_Pooling__config_json": {"pooling_mode_lasttoken": True}}, "LAST"),
        ({"1_Pooling__config_json": {"pooling_mode": "lasttoken"}}, "LAST"),
        ({"config_json": {"architectures": ["Qwen3ForCausalLM"]}}, "LAST"),
        ({"config_json": {"architectures": ["BertModel"]}}, ""),
    ],
)
def test_pooling_comes_from_the_model(texts, pooling):
    assert pooling_of(describe(**texts)) == pooling
