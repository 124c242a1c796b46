"""Sizes and devices of an image generation graph, and which combinations do not load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ovms_embedded.worker.pipe import Refused

Size = tuple[int, int]
PARTS = 3
"""Text encoder, denoiser and VAE."""


@dataclass(frozen=True)
class Resolutions:
    """Which sizes, as width and height, a graph takes."""

    largest: Size
    default: Size | None
    listed: tuple[Size, ...]

    @property
    def static(self) -> Size | None:
        """The only size there is, for which the models are compiled."""
        return self.listed[0] if len(self.listed) == 1 else None

    def choose(self, wanted: list[int] | None) -> Size | None:
        """Return the size to use, or nothing for the model's own.

        :raises Refused: the graph does not take it.
        """
        if wanted is None:
            return self.static or self.default
        size = (wanted[0], wanted[1])
        if self.listed and size not in self.listed:
            raise Refused("Requested resolution is not on the list of this graph")
        if size[0] > self.largest[0] or size[1] > self.largest[1]:
            raise Refused(
                f"Requested resolution exceeds maximum allowed resolution: {self.largest[0]}x{self.largest[1]}"
            )
        return size


def resolutions(options: dict[str, Any]) -> Resolutions:
    """Return the sizes of a graph.

    :raises ValueError: they contradict each other.
    """
    listed = tuple(parse(each) for each in str(options.get("resolution") or "").split())
    if len(set(listed)) != len(listed):
        message = "resolution lists a size twice"
        raise ValueError(message)
    if len(listed) != 1 and ("num_images_per_prompt" in options or "guidance_scale" in options):
        message = "num_images_per_prompt and guidance_scale need exactly one resolution"
        raise ValueError(message)
    if listed and (both := {"max_resolution", "max_num_images_per_prompt"} & set(options["given"])):
        message = f"{min(both)} cannot be used together with resolution"
        raise ValueError(message)
    largest = parse(options["max_resolution"])
    default = parse(options["default_resolution"]) if options.get("default_resolution") else None
    if default is not None:
        if default[0] > largest[0] or default[1] > largest[1]:
            message = "default_resolution exceeds max_resolution"
            raise ValueError(message)
        if listed and default not in listed:
            message = "default_resolution is not in resolution"
            raise ValueError(message)
    return Resolutions(largest, default, listed)


def parse(text: str) -> Size:
    """Return a size from ``WxH``.

    :raises ValueError: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if match is None:
        message = f"{text} is not a resolution; it should look like 512x512"
        raise ValueError(message)
    return int(match[1]), int(match[2])


def devices(text: str, sizes: Resolutions) -> tuple[str, ...]:
    """Return the devices of text encoder, denoiser and VAE.

    :raises ValueError: there are neither one nor three.
    """
    named = text.split()
    if len(named) not in (1, PARTS):
        message = f"device names {len(named)} devices; it takes one, or three for text encoder, denoiser and VAE"
        raise ValueError(message)
    if any(each.startswith("NPU") for each in named) and sizes.static is None:
        message = "NPU needs exactly one resolution"
        raise ValueError(message)
    return tuple(named * PARTS if len(named) == 1 else named)
