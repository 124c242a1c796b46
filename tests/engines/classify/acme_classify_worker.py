"""Text classification: the model, which lives in the worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai as genai

from ovms_embedded.worker import common
from ovms_embedded.worker.pipe import Refused, serve

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe


class Classifier:
    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        folder = common.models_path(spec)
        self.pipe = pipe
        self.labels: list[str] = spec["options"]["labels"]
        self.window = common.window(folder)
        self.tokenizer = genai.Tokenizer(folder)
        self.model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
        self.info = {"labels": self.labels}

    def run(self) -> None:
        serve(self.pipe, {"classify": self.classify, "tokenize": self.tokenize})

    def tokenize(self, _: int, payload: dict[str, Any]) -> list[list[int]]:
        return common.tokenize(self.tokenizer, payload, self.window)

    def classify(self, _: int, payload: dict[str, Any]) -> dict[str, Any]:
        if not payload["text"]:
            raise Refused("text is empty")
        ids, mask = common.encode(self.tokenizer, [payload["text"]])
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        named = {name for port in self.model.inputs for name in port.get_names()}
        [logit] = next(iter(self.model({name: feed[name] for name in named}).values()))[0]
        return {"label": self.labels[int(logit > 0)], "score": float(logit)}


def load(spec: dict[str, Any], pipe: Pipe) -> Classifier:
    return Classifier(spec, pipe)
