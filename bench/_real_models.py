# ruff: noqa: ANN401, FBT003 - openvino types its operations as Any and takes positional flags
"""Models in the shape of real ones, with random weights of 8 bits: no download, and the cost of real ones.

The tokenizers are those of the tiny models in tests/fixtures; the language model never says a token that they lack.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ovms_embedded.worker  # noqa: F401 - importing OpenVINO sends no usage event after it

# isort: split
import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.op.util import Variable, VariableInfo

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
sys.path.append(str(FIXTURES))

import make_gguf as gguf  # type: ignore[import-not-found]  # noqa: E402 - found there

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer."""

    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int
    """Heads of keys and values."""
    head: int
    """The width of a head."""
    words: int


QWEN2_05B = Shape(layers=24, hidden=896, inner=4864, heads=14, groups=2, head=64, words=0)
"""The words are those of the tiny model."""
QWEN3_06B = Shape(layers=28, hidden=1024, inner=3072, heads=16, groups=8, head=128, words=151936)
MINILM_L6 = Shape(layers=6, hidden=384, inner=1536, heads=12, groups=12, head=32, words=30522)
SMALL = Shape(layers=2, hidden=64, inner=128, heads=4, groups=2, head=16, words=2048)
"""For a quick run that only shows that everything works."""


class Weights:
    """Random matrices: 8-bit integers with a scale for each row, as NNCF compresses them."""

    def __init__(self, seed: int) -> None:
        self._chance = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int) -> Any:
        values = self._chance.integers(-127, 128, (rows, columns), np.int8)
        scale = np.full((rows, 1), 1 / (73 * columns**0.5), np.float16)
        plain = ops.multiply(ops.convert(ops.constant(values), "f16"), ops.constant(scale))
        return ops.convert(plain, "f32")

    def linear(self, value: Any, inputs: int, outputs: int) -> Any:
        return ops.matmul(value, self.matrix(outputs, inputs), False, True)


