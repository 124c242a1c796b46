"""Embeddings: tokens in, one vector per text out, pooled and normalised as the graph says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai as genai

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
        model = openvino.Core().compile_model(folder / "openvino_model.xml", device, common.properties(spec))
        self.request = model.create_infer_request()
        self.inputs = {name for port in model.inputs for name in port.get_names()}
        self.stateful = bool(self.request.query_state())
        self.pooling = options.get("pooling") or _pooling(folder)
        self.normalize: bool = options["normalize_embeddings"]
        self.truncate: bool = options["truncate"]
        self.window = common.window(folder) or DEFAULT_WINDOW
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"embed": self.embed, "tokenize": lambda _, p: common.tokenize(self.tokenizer, p)})

    def embed(self, _: int, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the vectors of texts, or of texts that are tokens already, as float32 bytes."""
        if (rows := payload["tokens"]) is not None:
            ids, mask = self._pad(rows)
        else:
            options: dict[str, Any] = {"max_length": self.window, "truncation": True} if self.truncate else {}
            encoded = self.tokenizer.encode(payload["texts"], **options)
            ids, mask = encoded.input_ids.data, encoded.attention_mask.data
        lengths = mask.sum(axis=1)
        if (longest := int(lengths.max(initial=0))) > self.window:
            text = f"Input length {longest} longer than allowed {self.window}"
            raise Refused(text)
        if not ids.shape[1]:
            text = "Input is empty after tokenization"
            raise Refused(text)
        rows_at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
        parts = [slice(start, start + rows_at_once) for start in range(0, len(ids), rows_at_once)]
        vectors = np.concatenate([self._infer(ids[part], mask[part], lengths[part]) for part in parts])
        return {"vectors": vectors.tobytes(), "size": vectors.shape[1], "tokens": int(lengths.sum())}

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

    def _infer(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
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
        hidden = self.request.get_output_tensor(0).data
        if hidden.ndim == 2:
            vectors = hidden
        elif self.pooling == "MEAN":
            weights = mask[:, None, :].astype(np.float32)
            vectors = (weights @ hidden)[:, 0] / np.maximum(lengths, 1)[:, None]
        elif self.pooling == "LAST":
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
            vectors = hidden[np.arange(len(hidden)), last]
        else:
            vectors = hidden[:, 0]
        if self.normalize:
            norm = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            vectors = vectors / np.maximum(norm, 1e-12)[:, None]
        return np.ascontiguousarray(vectors, np.float32)


def _pooling(folder: Path) -> str:
    config = common.read_json(folder / "1_Pooling" / "config.json")
    return next((mode for key, mode in POOLING_FILE_KEYS.items() if config.get(key) is True), "CLS")


def load(spec: dict[str, Any], pipe: Pipe) -> Embeddings:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Embeddings(spec, pipe)
