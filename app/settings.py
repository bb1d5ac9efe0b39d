"""Every setting, from STRONGROOM_SECTION__NAME, else strongroom.toml. The only module that reads the environment."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

PREFIX = "STRONGROOM_"
TOML_FILE = "strongroom.toml"
MIB = 1024 * 1024


class SettingsInvalid(Exception):
    """A setting is unknown or has a value that it cannot have; the message names it."""


ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""An alias stands in URLs, metric labels and collection rows, so it is plain."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that the settings declare: the name it goes by, and where it is."""

    alias: str
    source: str
    """A folder's name or path, or a hub name."""


def parse_models(declared: str) -> tuple[ModelSource, ...]:
    """`alias=source` or `source`, by commas; an alias is else the source's last part. Raises ValueError."""
    if not declared.strip():
        return ()
    models: dict[str, ModelSource] = {}
    for part in declared.split(","):
        before, sign, after = (piece.strip() for piece in part.partition("="))
        source = after if sign else before
        if not source:
            raise ValueError(f"{part.strip()!r} names no model; write a folder, path or hub name")
        alias = before if sign else source.rstrip("/").rpartition("/")[2]
        if not ALIAS.fullmatch(alias):
            raise ValueError(
                f"{alias!r} cannot be an alias, which starts with a letter or digit and goes on with those "
                "and . _ -; write alias=source"
            )
        if alias in models:
            raise ValueError(f"{alias!r} is declared twice; write another alias=source for one of them")
        models[alias] = ModelSource(alias, source)
    return tuple(models.values())


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8080, ge=1, le=65535, description="Port that the API listens on.")
    public_url: str = Field(
        "", description="Address that people's browsers use; made from host and port if empty."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )


class StorageSettings(Section):
    data_dir: Path = Field(Path("data"), description="Folder for the embedded database, blobs and keys.")
    database_url: str = Field(
        "", description="postgresql://user:password@host/name; empty for the embedded database."
    )
    max_upload_bytes: int = Field(2048 * MIB, ge=1, description="Largest file that an upload may hold.")


class ModelsSettings(Section):
    url: str = Field("", description="Address of a models server; empty lets `serve` start one.")
    token: str = Field("", description="Secret between the roles and the models server.")
    host: str = Field("127.0.0.1", description="Address that `strongroom models` listens on.")
    port: int = Field(8091, ge=1, le=65535, description="Port that `strongroom models` listens on.")
    folder: Path = Field(Path("data/models"), description="Folder that model names are looked up in.")
    embedding: str = Field(
        "all-MiniLM-L6-v2",
        description="Embedding models by commas, the default first: alias=source, or a folder, path or hub name.",
    )
    reranker: str = Field(
        "", description="Cross-encoders, declared in the same way, the default first; empty for none."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models run.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the models."
    )
    backend: Literal["auto", "torch", "openvino"] = Field("auto", description="What computes the models.")
    threads: int = Field(
        0, ge=0, description="CPU threads that one replica of a model may use; 0 suits the machine."
    )
    replicas: int = Field(
        0, ge=0, le=64, description="Copies of each model, which share its work; 0 suits the machine."
    )
    memory_mib: int = Field(
        0, ge=0, description="Memory for loaded models; the least recently used leave. 0 for no limit."
    )
    idle_unload_s: float = Field(
        900.0, ge=0, description="Unused for so long, a model that is no default is unloaded; 0 for never."
    )
    cache_mib: int = Field(
        64, ge=0, description="Memory for embeddings of recent texts; 0 computes each text anew."
    )
    allow_download: bool = Field(
        False, description="Let the models server fetch hub models that are not on disk."
    )

    @field_validator("embedding", "reranker")
    @classmethod
    def _check_models(cls, declared: str, info: ValidationInfo) -> str:
        aliases = {model.alias for model in parse_models(declared)}
        if info.field_name == "embedding" and not aliases:
            raise ValueError("name at least one embedding model")
        if info.field_name == "reranker" and "embedding" in info.data:
            for model in parse_models(info.data["embedding"]):
                if model.alias in aliases:
                    raise ValueError(
                        f"{model.alias!r} is an embedding model's alias already; write another alias=source"
                    )
        return declared

    @property
    def embeddings(self) -> tuple[ModelSource, ...]:
        """One at least, the default first."""
        return parse_models(self.embedding)

    @property
    def rerankers(self) -> tuple[ModelSource, ...]:
        """The default first."""
        return parse_models(self.reranker)

    @property
    def default_embedding(self) -> str:
        """Its alias."""
        return self.embeddings[0].alias

    @property
    def default_reranker(self) -> str | None:
        """Its alias; None when no reranking model is declared."""
        return self.rerankers[0].alias if self.reranker.strip() else None


