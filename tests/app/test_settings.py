"""Settings, and the words that describe them, agree with the code."""

import re
from pathlib import Path

import pytest

from app.settings import Settings, SettingsInvalid, example_environment, read_settings

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


def test_an_option_that_was_not_given_leaves_a_setting_alone() -> None:
    assert Settings().with_options(server={"port": None, "host": "0.0.0.0"}).server.port == 8080
