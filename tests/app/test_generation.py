"""What is known of a generation model: from its folder, from its engine, or by a careful guess."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.answers.generation import GenerationModels, takes_system
from tests.fakes import ScriptedEngine, word_counting_tokenizer_json

SAMPLE = "The key of the vault hangs in the hall, on the third hook from the door. " * 8

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}"
)
GEMMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] }}{% endfor %}"
)
GEMMA_3 = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + (first if loop.first else '') + message['content'] }}{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{{ '[INST] ' + (system if loop.index0 == 0 else '') + message['content'] + ' [/INST]' }}{% endfor %}"
)


@asynccontextmanager
async def models_of(
    engine: ScriptedEngine, folders: dict[str, Path] | None = None
) -> AsyncIterator[GenerationModels]:
    async with engine, engine.gateway() as gateway:
        yield GenerationModels(gateway, folders or {})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, True),
        (LLAMA_2, True),
        (GEMMA_2, False),
        (GEMMA_3, False),
        ("{% strange %}", None),
        ("{{ messages[0]['content'] + 1 }}", False),
    ],
)
def test_a_chat_template_shows_whether_it_has_a_system_role(template: str, expected: bool | None) -> None:
    assert takes_system(template) is expected


async def test_a_model_on_this_machine_is_counted_by_its_own_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(word_counting_tokenizer_json())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": GEMMA_2}]})
    )
    engine = ScriptedEngine(max_model_len=512)
    async with models_of(engine, {"scripted": tmp_path}) as models:
        model = await models.of("scripted", tenant="north", sample=SAMPLE)
    assert model.count_tokens("The key, in the hall.") == 7
    assert (model.max_tokens, model.takes_system) == (512, False)
    assert engine.bodies == []


async def test_an_engine_that_counts_is_asked_once_a_tenant() -> None:
    engine = ScriptedEngine(count_tokens=lambda text: len(text) // 2)
    async with models_of(engine) as models:
        short = await models.of("scripted", tenant="north", sample="Too short.")
        first = await models.of("scripted", tenant="north", sample=SAMPLE)
        again = await models.of("scripted", tenant="north", sample=SAMPLE)
        other = await models.of("scripted", tenant="south", sample=SAMPLE)
    assert len(engine.tokenized) == 2
    assert short.count_tokens(SAMPLE) == pytest.approx(len(SAMPLE) / 3, abs=1)
    for model in (first, again, other):
        assert model.count_tokens(SAMPLE) == pytest.approx(1.1 * len(SAMPLE) / 2, rel=0.02)


async def test_an_engine_that_does_not_count_leaves_a_guess_that_is_rather_too_high() -> None:
    async with models_of(ScriptedEngine()) as models:
        model = await models.of("scripted", tenant="north", sample=SAMPLE)
    assert model.count_tokens(SAMPLE) >= len(SAMPLE) / 4
    assert model.count_tokens("钥匙挂在大厅里。") == 8
    assert model.takes_system is True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma-2-9b-it", False),
        ("google/gemma-3-27b-it", False),
        ("gemma3n:e4b", False),
        ("gemma-4-31b-it", True),
        ("Mistral-7B-Instruct-v0.2", False),
        ("Mistral-7B-Instruct-v0.3", True),
        ("Mixtral-8x7B-Instruct-v0.1", False),
        ("DeepSeek-R1-Distill-Qwen-7B", False),
        ("Qwen3-8B", True),
        ("gpt-oss-20b", True),
        ("Phi-4-mini-instruct", True),
    ],
)
async def test_families_without_a_system_role_are_known_by_name(name: str, expected: bool) -> None:
    async with models_of(ScriptedEngine(models=(name,))) as models:
        assert (await models.of(name, tenant="north", sample="")).takes_system is expected


async def test_room_is_what_messages_and_answer_leave() -> None:
    async with models_of(ScriptedEngine(max_model_len=1_000)) as models:
        model = await models.of("scripted", tenant="north", sample="")
    assert model.room(["x" * 300, "y" * 30], answer_tokens=200) == 1_000 - 200 - 100 - 10 - 3 * 16


def test_the_demo_engines_folder_tells_all_of_it() -> None:
    folder = Path(__file__).parents[2] / "data" / "models" / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        pytest.skip("no demo engine model (make setup)")
    assert takes_system((folder / "chat_template.jinja").read_text()) is True
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("The key.").ids
