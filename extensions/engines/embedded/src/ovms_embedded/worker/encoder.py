"""Models that read texts whole and give numbers for each: what embeddings and rerank have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset13 as ops

from ovms_embedded.worker import common

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ovms_embedded.worker.pipe import Pipe

    Tokens = NDArray[np.int64]

TOKENS_AT_ONCE = 1 << 15
"""Tokens of one inference, counted as if all of its texts were as long as the longest, to which they are padded:
thousands of texts at once would take more memory than there is."""
TOKEN_SIZE = 4
"""Bytes of text that a token stands for, about."""


def batches(sizes: Sequence[int], between: Callable[[], None]) -> Iterator[list[int]]:
    """Yield the indexes of texts of these sizes in tokens, batch by batch; texts of like length come together."""
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    while order:
        count = max(1, TOKENS_AT_ONCE // max(1, sizes[order[0]]))
        yield order[:count]
        del order[:count]
        if order:
            between()


def size(text: str) -> int:
    """Return how many tokens a text has, about."""
    return len(text.encode()) // TOKEN_SIZE


def pad(rows: Sequence[Sequence[int] | Tokens], token: int) -> tuple[Tokens, Tokens]:
    """Return ids and mask of rows of tokens, all as long as the longest: (texts, tokens)."""
    lengths = np.array([len(row) for row in rows])
    present = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(present.shape, max(token, 0), np.int64)
    ids[present] = np.concatenate(rows)
    return ids, present.astype(np.int64)


class Encoder:
    """A compiled model with one output.

    :param output: extends the graph of the model and returns what is to be its only output.
    """

    def __init__(self, spec: dict[str, Any], pipe: Pipe, output: Callable[[openvino.Model], openvino.Output]) -> None:
        device = common.device(spec, pipe, "target_device")
        core = openvino.Core()
        model = core.read_model(common.models_path(spec) / "openvino_model.xml")
        wanted = ops.result(output(model))
        for each in model.get_results():
            model.remove_result(each)
        model.add_results([wanted])
        self._request = core.compile_model(model, device, common.properties(spec)).create_infer_request()
        self._inputs = {name for port in model.inputs for name in port.get_names()}
        self._stateful = bool(self._request.query_state())

    def __call__(self, ids: Tokens, mask: Tokens, kinds: Tokens | None = None) -> NDArray[np.float32]:
        """Return a row for each text.

        :param ids: (texts, tokens), like all of these.
        :param mask: 1, or 0 where ``ids`` is padded, on either side.
        :param kinds: 1 where a token belongs to the second text of a pair.
        """
        feed: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids) if kinds is None else kinds
        if "position_ids" in self._inputs:
            feed["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        if "beam_idx" in self._inputs:
            feed["beam_idx"] = np.arange(len(ids), dtype=np.int32)
        if self._stateful:
            self._request.reset_state()
        self._request.infer({name: openvino.Tensor(value) for name, value in feed.items() if name in self._inputs})
        return np.array(self._request.get_output_tensor(0).data, np.float32)


def answer(model: openvino.Model) -> openvino.Output:
    """Return what the model gives first."""
    found: openvino.Output = model.get_results()[0].input_value(0)
    return found


def at_last_token(model: openvino.Model, values: openvino.Output) -> openvino.Node:
    """Return, of (texts, tokens, size), what stands at the last token of each text that is not padding."""
    mask = model.input("attention_mask")
    one = ops.constant(1, np.int64)
    positions = ops.cum_sum(ops.broadcast(one, ops.shape_of(mask)), one, exclusive=True)
    last = ops.reduce_max(ops.multiply(positions, mask), one)
    return ops.gather(values, last, one, batch_dims=1)
