"""Models that read texts whole and give numbers for each: what embeddings and rerank have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openvino
from openvino import opset13 as ops

from ovms_embedded.worker import common

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import openvino_genai
    from numpy.typing import NDArray

    from ovms_embedded.worker.pipe import Pipe

    Tokens = NDArray[np.int64]

TOKENS_AT_ONCE = 1 << 13
"""Tokens of one inference, with those that only fill a row: more at once are no faster, but take more memory, and it is
longer until somebody sees that nobody waits for them."""
SHARED_TOKENS = 1 << 9
"""The same where texts of several calls share an inference, so that none waits long for the texts of others. Measured
on two cores with a MiniLM of 8 bits: from 64 tokens on, a token costs the same however many there are."""
INFERENCE = 256
"""Tokens in whose time an inference starts and ends, about: rather than fill rows with more of them, infer twice."""
TOKEN_SIZE = 4
"""Bytes of text that a token stands for, about."""


def read(
    tokenizer: openvino_genai.Tokenizer, texts: list[str], between: Callable[[], None], **options: bool | int
) -> list[Tokens]:
    """Return the tokens of each text, some texts at a time.

    :param between: called before each time, if there are several.
    :param options: of the library's ``encode``.
    """
    guesses = [1 + len(text.encode()) // TOKEN_SIZE for text in texts]
    if max(guesses) * len(texts) <= TOKENS_AT_ONCE:  # as of nearly every request
        ids, mask = common.encode(tokenizer, texts, **options)
        return [row[kept] for row, kept in zip(ids, mask == 1, strict=True)]
    sizes = np.array(guesses)
    found: dict[int, Tokens] = {}
    for batch in batches(sizes, TOKENS_AT_ONCE):
        between()
        ids, mask = common.encode(tokenizer, [texts[at] for at in batch], **options)
        tokens = ids[mask == 1]
        ends = mask.sum(axis=1).cumsum().tolist()
        found |= {at: tokens[start:end] for at, start, end in zip(batch, [0, *ends], ends, strict=False)}
    return [found[at] for at in range(len(texts))]


def batches(sizes: Tokens, price: int, most: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Yield the indexes of texts of these sizes in tokens, batch by batch, the longest first.

    Texts of like length come together, because all rows of a batch are filled to the longest.

    :param price: tokens that a batch more is worth if as many need not be filled in.
    :param most: tokens of a batch; a longer text is one by itself.
    """
    order = np.argsort(-sizes, kind="stable")
    sizes = np.maximum(sizes[order], 1)
    start = 0
    while start < len(sizes):
        longest = int(sizes[start])
        end = min(len(sizes), start + max(1, most // longest))
        while True:
            spared = (end - np.arange(start, end)) * (longest - sizes[start:end])
            cut = int(spared.argmax())
            if spared[cut] <= price:
                break
            end = start + cut
        yield order[start:end].tolist()
        start = end


class Encoder:
    """A compiled model with one output.

    :param output: extends the graph of the model and returns what is to be its only output.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        pipe: Pipe,
        tokenizer: openvino_genai.Tokenizer,
        output: Callable[[openvino.Model], openvino.Output],
    ) -> None:
        device = common.device(spec, pipe, "target_device")
        core = openvino.Core()
        model = core.read_model(common.models_path(spec) / "openvino_model.xml")
        wanted = ops.result(output(model))
        for each in model.get_results():
            model.remove_result(each)
        model.add_results([wanted])
        self._request = core.compile_model(model, device, common.properties(spec, device)).create_infer_request()
        self._inputs = [(at, INPUTS[name]) for at, name in _known(model)]
        self._stateful = bool(self._request.query_state())
        self._filler = max(tokenizer.get_pad_token_id(), 0)

    def infer(self, rows: list[Tokens], firsts: list[int]) -> NDArray[np.float32]:
        """Return what the model gives for each text.

        Rows are filled to the longest one and no further. Measured with a MiniLM of 8 bits: 17 tokens take 10 ms, 32
        take 18; a length that suits the kernels (24 for 23) saves a tenth at most; one that is new costs 5 percent.

        :param rows: the tokens of each text.
        :param firsts: where a row is a pair, how many of its tokens come before those of the second text, else 0.
        """
        if self._stateful:
            self._request.reset_state()
        feed = _alone(rows[0], firsts[0]) if len(rows) == 1 and len(rows[0]) else _filled(rows, firsts, self._filler)
        for at, value in self._inputs:
            self._request.set_input_tensor(at, openvino.Tensor(value(feed)))
        self._request.infer(share_outputs=True, decode_strings=False)  # by this thread, and without a copy of results
        return np.array(self._request.get_output_tensor(0).data, np.float32)


class _Feed(NamedTuple):
    """What the texts of an inference are to a model, each (texts, tokens)."""

    ids: Tokens
    mask: Tokens
    kinds: Tokens


INPUTS: dict[str, Callable[[_Feed], NDArray[Any]]] = {
    "input_ids": lambda feed: feed.ids,
    "attention_mask": lambda feed: feed.mask,
    "token_type_ids": lambda feed: feed.kinds,
    "position_ids": lambda feed: np.maximum(feed.mask.cumsum(axis=1) - 1, 0),
    "beam_idx": lambda feed: np.arange(len(feed.ids), dtype=np.int32),
}
"""How each input that a model may have is made."""


def _known(model: openvino.Model) -> Iterator[tuple[int, str]]:
    """Yield number and name of each input."""
    for at, port in enumerate(model.inputs):
        yield from ((at, name) for name in port.get_names() if name in INPUTS)


def _alone(row: Tokens, first: int) -> _Feed:
    """Return the feed of one text, which needs no filling."""
    ids = row[None]
    kinds = np.zeros(ids.shape, np.int64)
    if first:
        kinds[:, first:] = 1
    return _Feed(ids, np.full(ids.shape, 1, np.int64), kinds)


def _filled(rows: list[Tokens], firsts: list[int], filler: int) -> _Feed:
    lengths = np.array([len(row) for row in rows])
    columns = np.arange(max(1, int(lengths.max())))
    present = columns < lengths[:, None]
    ids = np.full(present.shape, filler, np.int64)
    ids[present] = np.concatenate(rows)
    before = np.array(firsts)[:, None]
    kinds = present & (columns >= before) & (before > 0)
    return _Feed(ids, present.astype(np.int64), kinds.astype(np.int64))


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