class EngineSettings(Section):
    url: str = Field("", description="OpenAI-compatible engines, by commas; empty lets `serve` start vLLM.")
    token: str = Field("", description="API key of those engines.")
    python: Path = Field(
        Path(".venv-engine/bin/python"), description="Interpreter of the environment that holds vLLM."
    )
    model: str = Field(
        "SmolLM2-135M-Instruct",
        description="Generation models for vLLM, by commas: a folder's name or path, or a hub name, or alias=one.",
    )
    replicas: int = Field(1, ge=1, le=64, description="vLLM servers for each generation model.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that one vLLM server spreads a model over.")
    speculative: str = Field(
        "",
        description="vLLM's speculative decoding, as the JSON of its --speculative-config; empty for none.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where vLLM runs.")
    max_model_len: int = Field(4096, ge=256, description="Longest prompt and answer together, in tokens.")
    kv_cache_gib: int = Field(1, ge=1, description="Memory for vLLM's key-value cache on a CPU, in GiB.")
    gpu_memory_utilization: float = Field(
        0, ge=0, le=1, description="Share of a GPU's memory for each vLLM; 0 is what the other models leave."
    )
    tool_parser: str = Field(
        "", description="vLLM's parser for the model's tool calls; empty turns tools off."
    )
    extra_args: str = Field("", description="More arguments for vLLM's server, as on a command line.")
    timeout_s: float = Field(600.0, gt=0, description="Longest time that one answer may take.")
    max_in_flight: int = Field(256, ge=1, description="Requests that one engine gets at once.")
    max_queued: int = Field(
        1024, ge=0, description="Requests that wait for an engine; more are refused with Retry-After."
    )

    @field_validator("model")
    @classmethod
    def _check_model(cls, declared: str) -> str:
        if not parse_models(declared):
            raise ValueError("name at least one generation model")
        return declared

    @field_validator("speculative")
    @classmethod
    def _check_speculative(cls, told: str) -> str:
        if told:
            try:
                is_object = isinstance(json.loads(told), dict)
            except json.JSONDecodeError as error:
                raise ValueError(f"it is not JSON: {error}") from error
            if not is_object:
                raise ValueError('write an object, such as {"method": "ngram", "num_speculative_tokens": 4}')
        return told

    @property
    def models(self) -> tuple[ModelSource, ...]:
        """One at least, the default first."""
        return parse_models(self.model)


class IngestSettings(Section):
    concurrency: int = Field(16, ge=1, description="Documents that one worker has in hand at once.")
    parsers: int = Field(2, ge=1, description="Parser processes of one worker.")
    parse_timeout_s: float = Field(
        20.0, gt=0, description="Time after which a parser is stopped; large files get more."
    )
    ocr_languages: str = Field(
        "eng", description="Languages of scanned pages, by tesseract's names, joined by +."
    )
    parse_memory_mib: int = Field(2048, ge=512, description="Memory that one parser may take.")
    lease_s: float = Field(
        15.0, ge=1, description="Time after which a silent worker's documents go to another."
    )


class SourcesSettings(Section):
    roots: str = Field(
        "", description="Folders, by commas, below which the API may add sources; empty for none."
    )
    hosts: str = Field(
        "",
        description="Hosts, by commas, with their subdomains, of which the API may add sources; empty for none.",
    )

    @field_validator("roots")
    @classmethod
    def _check_roots(cls, told: str) -> str:
        for root in _by_commas(told):
            if not Path(root).is_absolute():
                raise ValueError(f"{root!r} is no whole path; begin it with /")
        return told

    @property
    def root_folders(self) -> tuple[Path, ...]:
        return tuple(Path(root) for root in _by_commas(self.roots))

    @property
    def host_names(self) -> frozenset[str]:
        return frozenset(host.lower() for host in _by_commas(self.hosts))


class SearchSettings(Section):
    dense_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of meaning against words in a hybrid search."
    )


