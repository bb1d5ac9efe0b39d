"""A short run of what `python -m tests.contracts.fuzz` does at length."""

import pytest

from tests.contracts.fuzz import fuzz
from tests.serving.hosting import MINILM, NO_MINILM

if not MINILM.is_dir():
    pytest.skip(NO_MINILM, allow_module_level=True)


async def test_no_request_that_the_description_leads_to_breaks_the_api() -> None:
    status, said = await fuzz(cases=40, max_time_s=20, phases="fuzzing,stateful")
    assert status == 0, said
    assert "API Links:" in said
    assert "No issues found" in said
