"""Embeddings: texts or tokens in, one vector per text out, pooled and normalised as the graph says."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from openvino import opset13 as ops

from ovms_embedded.worker import common
from ovms_embedded.worker.batching import Work, serve_batches
from ovms_embedded.worker.encoder import Encoder, answer, at_last_token, read
from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import openvino
    from numpy.typing import NDArray

    from ovms_embedded.worker.encoder import Tokens
    from ovms_embedded.worker.pipe import Pipe

DEFAULT_WINDOW = 1024
POOLING_FILE_KEYS = {
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
}


class Embeddings:
    """Requests share inferences."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        folder = common.models_path(spec)
        pooling = options.get("pooling") or _pooling(folder)
        self.pipe = pipe
        self.tokenizer = common.tokenizer_of(folder)
        pool = partial(_pool, pooling=pooling, normalize=options["normalize_embeddings"])
        self.encoder = Encoder(spec, pipe, self.tokenizer, pool)
        self.truncate: bool = options["truncate"]
        self.window = common.window(folder) or DEFAULT_WINDOW
        size = common.read_json(folder / "config.json").get("vocab_size")
        self.vocabulary: int = size if isinstance(size, int) else max(self.tokenizer.get_vocab().values()) + 1
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        others = {"tokenize": lambda _, payload: common.tokenize(self.tokenizer, payload, self.window)}
        serve_batches(self.pipe, self.encoder, {"embed": self.embed}, others)

    def embed(self, number: int, payload: dict[str, Any]) -> Work:
        """Return the texts' tokens, and how to make the answer of their vectors."""
        rows = self._read(payload, partial(self.pipe.check, number))
        lengths = [len(row) for row in rows]
        if (longest := max(lengths)) > self.window:
            text = f"Input length {longest} longer than allowed {self.window}"
            raise Refused(text)
        if not longest:
            text = "Input is empty after tokenization"
            raise Refused(text)
        finish = partial(_answer, as_text=payload["base64"], tokens=sum(lengths), dimensions=payload["dimensions"])
        return Work(rows, finish)

    def _read(self, payload: dict[str, Any], check: Callable[[], None]) -> list[Tokens]:
        wanted: int | None = payload["max_length"]
        end = min(wanted or self.window, self.window) if self.truncate else wanted
        if payload["texts"]:
            options: dict[str, Any] = {"max_length": end, "truncation": True} if end else {}
            texts: list[str] = payload["texts"]
            if wanted:
                common.check_cut(self.tokenizer, wanted)
            if end:
                texts = [text[: common.characters(min(end, self.window))] for text in texts]
            for text in texts:
                common.check_length(text, self.window)
            return read(self.tokenizer, texts, check, **options)
        if (largest := max(map(max, payload["tokens"]))) >= self.vocabulary:
            text = f"Token {largest} is not in the vocabulary of this model, which has {self.vocabulary} tokens"
            raise Refused(text)
        return [np.array(row[:end], np.int64) for row in payload["tokens"]]


def _answer(
    vectors: NDArray[np.float32], *, as_text: bool, tokens: int, dimensions: int | None = None
) -> dict[str, Any]:
    """Return the answer's ``data`` as JSON, written here because the front process has no numpy, and the tokens.

    :raises Refused: the vectors have fewer dimensions.
    """
    data = [
        {
            "object": "embedding",
            "embedding": base64.b64encode(vector).decode() if as_text else vector,
            "index": index,
        }
        for index, vector in enumerate(_shorten(vectors, dimensions))
    ]
    return {"data": orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY), "tokens": tokens}


def _pool(model: openvino.Model, *, pooling: str, normalize: bool) -> openvino.Output:
    """Return one vector per text, of what the model gives: (texts, tokens, size), or (texts, size) already."""
    vectors = answer(model)
    zero, one, two = (ops.constant(each, np.int64) for each in range(3))
    if vectors.get_partial_shape().rank == 2:
        pass
    elif pooling == "MEAN":
        weights = ops.convert(ops.unsqueeze(model.input("attention_mask"), one), "f32")
        count = ops.maximum(ops.reduce_sum(weights, two), ops.constant(1, np.float32))
        vectors = ops.divide(ops.squeeze(ops.matmul(weights, vectors, False, False), one), count)  # noqa: FBT003
    elif pooling == "LAST":
        vectors = at_last_token(model, vectors)
    else:
        vectors = ops.gather(vectors, zero, one)
    return ops.normalize_l2(vectors, one, 1e-24, "max") if normalize else vectors


def _shorten(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """Return vectors of that many dimensions and a length of 1, or as they are.

    :raises Refused: they have fewer.
    """
    size = vectors.shape[1]
    if dimensions is None or dimensions == size:
        return vectors
    if dimensions > size:
        text = f"dimensions must be at most {size}, which the vectors of this model have"
        raise Refused(text)
    cut: NDArray[np.float32] = vectors[:, :dimensions].copy()
    cut /= np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
    return cut


def _pooling(folder: Path) -> str:
    config = common.read_json(folder / "1_Pooling" / "config.json")
    return next((mode for key, mode in POOLING_FILE_KEYS.items() if config.get(key) is True), "CLS")


def load(spec: dict[str, Any], pipe: Pipe) -> Embeddings:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Embeddings(spec, pipe)
