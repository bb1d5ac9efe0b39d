"""Settings, and the words that describe them, agree with the code."""

import re
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.settings import ModelSource, Settings, SettingsInvalid, example_environment, read_settings

ROOT = Path(__file__).parents[2]


def test_the_example_environment_lists_every_setting() -> None:
    assert (ROOT / ".env.example").read_text() == example_environment()


def test_a_toml_file_and_the_environment_are_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strongroom.toml").write_text('[server]\nport = 9000\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("STRONGROOM_SERVER__PORT", "9001")
    settings = read_settings(tmp_path)
    assert (settings.server.host, settings.server.port) == ("127.0.0.2", 9001)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[server]\nprot = 1", "server.prot"),
        ("[sever]\nport = 1", "sever"),
        ("port = 1", "port"),
        ('[server]\nport = "x"', "server.port"),
        ("[server]\nport = 70000", "server.port"),
        ("[chat]\npassages = 0", "chat.passages"),
        ("[server", "TOML"),
    ],
)
def test_an_unknown_or_impossible_setting_is_refused_by_name(tmp_path: Path, toml: str, named: str) -> None:
    (tmp_path / "strongroom.toml").write_text(toml)
    with pytest.raises(SettingsInvalid, match=re.escape(named)):
        read_settings(tmp_path)


def test_a_child_process_reads_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().with_options(server={"port": 8123}, engine={"url": "http://a, http://b"})
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert read_settings(tmp_path) == settings
    assert settings.engine_urls == ["http://a", "http://b"]


def test_a_value_may_stand_in_a_file_as_secrets_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "password").write_text("with/signs@and:more\n")
    monkeypatch.setenv("STRONGROOM_MODELS__TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("STRONGROOM_STORAGE__DATABASE_URL", "postgresql://ada@host:5432/strongroom")
    monkeypatch.setenv("STRONGROOM_STORAGE__DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    settings = read_settings(tmp_path)
    assert settings.models.token == "s3cret"
    url = make_url(settings.database_url)
    assert (url.username, url.password, url.host) == ("ada", "with/signs@and:more", "host")
    monkeypatch.setenv("STRONGROOM_ENGINE__TOKEN_FILE", str(tmp_path / "missing"))
    with pytest.raises(SettingsInvalid, match="STRONGROOM_ENGINE__TOKEN_FILE"):
        read_settings(tmp_path)


def test_the_key_of_readmes_clients_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_settings(tmp_path)
    monkeypatch.setenv("STRONGROOM_KEY", "sk-1")
    assert read_settings(tmp_path) == before


def test_an_option_that_was_not_given_leaves_a_setting_alone() -> None:
    assert Settings().with_options(server={"port": None, "host": "0.0.0.0"}).server.port == 8080


def test_models_are_declared_by_alias_and_the_first_is_the_default() -> None:
    models = (
        Settings()
        .with_options(
            models={
                "embedding": "small = BAAI/bge-small-en, intfloat/e5-base,/models/all-MiniLM-L6-v2/",
                "reranker": "rank=r",
            }
        )
        .models
    )
    assert models.embeddings == (
        ModelSource("small", "BAAI/bge-small-en"),
        ModelSource("e5-base", "intfloat/e5-base"),
        ModelSource("all-MiniLM-L6-v2", "/models/all-MiniLM-L6-v2/"),
    )
    assert models.rerankers == (ModelSource("rank", "r"),)
    assert (models.default_embedding, models.default_reranker) == ("small", "rank")


def test_one_embedding_model_and_no_reranker_are_declared_at_first() -> None:
    models = Settings().models
    assert models.default_embedding == "all-MiniLM-L6-v2"
    assert models.rerankers == ()
    assert models.default_reranker is None


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"embedding": ""}, "models.embedding: name at least one"),
        ({"embedding": "a,,b"}, "models.embedding: '' names no model"),
        ({"embedding": "a="}, "models.embedding: 'a=' names no model"),
        ({"embedding": "a,x=a,a=b"}, "models.embedding: 'a' is declared twice"),
        ({"embedding": "my model"}, "models.embedding: 'my model' cannot be an alias"),
        ({"embedding": ".."}, "models.embedding: '..' cannot be an alias"),
        ({"embedding": "=b"}, "models.embedding: '' cannot be an alias"),
        ({"embedding": "ü=b"}, "write alias=source"),
        ({"embedding": "a,b", "reranker": "b"}, "models.reranker: 'b' is an embedding model's alias already"),
        ({"replicas": -1}, "models.replicas"),
        ({"memory_mib": -1}, "models.memory_mib"),
        ({"backend": "onnx"}, "models.backend"),
    ],
)
def test_a_wrong_declaration_of_models_is_refused_with_what_to_change(
    declared: dict[str, object], told: str
) -> None:
    with pytest.raises(SettingsInvalid, match=re.escape(told)):
        Settings().with_options(models={**declared, "token": "a secret"})


def test_a_refusal_of_models_does_not_tell_other_settings() -> None:
    with pytest.raises(SettingsInvalid) as refusal:
        Settings().with_options(models={"embedding": "a,a", "token": "a secret"})
    assert "secret" not in str(refusal.value)


def test_a_child_process_reads_the_same_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().with_options(
        models={"embedding": "a=b,c", "reranker": "r", "memory_mib": 5, "idle_unload_s": 1.5, "replicas": 2}
    )
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert read_settings(tmp_path).models == settings.models


@pytest.mark.parametrize("token", ["", "secret", "changeme", "passpasspasspass"])
def test_a_models_server_that_others_can_reach_needs_a_random_token(token: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"models\.token must be a random secret"):
        Settings().with_options(models={"host": "0.0.0.0", "token": token})
    assert Settings().with_options(models={"host": "127.0.0.1", "token": token})
    assert Settings().with_options(models={"host": "10.0.0.1", "token": "0123456789abcdef" * 4})


@pytest.mark.parametrize(
    "arguments",
    ["--trust-remote-code", "--seed 1 --trust_remote_code=true", "--load-format pt", "--load_format=npcache"],
)
def test_an_engine_that_would_run_a_model_s_own_code_is_refused(arguments: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"engine\.extra_args.*would run code"):
        Settings().with_options(engine={"extra_args": arguments})
    assert Settings().with_options(engine={"extra_args": "--load-format safetensors --seed 1"})
