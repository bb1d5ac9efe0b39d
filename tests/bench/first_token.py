"""How much later the first token comes through Strongroom than from vLLM itself, without retrieval."""

import statistics

import httpx
import orjson

from tests.bench.clients import Wire
from tests.bench.figures import Bound, Figure, Samples
from tests.bench.run import QUICK_REASON, Run

SAYS = "first token: added over calling vLLM directly, p50"
MUST_REACH = Bound(5.0, is_upper=True)
PATH = "/v1/chat/completions"
WARM_UP = 5


def measure(run: Run) -> list[Figure]:
    """Pairs of one request each way in turn, over kept connections; every other pair goes the other way round."""
    url, key = run.stack.engine_address()
    body = _request(_model_name(url, key))
    through_s: list[float] = []
    direct_s: list[float] = []
    with Wire(run.stack.url, run.stack.key) as through, Wire(url, key) as direct:
        ways = [(through, through_s), (direct, direct_s)]
        for wire, _ in ways * WARM_UP:
            wire.first_token_s(PATH, body)
        for number in run.progress.track(range(run.sizes.pairs), description="first token"):
            for wire, seconds in ways if number % 2 == 0 else reversed(ways):
                seconds.append(wire.first_token_s(PATH, body))
    return [_figure(run, through_s, direct_s)]


def _figure(run: Run, through_s: list[float], direct_s: list[float]) -> Figure:
    added_s = [one - other for one, other in zip(through_s, direct_s, strict=True)]
    samples = {
        "through Strongroom": Samples.milliseconds(through_s),
        "vLLM itself": Samples.milliseconds(direct_s),
        "added, by pair": Samples.milliseconds(added_s),
    }
    added_ms = samples["through Strongroom"].percentile(50) - samples["vLLM itself"].percentile(50)
    standard_error_ms = 1000 * statistics.stdev(added_s) / len(added_s) ** 0.5
    return Figure(
        "first_token",
        SAYS,
        unit="ms",
        measured=round(added_ms, 2),
        bound=MUST_REACH,
        is_judged=not run.sizes.is_quick,
        reason=QUICK_REASON if run.sizes.is_quick else "",
        samples=samples,
        facts={
            "median of the pairs' differences, ms": round(samples["added, by pair"].percentile(50), 2),
            "standard error of their mean, ms": round(standard_error_ms, 2),
        },
    )


def _request(model: str) -> bytes:
    return orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Name a colour."}],
            "stream": True,
            "temperature": 0,
            "max_tokens": 2,
        }
    )


def _model_name(url: str, key: str) -> str:
    reply = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).raise_for_status()
    return str(reply.json()["data"][0]["id"])
