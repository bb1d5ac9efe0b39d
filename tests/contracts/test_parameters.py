"""The README says of each of OpenAI's parameters what becomes of it, and says so by what is checked."""

import pytest

from tests.contracts.openai_spec import NO_SPEC, SPEC
from tests.contracts.parameters import README, our_document, table, written

if not SPEC.is_file():
    pytest.skip(NO_SPEC, allow_module_level=True)


def test_the_readmes_table_of_parameters_is_what_the_requests_models_take() -> None:
    readme = README.read_text()
    assert written(readme, table(our_document())) == readme
