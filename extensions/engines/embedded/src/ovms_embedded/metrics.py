"""Counters in Prometheus's text format, under the names that OVMS uses."""

from __future__ import annotations

from collections import Counter, defaultdict

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
    "ovms_current_graphs": "Number of graphs currently in process.",
    "ovms_current_requests": "Number of requests currently in process.",
    "ovms_graph_loaded": "Whether the graph is loaded (1) or unloaded because it was idle (0).",
    "ovms_requests_success": "Number of successful requests to a model or a DAG.",
    "ovms_requests_fail": "Number of failed requests to a model or a DAG.",
    "ovms_requests_accepted": "Number of requests accepted by the graph.",
    "ovms_requests_rejected": "Number of requests rejected by the graph.",
    "ovms_responses": "Number of responses sent by the graph.",
    "ovms_request_time_us": "Processing time of requests to a model or a DAG.",
}
GAUGES = {"ovms_current_graphs", "ovms_current_requests", "ovms_graph_loaded"}


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
        self._times: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, family: str, labels: str, amount: int = 1) -> None:
        """Count."""
        self._values[family][labels] += amount

    def set(self, family: str, labels: str, value: int) -> None:
        """Set a gauge."""
        self._values[family][labels] = value

    def time(self, labels: str, seconds: float) -> None:
        """Enter the time that a request took."""
        microseconds = int(seconds * 1e6)
        counts = self._times.setdefault(labels, [0] * (len(BUCKETS) + 1))
        counts[next((at for at, bound in enumerate(BUCKETS) if microseconds <= bound), len(BUCKETS))] += 1
        self._sums[labels] += microseconds

    def text(self) -> str:
        """Return the page."""
        lines: list[str] = []
        for family in self._wanted:
            if family == "ovms_request_time_us" and self._times:
                lines += [f"# HELP {family} {HELP[family]}", f"# TYPE {family} histogram"]
                for labels, counts in self._times.items():
                    total = 0
                    for bound, count in zip((*BUCKETS, "+Inf"), counts, strict=True):
                        total += count
                        lines.append(f'{family}_bucket{{{labels},le="{bound}"}} {total}')
                    lines.append(f"{family}_count{{{labels}}} {total}")
                    lines.append(f"{family}_sum{{{labels}}} {self._sums[labels]}")
            elif values := self._values.get(family):
                kind = "gauge" if family in GAUGES else "counter"
                lines += [f"# HELP {family} {HELP[family]}", f"# TYPE {family} {kind}"]
                lines += [f"{family}{{{labels}}} {value}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"
