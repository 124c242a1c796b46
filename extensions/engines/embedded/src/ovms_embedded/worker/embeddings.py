"""Embeddings: texts or tokens in, one vector per text out, pooled and normalised as the graph says."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai as genai
import orjson
from openvino import opset13 as ops

from ovms_embedded.worker import common
from ovms_embedded.worker.pipe import Refused, serve

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ovms_embedded.worker.pipe import Pipe

DEFAULT_WINDOW = 1024
TOKENS_AT_ONCE = 1 << 15
"""Tokens of one inference, with padding: thousands of texts at once would take more memory than there is."""
POOLING_FILE_KEYS = {
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
}


class Embeddings:
    """One request at a time; a batch is one inference, unless it is huge."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        folder = common.models_path(spec)
        device = common.device(spec, pipe, "target_device")
        self.pipe = pipe
        self.tokenizer = genai.Tokenizer(folder)
        core = openvino.Core()
        source = core.read_model(folder / "openvino_model.xml")
        _pool(source, options.get("pooling") or _pooling(folder), normalize=options["normalize_embeddings"])
        model = core.compile_model(source, device, common.properties(spec))
        self.request = model.create_infer_request()
        self.inputs = {name for port in model.inputs for name in port.get_names()}
        self.stateful = bool(self.request.query_state())
        self.truncate: bool = options["truncate"]
        self.window = common.window(folder) or DEFAULT_WINDOW
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"embed": self.embed, "tokenize": lambda _, p: common.tokenize(self.tokenizer, p)})

    def embed(self, _: int, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the answer's ``data`` as JSON, written here because the front process has no numpy, and the tokens."""
        if (rows := payload["tokens"]) is not None:
            ids, mask = self._pad(rows)
        else:
            options: dict[str, Any] = {"max_length": self.window, "truncation": True} if self.truncate else {}
            encoded = self.tokenizer.encode(payload["texts"], **options)
            ids, mask = encoded.input_ids.data, encoded.attention_mask.data
        tokens = mask.sum(axis=1)
        if (longest := int(tokens.max(initial=0))) > self.window:
            text = f"Input length {longest} longer than allowed {self.window}"
            raise Refused(text)
        if not ids.shape[1]:
            text = "Input is empty after tokenization"
            raise Refused(text)
        rows_at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
        parts = [slice(start, start + rows_at_once) for start in range(0, len(ids), rows_at_once)]
        vectors = np.concatenate([self._infer(ids[part], mask[part]) for part in parts])
        written = [base64.b64encode(row).decode() for row in vectors] if payload["base64"] else vectors
        data = [{"object": "embedding", "embedding": row, "index": index} for index, row in enumerate(written)]
        return {"data": orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY), "tokens": int(tokens.sum())}

    def _pad(self, rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.truncate:
            rows = [row[: self.window] for row in rows]
        pad = max(self.tokenizer.get_pad_token_id(), 0)
        ids = np.full((len(rows), max(map(len, rows))), pad, np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return ids, mask

    def _infer(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        feed: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        if "position_ids" in self.inputs:
            feed["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        if "beam_idx" in self.inputs:
            feed["beam_idx"] = np.arange(len(ids), dtype=np.int32)
        if self.stateful:
            self.request.reset_state()
        self.request.infer({name: openvino.Tensor(value) for name, value in feed.items() if name in self.inputs})
        return np.array(self.request.get_output_tensor(0).data, np.float32)


def _pool(model: openvino.Model, pooling: str, *, normalize: bool) -> None:
    """Make the model's first output, (texts, tokens, size) or (texts, size), its only one: a vector per text."""
    first, *_ = results = model.get_results()
    vectors: openvino.Output = first.input_value(0)
    mask = model.input("attention_mask")
    zero, one, two = (ops.constant(each, np.int64) for each in range(3))
    if vectors.get_partial_shape().rank == 2:
        pass
    elif pooling == "MEAN":
        weights = ops.convert(ops.unsqueeze(mask, one), "f32")
        count = ops.maximum(ops.reduce_sum(weights, two), ops.constant(1, np.float32))
        vectors = ops.divide(ops.squeeze(ops.matmul(weights, vectors, False, False), one), count)  # noqa: FBT003
    elif pooling == "LAST":
        positions = ops.cum_sum(ops.broadcast(one, ops.shape_of(mask)), one, exclusive=True)
        vectors = ops.gather(vectors, ops.reduce_max(ops.multiply(positions, mask), one), one, batch_dims=1)
    else:
        vectors = ops.gather(vectors, zero, one)
    if normalize:
        vectors = ops.normalize_l2(vectors, one, 1e-24, "max")
    for each in results:
        model.remove_result(each)
    model.add_results([ops.result(vectors)])


def _pooling(folder: Path) -> str:
    config = common.read_json(folder / "1_Pooling" / "config.json")
    return next((mode for key, mode in POOLING_FILE_KEYS.items() if config.get(key) is True), "CLS")


def load(spec: dict[str, Any], pipe: Pipe) -> Embeddings:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Embeddings(spec, pipe)