def _whole(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def _split(value: Any, heads: int, head: int) -> Any:
    """(texts, tokens, heads * head) becomes (texts, heads, tokens, head)."""
    return ops.transpose(ops.reshape(value, _whole(0, 0, heads, head), True), _whole(0, 2, 1, 3))


def _merge(value: Any, width: int) -> Any:
    return ops.reshape(ops.transpose(value, _whole(0, 2, 1, 3)), _whole(0, 0, width), True)


def _input(name: str, dimensions: int = 2) -> Any:
    made = ops.parameter(ov.PartialShape([-1] * dimensions), np.int64 if dimensions == 2 else np.int32, name=name)
    made.output(0).set_names({name})
    return made


def encoder(shape: Shape) -> ov.Model:
    """A BERT that gives a vector for each token."""
    weights = Weights(1)
    ids, mask, kinds = (_input(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    every = ops.broadcast(_whole(1), ops.shape_of(ids))
    positions = ops.subtract(ops.cum_sum(every, ops.constant(np.int64(1))), _whole(1))
    zero = _whole(0)

    def norm(value: Any) -> Any:
        return ops.mvn(value, _whole(-1), True, 1e-12, "inside_sqrt")

    value = norm(
        ops.add(
            ops.add(
                ops.gather(weights.matrix(shape.words, shape.hidden), ids, zero),
                ops.gather(weights.matrix(512, shape.hidden), positions, zero),
            ),
            ops.gather(weights.matrix(2, shape.hidden), kinds, zero),
        )
    )
    wide = ops.unsqueeze(ops.unsqueeze(ops.convert(mask, "f32"), _whole(1)), _whole(1))
    hidden = ops.multiply(ops.subtract(ops.constant(np.float32(1)), wide), ops.constant(np.float32(-1e9)))
    for _ in range(shape.layers):
        query, key, content = (
            _split(weights.linear(value, shape.hidden, shape.hidden), shape.heads, shape.head) for _ in range(3)
        )
        seen = _merge(ops.scaled_dot_product_attention(query, key, content, hidden), shape.hidden)
        value = norm(ops.add(value, weights.linear(seen, shape.hidden, shape.hidden)))
        inner = ops.gelu(weights.linear(value, shape.hidden, shape.inner), "erf")
        value = norm(ops.add(value, weights.linear(inner, shape.inner, shape.hidden)))
    result = ops.result(value)
    result.output(0).set_names({"last_hidden_state"})
    return ov.Model([result], [ids, mask, kinds], "encoder")


def classifier(shape: Shape) -> ov.Model:
    """A cross encoder: one number for each text."""
    model = encoder(shape)
    [result] = model.get_results()
    first = ops.gather(result.input_value(0), _whole(0), _whole(1))
    model.remove_result(result)
    added = ops.result(Weights(2).linear(ops.squeeze(first, _whole(1)), shape.hidden, 1))
    added.output(0).set_names({"logits"})
    model.add_results([added])
    return model


def language_model(shape: Shape, spoken: int) -> ov.Model:
    """A Qwen3 with a state, as optimum-intel exports it.

    :param spoken: tokens from this one on are never said.
    """
    weights = Weights(3)
    ids, mask, positions = (_input(name) for name in ("input_ids", "attention_mask", "position_ids"))
    beams = _input("beam_idx", 1)
    one, zero = _whole(1), _whole(0)
    table = weights.matrix(shape.words, shape.hidden)
    value = ops.gather(table, ids, zero)

    def norm(given: Any, width: int) -> Any:
        power = ops.reduce_mean(ops.power(given, ops.constant(np.float32(2))), _whole(-1), True)
        scaled = ops.multiply(
            given, ops.power(ops.add(power, ops.constant(np.float32(1e-6))), ops.constant(np.float32(-0.5)))
        )
        return ops.multiply(scaled, ops.constant(np.ones(width, np.float32)))

    frequencies = (1e6 ** (-np.arange(0, shape.head, 2, dtype=np.float32) / shape.head)).reshape(1, 1, -1)
    angles = ops.multiply(ops.unsqueeze(ops.convert(positions, "f32"), _whole(2)), ops.constant(frequencies))
    both = ops.unsqueeze(ops.concat([angles, angles], 2), one)
    cosine, sine = ops.cos(both), ops.sin(both)

    def turn(given: Any) -> Any:
        half = ops.split(given, ops.constant(np.int64(3)), 2)
        turned = ops.concat([ops.negative(half.output(1)), half.output(0)], 3)
        return ops.add(ops.multiply(given, cosine), ops.multiply(turned, sine))

    batch = ops.gather(ops.shape_of(ids), zero, zero)
    sinks: list[Any] = []

    def remembered(given: Any, name: str) -> Any:
        variable = Variable(VariableInfo())
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = (
            ov.PartialShape([-1, shape.groups, -1, shape.head]), ov.Type.f32, name
        )  # fmt: skip
        variable = Variable(info)
        empty = ops.broadcast(
            ops.constant(np.float32(0)), ops.concat([batch, _whole(shape.groups), zero, _whole(shape.head)], 0)
        )
        past = ops.gather(ops.read_value(empty, variable), beams, zero)
        found = ops.concat([past, given], 2)
        sinks.append(ops.assign(found, variable))
        return found

    def repeated(given: Any) -> Any:
        times = shape.heads // shape.groups
        length = ops.gather(ops.shape_of(given), _whole(2), zero)
        size = ops.concat([batch, _whole(shape.groups), _whole(times), length, _whole(shape.head)], 0)
        wide = ops.broadcast(ops.unsqueeze(given, _whole(2)), size, "BIDIRECTIONAL")
        return ops.reshape(wide, _whole(0, shape.heads, -1, shape.head), True)

    for layer in range(shape.layers):
        given = norm(value, shape.hidden)
        width = shape.heads * shape.head
        query = _split(weights.linear(given, shape.hidden, width), shape.heads, shape.head)
        key = _split(weights.linear(given, shape.hidden, shape.groups * shape.head), shape.groups, shape.head)
        content = _split(weights.linear(given, shape.hidden, shape.groups * shape.head), shape.groups, shape.head)
        key = remembered(turn(norm(key, shape.head)), f"past_key_values.{layer}.keypresent.{layer}.key")
        content = remembered(content, f"past_key_values.{layer}.valuepresent.{layer}.value")
        if layer == 0:
            hidden = _causal(ids, mask)
        seen = ops.scaled_dot_product_attention(turn(norm(query, shape.head)), repeated(key), repeated(content), hidden)
        value = ops.add(value, weights.linear(_merge(seen, width), width, shape.hidden))
        given = norm(value, shape.hidden)
        gate = ops.swish(weights.linear(given, shape.hidden, shape.inner))
        inner = ops.multiply(gate, weights.linear(given, shape.hidden, shape.inner))
        value = ops.add(value, weights.linear(inner, shape.inner, shape.hidden))
    silent = np.where(np.arange(shape.words) < spoken, 0, -1e9).astype(np.float32)
    logits = ops.add(ops.matmul(norm(value, shape.hidden), table, False, True), ops.constant(silent))
    result = ops.result(logits)
    result.output(0).set_names({"logits"})
    return ov.Model([result], sinks, [ids, mask, positions, beams], "language_model")


def _causal(ids: Any, mask: Any) -> Any:
    """What no token sees, as a sum: later tokens and those that are masked."""
    zero, one = _whole(0), _whole(1)
    total = ops.gather(ops.shape_of(mask), one, zero)
    now = ops.gather(ops.shape_of(ids), one, zero)
    columns = ops.range(ops.squeeze(zero, zero), ops.squeeze(total, zero), ops.squeeze(one, zero), "i64")
    rows = ops.range(
        ops.squeeze(ops.subtract(total, now), zero), ops.squeeze(total, zero), ops.squeeze(one, zero), "i64"
    )
    later = ops.greater(ops.unsqueeze(columns, zero), ops.unsqueeze(rows, one))
    masked = ops.equal(ops.unsqueeze(ops.unsqueeze(mask, one), one), zero)
    either = ops.logical_or(ops.unsqueeze(ops.unsqueeze(later, zero), zero), masked)
    return ops.select(either, ops.constant(np.float32(-1e9)), ops.constant(np.float32(0)))


def make(kind: str, folder: Path, *, small: bool = False) -> Path:
    """Write the model of a kind into a folder, unless it is there already, and return its folder.

    :param kind: ``text_generation``, ``embeddings`` or ``rerank``.
    :param small: a toy instead of the real shape.
    """
    target = folder / (f"{kind}-small" if small else kind)
    if (target / "done").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(FIXTURES / kind, target, ignore=shutil.ignore_patterns("openvino_model.*"))
    config = json.loads((target / "config.json").read_text())
    if kind == "text_generation":
        shape = SMALL if small else QWEN3_06B
        model = language_model(shape, config["vocab_size"] - 2)
        config |= {"max_position_embeddings": 40960, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    else:
        shape = SMALL if small else MINILM_L6
        model = encoder(shape) if kind == "embeddings" else classifier(shape)
    config |= {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups, "head_dim": shape.head, "intermediate_size": shape.inner,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    (target / "done").touch()
    return target


def make_gguf(folder: Path, *, small: bool = False) -> Path:
    """Write a Qwen2 with weights of 8 bits as a GGUF file into a folder, unless it is there already, and return it."""
    target = folder / ("small.gguf" if small else "qwen2.gguf")
    if not target.exists():
        shape = SMALL if small else QWEN2_05B
        config = json.loads((FIXTURES / "text_generation" / "config.json").read_text()) | {
            "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.groups, "intermediate_size": shape.inner,
        }  # fmt: skip
        part = target.with_suffix(".part")
        gguf.write(part, "Q8_0", config, _gguf_tensors(shape, config["vocab_size"]))
        part.rename(target)
    return target


def _gguf_tensors(shape: Shape, words: int) -> Iterator[tuple[str, Any]]:
    chance = np.random.default_rng(4)

    def matrix(rows: int, columns: int) -> Any:
        return chance.standard_normal((rows, columns), np.float32) / columns**0.5

    def ones(size: int) -> Any:
        return np.ones(size, np.float32)

    queries, keys = shape.heads * shape.head, shape.groups * shape.head
    yield "token_embd.weight", matrix(words, shape.hidden)
    yield "output_norm.weight", ones(shape.hidden)
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", ones(shape.hidden)
        for name, size in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            yield f"blk.{layer}.{name}.weight", matrix(size, shape.hidden)
            yield f"blk.{layer}.{name}.bias", np.zeros(size, np.float32)
        yield f"blk.{layer}.attn_output.weight", matrix(shape.hidden, queries)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", matrix(shape.inner, shape.hidden)
        yield f"blk.{layer}.ffn_down.weight", matrix(shape.hidden, shape.inner)
