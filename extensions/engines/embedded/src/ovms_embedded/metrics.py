"""Counters in Prometheus's text format, under the names that OVMS uses."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate

BUCKETS = (
    10,
    18,
    32,
    58,
    105,
    188,
    339,
    611,
    1101,
    1982,
    3567,
    6421,
    11558,
    20804,
    37448,
    67407,
    121333,
    218400,
    393120,
)
"""Upper bounds in microseconds."""
DEFAULTS = (
    "ovms_streams",
    "ovms_current_requests",
    "ovms_current_graphs",
    "ovms_graph_loaded",
    "ovms_requests_success",
    "ovms_requests_fail",
    "ovms_requests_accepted",
    "ovms_requests_rejected",
    "ovms_responses",
    "ovms_request_time_us",
    "ovms_inference_time_us",
    "ovms_wait_for_infer_req_time_us",
)
OPTIONAL = ("ovms_infer_req_queue_size", "ovms_infer_req_active")
HELP = {
    "ovms_streams": "Number of pipelines of a loaded graph; requests share its steps.",
    "ovms_current_graphs": "Number of graphs currently in process.",
    "ovms_current_requests": "Number of requests currently in process.",
    "ovms_graph_loaded": "Whether the graph is loaded (1) or unloaded because it was idle (0).",
    "ovms_requests_success": "Number of successful requests to a model or a DAG.",
    "ovms_requests_fail": "Number of failed requests to a model or a DAG.",
    "ovms_requests_accepted": "Number of requests accepted by the graph.",
    "ovms_requests_rejected": "Number of requests rejected by the graph.",
    "ovms_responses": "Number of responses sent by the graph.",
    "ovms_request_time_us": "Processing time of requests to a model or a DAG.",
    "ovms_inference_time_us": "Time that requests were with the graph.",
    "ovms_wait_for_infer_req_time_us": "Time that requests waited for their graph, such as for its load.",
    "ovms_infer_req_queue_size": "Number of requests that may be with the graph, running and waiting.",
    "ovms_infer_req_active": "Number of requests that are with the graph.",
}
GAUGES = {
    "ovms_streams",
    "ovms_current_graphs",
    "ovms_current_requests",
    "ovms_graph_loaded",
    "ovms_infer_req_queue_size",
    "ovms_infer_req_active",
}


class Metrics:
    """What is counted; every family is listed only if it is wanted.

    :param wanted: names of the families, or nothing for the default ones.
    :raises ValueError: a name is not known.
    """

    def __init__(self, wanted: list[str] | None = None) -> None:
        if unknown := set(wanted or ()) - {*DEFAULTS, *OPTIONAL}:
            message = f"Metrics name not supported: {min(unknown)}"
            raise ValueError(message)
        self._wanted = tuple(wanted or DEFAULTS)
        self._values: dict[str, Counter[str]] = defaultdict(Counter)
        self._times: dict[str, dict[str, list[int]]] = defaultdict(dict)
        """By family and labels, how many times each bucket had; the last one is what all took together."""

    def add(self, family: str, labels: str, amount: int = 1) -> None:
        """Count."""
        self._values[family][labels] += amount

    def set(self, family: str, labels: str, value: int) -> None:
        """Set a gauge."""
        self._values[family][labels] = value

    def time(self, family: str, labels: str, seconds: float) -> None:
        """Enter a time into a histogram."""
        microseconds = int(seconds * 1e6)
        counts = self._times[family].setdefault(labels, [0] * (len(BUCKETS) + 2))
        counts[bisect_left(BUCKETS, microseconds)] += 1
        counts[-1] += microseconds

    def text(self) -> str:
        """Return the page."""
        lines: list[str] = []
        for family in self._wanted:
            values, times = self._values.get(family), self._times.get(family)
            if values or times:
                kind = "histogram" if times else "gauge" if family in GAUGES else "counter"
                lines += [f"# HELP {family} {HELP[family]}", f"# TYPE {family} {kind}"]
            for labels, value in (values or {}).items():
                lines.append(f"{family}{{{labels}}} {value}")
            for labels, counts in (times or {}).items():
                lines += _histogram(family, labels, counts)
        return "\n".join(lines) + "\n"


class Seen:
    """What is counted of one request to a graph.

    :param arrived: when it arrived, on the monotonic clock.
    """

    def __init__(self, metrics: Metrics, name: str, arrived: float, *, stream: bool) -> None:
        self._metrics = metrics
        self._graph = f'name="{name}"'
        self._labels = f'api="V3",interface="REST",method="{"Stream" if stream else "Unary"}",{self._graph}'
        self._arrived = self._began = arrived

    def reject(self) -> None:
        """The queue of the graph is full."""
        self._metrics.add("ovms_requests_rejected", self._labels)

    def accept(self) -> None:
        """The graph takes it."""
        self._metrics.add("ovms_requests_accepted", self._labels)
        self._metrics.add("ovms_current_graphs", self._graph)
        self._began = time.monotonic()

    def end(self, *, succeeded: bool) -> None:
        """It is answered, or failed."""
        ended = time.monotonic()
        if succeeded:
            self._metrics.add("ovms_requests_success", self._labels)
            self._metrics.add("ovms_responses", self._labels)
        else:
            self._metrics.add("ovms_requests_fail", self._labels)
        self._metrics.add("ovms_current_graphs", self._graph, -1)
        self._metrics.time("ovms_request_time_us", self._labels, ended - self._arrived)
        self._metrics.time("ovms_wait_for_infer_req_time_us", self._labels, self._began - self._arrived)
        self._metrics.time("ovms_inference_time_us", self._labels, ended - self._began)


def _histogram(family: str, labels: str, counts: list[int]) -> list[str]:
    *counts, together = counts
    totals = list(accumulate(counts))
    lines = [
        f'{family}_bucket{{{labels},le="{bound}"}} {total}'
        for bound, total in zip((*BUCKETS, "+Inf"), totals, strict=True)
    ]
    return [*lines, f"{family}_count{{{labels}}} {totals[-1]}", f"{family}_sum{{{labels}}} {together}"]
