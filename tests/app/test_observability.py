"""The dashboard and the alert rules ask for metrics that exist, in a language that Prometheus understands."""

import re
from pathlib import Path
from typing import Any

import orjson
import promql_parser
import pytest
import yaml

from app.observing.dashboard import FILE, ROWS, rendered
from tests.app.conftest import Api
from tests.stack import ENGINE_PYTHON, ROOT

FOLDER = ROOT / "app" / "observing" / "configuration"
NAME = re.compile(r"\b(strongroom_\w+|vllm:\w+)")
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    of_panels = [line for row in ROWS.values() for panel in row for line, _ in panel.lines]
    return of_panels + [rule["expr"] for rule in rules()]


def asked(prefix: str) -> set[str]:
    names = {name for expression in expressions() for name in NAME.findall(expression)}
    return {name for name in names if name.startswith(prefix)}


def test_the_dashboards_file_is_what_its_code_makes() -> None:
    assert FILE.read_bytes() == rendered(), "python -m app.observing.dashboard writes it"
    panels = orjson.loads(rendered())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_is_promql(expression: str) -> None:
    promql_parser.parse(expression)


async def test_each_metric_of_ours_that_is_asked_for_is_told(api: Api) -> None:
    store = await api.store()
    await api.add_document(store, "a.txt", "The harbour master is Ondine Marsh.")
    await api.chat("Who is the harbour master?")
    text = (await api.http.get("/metrics")).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    present = {name + suffix for name, kind in kinds.items() for suffix in SUFFIXES[kind]}
    assert asked("strongroom_") <= present, asked("strongroom_") - present


def test_each_metric_of_the_engine_that_is_asked_for_is_one_of_vllms() -> None:
    sources = [*ENGINE_PYTHON.parents[1].glob("lib/python*/site-packages/vllm/v1/metrics/loggers.py")]
    if not sources:
        pytest.skip("vLLM is not installed: run `make setup`")
    found = re.findall(r'(gauge|counter|histogram)_cls\(\s*name="(vllm:\w+)"', sources[0].read_text())
    suffixes = {**SUFFIXES, "counter": ("_total",)}
    present = {name + suffix for kind, name in found for suffix in suffixes[kind]}
    assert len(present) > 20
    assert asked("vllm:") <= present, asked("vllm:") - present


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "action"}
    for command in re.findall(r"`strongroom (\w+)", rule["annotations"]["action"]):
        assert re.search(rf'"{command}"|def {command}\b', commands()), command


def commands() -> str:
    files = (ROOT / "app" / "cli.py", *Path(ROOT / "app" / "commands").glob("*.py"))
    return "".join(file.read_text() for file in files)
