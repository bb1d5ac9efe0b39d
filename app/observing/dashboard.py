"""The Grafana dashboard as code: `python -m app.observing.dashboard` writes configuration/grafana/dashboard.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

Json = dict[str, Any]

FILE = Path(__file__).parent / "configuration" / "grafana" / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT = 3, 8
GRID = 24


@dataclass(frozen=True)
class Panel:
    """A graph; `lines` are expressions with what each line is called."""

    title: str
    unit: str
    lines: Sequence[tuple[str, str]]
    description: str = ""


def _quantiles(histogram: str, *, by: str = "", chosen: str = "") -> list[tuple[str, str]]:
    labels, legend = (f", {by}", "{{" + by + "}} ") if by else ("", "")
    return [
        (
            f"histogram_quantile({quantile}, sum by (le{labels}) (rate({histogram}_bucket{chosen}[5m])))",
            f"{legend}p{quantile * 100:.0f}",
        )
        for quantile in (0.5, 0.95)
    ]


ROWS: dict[str, Sequence[Panel]] = {
    "People": (
        Panel(
            "Requests",
            "reqps",
            [("sum by (route) (rate(strongroom_requests_total[5m]))", "{{route}}")],
        ),
        Panel(
            "Replies that are errors",
            "percentunit",
            [
                (
                    'sum(rate(strongroom_requests_total{status=~"5.."}[5m]))'
                    " / sum(rate(strongroom_requests_total[5m]))",
                    "5xx",
                ),
                (
                    'sum(rate(strongroom_requests_total{status="429"}[5m])) / sum(rate(strongroom_requests_total[5m]))',
                    "429",
                ),
            ],
        ),
        Panel(
            "Chat: time to first byte",
            "s",
            _quantiles("strongroom_first_byte_seconds", chosen='{route="/v1/chat/completions"}'),
        ),
        Panel("Stages, p95", "s", _quantiles("strongroom_stage_seconds", by="stage")[1:]),
        Panel(
            "Collections",
            "short",
            [("max(strongroom_collections)", "collections"), ("max(strongroom_workers)", "workers")],
        ),
        Panel(
            "Quotas that were reached, entries of the audit log, a second",
            "short",
            [
                ("sum by (quota) (rate(strongroom_quota_refusals_total[5m]))", "{{quota}}"),
                ("deriv(max(strongroom_audit_entries)[5m:])", "audit"),
            ],
        ),
        Panel("Free on disk", "bytes", [("min(strongroom_disk_free_bytes)", "free")]),
    ),
    "Documents": (
        Panel("Ingestion jobs", "short", [("max by (state) (strongroom_ingestion_jobs)", "{{state}}")]),
        Panel(
            "The document that waits longest",
            "s",
            [("max(strongroom_ingestion_oldest_due_seconds)", "seconds")],
        ),
        Panel("Sources", "short", [("max by (state) (strongroom_sources)", "{{state}}")]),
        Panel("Indexes in memory", "short", [("sum by (kind) (strongroom_vector_indexes)", "{{kind}}")]),
        Panel(
            "Recall of approximate search at 10",
            "percentunit",
            [("min by (of) (strongroom_vector_recall_at_10)", "{{of}}")],
            "Against exact search, over a sample of queries.",
        ),
    ),
    "Embedding and reranking": (
        Panel("Texts that wait", "short", [("sum by (lane) (strongroom_models_waiting_texts)", "{{lane}}")]),
        Panel("Wait for a batch", "s", _quantiles("strongroom_models_wait_seconds", by="lane")),
        Panel(
            "Tokens computed",
            "short",
            [
                ("sum by (model) (rate(strongroom_models_tokens_total[5m]))", "{{model}}"),
                ("sum(rate(strongroom_models_padding_tokens_total[5m]))", "padding"),
            ],
        ),
        Panel(
            "Cache hits",
            "percentunit",
            [
                (
                    "sum(rate(strongroom_models_cache_hits_total[5m]))"
                    " / (sum(rate(strongroom_models_cache_hits_total[5m]))"
                    " + sum(rate(strongroom_models_cache_misses_total[5m])))",
                    "of texts",
                )
            ],
        ),
        Panel(
            "Refused at the door",
            "reqps",
            [("sum by (lane) (rate(strongroom_models_refused_requests_total[5m]))", "{{lane}}")],
        ),
        Panel(
            "Memory of models", "bytes", [("sum by (model) (strongroom_models_memory_bytes)", "{{model}}")]
        ),
    ),
    "Generation": (
        Panel(
            "Requests by how they ended",
            "reqps",
            [("sum by (outcome) (rate(strongroom_generation_requests_total[5m]))", "{{outcome}}")],
        ),
        Panel(
            "In flight, and the limit",
            "short",
            [
                ("sum by (replica) (strongroom_generation_in_flight)", "replica {{replica}}"),
                ("sum(strongroom_generation_in_flight_limit)", "limit"),
                ("sum(strongroom_generation_queued)", "waiting"),
            ],
        ),
        Panel("Time to first byte", "s", _quantiles("strongroom_generation_first_byte_seconds", by="lane")),
        Panel(
            "Engines by state",
            "short",
            [("sum by (state) (strongroom_generation_replica_state)", "{{state}}")],
        ),
        Panel(
            "Tokens by the second",
            "short",
            [
                ("sum(rate(vllm:generation_tokens_total[5m]))", "generated"),
                ("sum(rate(vllm:prompt_tokens_total[5m]))", "read"),
            ],
        ),
        Panel("Between tokens", "s", _quantiles("vllm:inter_token_latency_seconds")),
        Panel("KV cache in use", "percentunit", [("max(vllm:kv_cache_usage_perc)", "of the fullest engine")]),
        Panel(
            "Prefix cache hits",
            "percentunit",
            [
                (
                    "sum(rate(vllm:prefix_cache_hits_total[5m])) / sum(rate(vllm:prefix_cache_queries_total[5m]))",
                    "of tokens",
                )
            ],
        ),
        Panel("Preemptions", "short", [("sum(rate(vllm:num_preemptions_total[5m]))", "by the second")]),
    ),
}


def dashboard() -> Json:
    panels: list[Json] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": GRID, "h": 1},
            }
        )
        top += 1
        for place, panel in enumerate(row):
            across, down = place % COLUMNS, place // COLUMNS
            width = GRID // COLUMNS
            position = {"x": across * width, "y": top + down * HEIGHT, "w": width, "h": HEIGHT}
            panels.append(_shape(panel, len(panels) + 1, position))
        top += -(-len(row) // COLUMNS) * HEIGHT
    return {
        "uid": "strongroom",
        "title": "Strongroom",
        "schemaVersion": 41,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels,
    }


def _shape(panel: Panel, number: int, position: Json) -> Json:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.lines)
        ],
    }


def rendered() -> bytes:
    return orjson.dumps(dashboard(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    FILE.write_bytes(rendered())
