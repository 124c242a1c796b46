"""A model that answers nonsense is a metric, by device."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ovms_kernel.values import LocalModel
from ovms_observer_metrics import Metrics, registry


async def test_a_suspect_model_is_shown_with_its_device() -> None:
    model = LocalModel("me/m", Path(), "text_generation", 1, "ab" * 32, datetime.now(UTC))
    await Metrics().ovms_model_suspect(model=model, device="GPU")
    families = text_string_to_metric_families(generate_latest(registry).decode())
    [found] = [each for each in families if each.name == "ovms_model_suspect"]
    shown = {(each.labels["model"], each.labels["device"]): each.value for each in found.samples}
    assert shown["me/m", "GPU"] == 1.0
