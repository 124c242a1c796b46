"""Every dialect here keeps what a dialect has to keep."""

import inspect

from ovms_dialect_anthropic import Anthropic
from ovms_dialect_ollama import Ollama
from ovms_kernel.testing.contract import DialectContract
from ovms_observer_metrics import MetricsPage


class TestAnthropic(DialectContract):
    driver = Anthropic


class TestOllama(DialectContract):
    driver = Ollama


class TestMetricsPage(DialectContract):
    driver = MetricsPage


def test_an_error_is_a_json_object_in_each_of_them() -> None:
    for driver in (Anthropic, Ollama, MetricsPage):
        dialect = driver()
        assert "no such model" in str(dialect.error(404, "no such model", "model_not_found"))
        assert inspect.signature(dialect.error).parameters.keys() == {"status", "message", "code"}