class ChatSettings(Section):
    passages: int = Field(3, ge=1, le=50, description="Most passages that an answer is written from.")
    passage_tokens: int = Field(700, ge=64, description="Most tokens that all passages take together.")
    temperature: float = Field(
        0.0, ge=0, le=2, description="Temperature of an answer when a request names none."
    )
    answer_tokens: int = Field(
        400, ge=1, description="Longest answer, in tokens, when a request sets no limit."
    )
    min_similarity: float = Field(
        0.3, ge=-1, le=1, description="Cosine below which no passage bears on a question."
    )
    citation_days: int = Field(30, ge=1, description="Days for which a citation's link opens.")


class Settings(Section):
    """Read once, at the start of a process."""

    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    models: ModelsSettings = ModelsSettings()
    engine: EngineSettings = EngineSettings()
    ingest: IngestSettings = IngestSettings()
    sources: SourcesSettings = SourcesSettings()
    search: SearchSettings = SearchSettings()
    chat: ChatSettings = ChatSettings()

    @property
    def database_url(self) -> str:
        return self.storage.database_url or f"sqlite:///{self.storage.data_dir / 'strongroom.db'}"

    @property
    def public_url(self) -> str:
        return (self.server.public_url or f"http://{self.server.host}:{self.server.port}").rstrip("/")

    @property
    def engine_urls(self) -> list[str]:
        return [url.strip() for url in self.engine.url.split(",") if url.strip()]

    def with_options(self, **sections: Mapping[str, Any]) -> "Settings":
        """These settings with some values replaced, as command-line options do. None leaves a value alone."""
        changed = self.model_dump()
        for section, values in sections.items():
            changed[section].update({name: value for name, value in values.items() if value is not None})
        return _validate(changed)

    def to_environment(self) -> dict[str, str]:
        """The variables that make a child process read these same settings."""
        return {
            f"{PREFIX}{section}__{name}".upper(): str(value)
            for section, values in self.model_dump(mode="json").items()
            for name, value in values.items()
        }


def read_settings(folder: Path | None = None) -> Settings:
    """Raises SettingsInvalid, which names the setting."""
    values: dict[str, dict[str, Any]] = _read_toml((folder or Path.cwd()) / TOML_FILE)
    for name, value in os.environ.items():  # noqa: TID251 - the one place
        if name.startswith(PREFIX):
            section, _, key = name.removeprefix(PREFIX).lower().partition("__")
            if section not in Settings.model_fields or not key:
                raise SettingsInvalid(f"Unknown setting {name}. {_suggest(section)}")
            values.setdefault(section, {})[key] = value
    return _validate(values)


def _by_commas(told: str) -> list[str]:
    return [part.strip() for part in told.split(",") if part.strip()]


def model_path(name: str, folder: Path) -> str:
    """A name under the models folder, else a path, else as it is: a hub's name."""
    for candidate in (folder / name, Path(name)):
        if candidate.is_dir():
            return str(candidate.resolve())
    return name


def weights_bytes(folder: str) -> int:
    """Of a model on disk, about what it takes in memory; 0 for a hub's name."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def inherited_environment() -> dict[str, str]:
    """What child processes get besides settings: nothing of ours, and no proxy, so that loopback stays loopback."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - the one place
        if not name.startswith(PREFIX) and not name.lower().endswith("_proxy")
    }


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        parsed = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{path} is not valid TOML: {error}") from error
    for section, values in parsed.items():
        if not isinstance(values, dict):
            raise SettingsInvalid(f"Unknown setting '{section}' in {path}: settings stand in sections.")
    return parsed


def _validate(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsInvalid(f"Unknown setting {name}. {_suggest(str(first['loc'][0]))}") from error
        if first["type"] == "value_error":
            raise SettingsInvalid(f"Setting {name}: {first['ctx']['error']}.") from error
        raise SettingsInvalid(f"Setting {name}: {first['msg']} (got {first['input']!r}).") from error


def _suggest(section: str) -> str:
    field = Settings.model_fields.get(section)
    if field is None or field.annotation is None:
        return f"Sections are {', '.join(Settings.model_fields)}."
    return f"Settings of {section} are {', '.join(field.annotation.model_fields)}."


def example_environment() -> str:
    """The text of .env.example: each setting with its default and one line that explains it."""
    lines = ["# Every setting of Strongroom with its default. Uncomment to change; the same names, as"]
    lines += ["# [section] and name, work in strongroom.toml. Unknown names are refused."]
    for section, field in Settings.model_fields.items():
        lines.append("")
        assert field.annotation is not None
        for name, setting in field.annotation.model_fields.items():
            lines.append(f"# {setting.description}")
            lines.append(f"# {PREFIX}{section.upper()}__{name.upper()}={setting.default}")
    return "\n".join(lines) + "\n"
