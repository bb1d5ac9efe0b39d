"""Every reply of every operation of OpenAI's interface is what OpenAI's own document says it is."""

from pathlib import Path
from typing import Any

import pytest

from tests.contracts.coverage import Score, scores
from tests.contracts.exchanges import Exchange
from tests.contracts.openai_journey import opened, walk_through
from tests.contracts.openai_spec import NO_SPEC, SPEC, Json, Judge, Operation, Spec, openai_judge
from tests.serving.hosting import MINILM, NO_MINILM

if not SPEC.is_file():
    pytest.skip(NO_SPEC, allow_module_level=True)

if not MINILM.is_dir():
    pytest.skip(NO_MINILM, allow_module_level=True)

COMPLETE = ("Files", "Uploads", "Vector stores", "Embeddings")
LEAST = {"Chat": 0.83, "Responses": 0.88, "Conversations": 0.98, "Models": 0.76, "Batches": 0.98}
"""What is left are tools that need the internet or a machine, speech, moderation, and models that cannot be deleted."""


async def test_every_reply_is_as_openais_document_says_and_nothing_of_some_areas_is_missing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as api:
        exchanges = await walk_through(api)
        measured = scores(api.app.openapi(), exchanges)
    assert wrong_in(exchanges, openai_judge()) == []
    assert all(each.headers["x-request-id"] for each in exchanges)
    assert {area: measured[area].missing for area in COMPLETE} == dict.fromkeys(COMPLETE, ())
    assert {area for area, least in LEAST.items() if measured[area].share < least} == set()


def wrong_in(exchanges: list[Exchange], judge: Judge) -> list[str]:
    return [
        f"{each.method} {each.path} {each.status}: {error}"
        for each in exchanges
        for error in judge.errors(
            each.method, each.path, each.status, each.headers.get("content-type", ""), each.body
        )
    ]


def test_the_judge_notices_what_is_wrong() -> None:
    judge = openai_judge()
    file = b'{"id": "file-1", "object": "file", "bytes": %s, "created_at": 1, "filename": "a", "purpose": "batch"'
    for body, count in ((file % b"1" + b', "status": "processed", "more": 1}', 0), (file % b'"1"' + b"}", 2)):
        assert len(judge.errors("GET", "/v1/files/file-1", 200, "application/json", body)) == count
    assert judge.errors("GET", "/v1/files/file-1", 404, "application/json", b'{"detail": "Not Found"}')
    assert judge.errors("GET", "/v1/files/file-1", 404, "text/plain", b"Not Found")


def test_a_path_finds_its_operation() -> None:
    spec = openai_judge().spec
    operation = spec.operation_of("POST", "/v1/responses/compact")
    assert isinstance(operation, Operation)
    assert operation.path == "/responses/compact"
    assert spec.operation_of("GET", "/v1/files/a/b/c") is None


def test_a_kind_that_ours_does_not_list_is_missing_with_all_that_it_holds() -> None:
    def document(*kinds: str, **more: Any) -> Json:
        tools = [
            {"type": "object", "properties": {"type": {"enum": [kind]}, "depth": {"type": "integer"}}, **more}
            for kind in kinds
        ]
        schema = {
            "type": "object",
            "properties": {"tools": {"type": "array", "items": {"anyOf": tools}}, "more": {"type": "null"}},
        }
        body = {"content": {"application/json": {"schema": schema}}}
        return {"paths": {"/responses": {"post": {"requestBody": body, "responses": {}}}}}

    passing = document("search", **{"x-passed-through": True})
    del passing["paths"]["/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]["tools"]["items"]["anyOf"][0]["properties"]["depth"]
    theirs = document("search", "fly")
    theirs["paths"]["/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]["more"] = {"type": "string"}
    for ours in (document("search"), passing):
        (score,) = [each for each in scores(ours, (), theirs=Spec(theirs)).values() if each.total]
        at = "POST /responses >"
        missing = {f"{at}.tools[]<fly>", f"{at}.tools[]<fly>.type", f"{at}.tools[]<fly>.depth", f"{at}.more"}
        assert set(score.missing) == missing


def test_a_score_counts_what_is_honoured_and_names_what_is_not() -> None:
    score = Score(honoured=3, missing=("query after",))
    assert (score.total, score.share) == (4, 0.75)
