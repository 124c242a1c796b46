"""Errors with the status that OVMS gives them."""

from __future__ import annotations

from ovms_embedded import wire

STATUS = {wire.INVALID: 400, wire.PRECONDITION: 412, wire.INTERNAL: 500}


class HttpError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class Invalid(Exception):
    """What the calculator says of a request that it does not take: 400 with the calculator's prefix."""

    def __init__(self, text: str, kind: str = wire.INVALID) -> None:
        super().__init__(text)
        self.kind = kind


def calculator_error(node: str, kind: str, text: str) -> HttpError:
    """Return a calculator's error as the server reports it."""
    if kind == wire.INTERNAL:
        return HttpError(500, text)
    prefix = f"Mediapipe execution failed. MP status - {kind}: CalculatorGraph::Run() failed: \n"
    return HttpError(STATUS[kind], f'{prefix}Calculator::Process() for node "{node}" failed: {text}')
