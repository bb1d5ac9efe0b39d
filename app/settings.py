"""Every setting, from STRONGROOM_SECTION__NAME, else strongroom.toml. The only module that reads the environment."""

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from yarl import URL

PREFIX = "STRONGROOM_"
CLIENTS_KEY = "STRONGROOM_KEY"
"""In which README lets clients hold their API key: no setting of ours, though it begins like one."""
FROM_FILE = "_file"
"""What a setting's name ends with when a file holds its value, as container engines hand out secrets."""
TOML_FILE = "strongroom.toml"
MIB = 1024 * 1024


class SettingsInvalid(Exception):
    """A setting is unknown or has a value that it cannot have; the message names it."""


ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""An alias stands in URLs, metric labels and collection rows, so it is plain."""


TOOL_SERVER = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that the settings declare: the name it goes by, and where it is."""

    alias: str
    source: str
    """A folder's name or path, or a hub name."""


@dataclass(frozen=True, slots=True)
class ToolServer:
    """An MCP server that the owner named."""

    label: str
    url: str
    token: str = dataclasses.field(default="", repr=False)


LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
FEWEST_CHARACTERS = 8
"""Different ones in a secret: words that people type have fewer, and random hexadecimal digits more."""
RUNS_CODE = re.compile(r"--trust[-_]remote[-_]code\b|--load[-_]format[= ]+(pt|npcache)\b")
"""Of vLLM's arguments: the second kind reads pickles."""


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


def _by_commas(told: str) -> list[str]:
    return [part.strip() for part in told.split(",") if part.strip()]


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8080, ge=1, le=65535, description="Port that the API listens on.")
    public_url: str = Field(
        "", description="Address that people's browsers use; made from host and port if empty."
    )
    hosts: str = Field(
        "",
        description="Names, by commas, that clients call this server by beside that of public_url; * for any.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    drain_s: float = Field(
        0,
        ge=0,
        le=60,
        description="Seconds after SIGTERM in which requests are still taken, with /health at 503 for a proxy.",
    )

    @property
    def host_names(self) -> frozenset[str]:
        return frozenset(host.lower() for host in _by_commas(self.hosts))


class StorageSettings(Section):
    data_dir: Path = Field(Path("data"), description="Folder for the embedded database, blobs and keys.")
    database_url: str = Field(
        "", description="postgresql://user:password@host/name; empty for the embedded database."
    )
    database_password: str = Field("", description="Password for database_url, if it does not stand in it.")
    max_upload_bytes: int = Field(2048 * MIB, ge=1, description="Largest file that an upload may hold.")
    reserve_bytes: int = Field(
        64 * MIB, ge=0, description="Room on the disk held back for deletions on a full one; 0 for none."
    )


class EncryptionSettings(Section):
    enabled: bool = Field(
        True, description="Encrypt the embedded database, uploaded files and snapshots on disk."
    )
    master_key: str = Field(
        "", description="Master key, 64 hexadecimal digits; empty takes it from a command or a file."
    )
    master_key_command: str = Field(
        "", description="Command that prints the master key, such as one that asks a key service."
    )
    master_key_file: str = Field(
        "",
        description="File of the master key; empty is keys/master.key in the data folder, made if missing.",
    )
    memory_folder: Path = Field(
        Path("/dev/shm"),  # noqa: S108 - memory, and a folder of our own in it
        description="Folder in memory (tmpfs) for what parsers and indexes must read as plain files.",
    )

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        given = [self.master_key, self.master_key_command, self.master_key_file]
        if sum(map(bool, given)) > 1:
            raise ValueError("give one of master_key, master_key_command and master_key_file")
        return self


class BackupSettings(Section):
    folder: str = Field("", description="Folder for backups that are made on schedule; empty for none.")
    every_hours: float = Field(24.0, gt=0, description="Time between those.")
    keep: int = Field(7, ge=1, description="How many of them are kept.")


class AuditSettings(Section):
    keep_days: int = Field(0, ge=0, description="Days for which the audit log is kept; 0 is for ever.")
    checkpoint_file: str = Field(
        "",
        description="File for signed checkpoints of the audit log; empty is audit.checkpoints in the data folder.",
    )
    checkpoint_every_s: float = Field(300.0, gt=0, description="Time between those, while the log grows.")


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
        64, ge=0, description="Memory for embeddings and relevance of recent texts; 0 computes each anew."
    )
    allow_download: bool = Field(
        False, description="Let the models server fetch hub models that are not on disk."
    )

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        if self.host not in LOOPBACK and len(set(self.token)) < FEWEST_CHARACTERS:
            raise ValueError(
                f"models.host {self.host} can be reached from elsewhere, so models.token must be a random secret: "
                "make one with `openssl rand -hex 32`"
            )
        return self

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
    speaking: str = Field(
        "", description="Generation models whose engine answers in sound too, if asked; by commas."
    )
    extra_args: str = Field("", description="More arguments for vLLM's server, as on a command line.")
    keeps_nothing: bool = Field(
        False,
        description="Vouch that the engines of engine.url neither log nor store requests, for zero data retention.",
    )
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

    @field_validator("extra_args")
    @classmethod
    def _check_extra_args(cls, told: str) -> str:
        if found := RUNS_CODE.search(told):
            raise ValueError(
                f"{found[0]!r} would run code that came with a model: use a model of safetensors alone"
            )
        return told

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

    @property
    def speaking_models(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.speaking.split(",") if name.strip())


class IngestSettings(Section):
    concurrency: int = Field(48, ge=1, description="Documents that one worker has in hand at once.")
    parsers: int = Field(2, ge=1, description="Parser processes of one worker.")
    parse_timeout_s: float = Field(
        20.0, gt=0, description="Time after which a parser is stopped; large files get more."
    )
    ocr_languages: str = Field(
        "eng", description="Languages of scanned pages, by tesseract's names, joined by +."
    )
    parse_memory_mib: int = Field(2048, ge=512, description="Memory that one parser may take.")
    lease_s: float = Field(
        15.0, ge=1, le=600, description="Time after which a silent worker's documents go to another."
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


class OidcSettings(Section):
    issuer: str = Field(
        "", description="Who signs people's tokens, as in their claim iss; empty takes keys alone."
    )
    audience: str = Field("", description="Whom the tokens are for, as in their claim aud.")
    jwks: str = Field("", description="Address, or file, of the issuer's public keys.")
    tenant_claim: str = Field(
        "", description="Claim that names a person's tenant; empty puts all into `tenant`."
    )
    tenant: str = Field("default", description="Tenant of people whose tokens name none.")
    groups_claim: str = Field("groups", description="Claim that lists a person's groups; empty for none.")
    role_claim: str = Field(
        "", description="Claim that tells what a person may do; empty makes all of them readers."
    )
    roles: str = Field(
        "reader=reader,writer=writer,admin=admin",
        description="Roles by the values of that claim, by commas; of several the highest.",
    )
    client_id: str = Field(
        "", description="What the issuer calls this server; with it people sign in to the console there."
    )
    client_secret: str = Field("", description="Its secret at the issuer; empty for a public client.")
    client_secret_file: str = Field("", description="File of that secret, in place of the setting.")
    authorization_endpoint: str = Field(
        "",
        description="Address at the issuer that browsers go to; it allows server.public_url/console/sign-in/return.",
    )
    token_endpoint: str = Field("", description="Address at the issuer that tells this server who came back.")
    end_session_endpoint: str = Field(
        "",
        description="Address that signs people out at the issuer too; it allows server.public_url/console/sign-in.",
    )
    scopes: str = Field(
        "openid profile", description="What is asked of the issuer, by spaces: some need one for groups."
    )
    session_minutes: int = Field(
        0, ge=0, description="How long such a sign-in lasts, 12 hours at most; 0 is as long as its token."
    )

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if self.issuer and not (self.audience and self.jwks):
            raise ValueError("issuer needs audience and jwks beside it")
        if self.client_id and not (self.issuer and self.authorization_endpoint and self.token_endpoint):
            raise ValueError("client_id needs issuer, authorization_endpoint and token_endpoint beside it")
        if self.client_secret and self.client_secret_file:
            raise ValueError("give one of client_secret and client_secret_file")
        if "openid" not in self.scopes.split():
            raise ValueError("scopes must hold openid")
        for name in ("jwks", "authorization_endpoint", "token_endpoint", "end_session_endpoint"):
            address: str = getattr(self, name)
            if address.startswith("http://") and not _is_loopback(address):
                or_file = ", or a file" if name == "jwks" else ""
                raise ValueError(f"{name} must be an https address, or one of this machine{or_file}")
        for address in (self.authorization_endpoint, self.token_endpoint, self.end_session_endpoint):
            if address and not address.startswith(("https://", "http://")):
                raise ValueError(f"{address!r} is no address; begin it with https://")
        _ = self.role_of
        return self

    @property
    def role_of(self) -> dict[str, str]:
        """By the claim's value."""
        pairs = [pair.partition("=") for pair in _by_commas(self.roles)]
        wrong = [value for value, _, role in pairs if role not in ("reader", "writer", "admin")]
        if wrong:
            raise ValueError(
                f"roles: {wrong[0]!r} must be made reader, writer or admin, as in {wrong[0]}=reader"
            )
        return {value: role for value, _, role in pairs}


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
    min_evidence: float = Field(
        -1,
        ge=-1,
        le=1,
        description="Evidence score below which a question is refused; 0 refuses none, -1 takes the calibrated one.",
    )
    keep_days: int = Field(
        30, ge=0, description="Days for which stored responses and completions are kept; 0 is for ever."
    )
    citation_days: int = Field(30, ge=1, description="Days for which a citation's link opens.")
    rewrite: bool = Field(
        False, description="Let the generation model rewrite questions that lean on their conversation."
    )
    hypothetical_answer: bool = Field(
        False, description="Search for an answer made up by the generation model as well."
    )
    other_wordings: int = Field(
        0, ge=0, le=4, description="Other wordings, by the generation model, that are searched for as well."
    )
    prompts_folder: str = Field(
        "", description="Folder of prompt templates that responses may name: ID.md and ID@VERSION.md."
    )
    rewrite_timeout_s: float = Field(
        3.0,
        gt=0,
        description="Longest time that the generation model may take over a question before its search.",
    )


class ToolsSettings(Section):
    mcp_servers: str = Field(
        "",
        description="MCP servers whose tools responses may use, by commas: label=address; empty for none.",
    )
    mcp_tokens: str = Field("", description="Bearer tokens of those that need one, by commas: label=token.")
    timeout_s: float = Field(
        30.0, gt=0, le=600, description="Longest time that a call of such a tool may take."
    )

    @model_validator(mode="after")
    def _check_servers(self) -> Self:
        _ = self.servers
        return self

    @property
    def servers(self) -> tuple[ToolServer, ...]:
        addresses, tokens = self._by_label(self.mcp_servers), self._by_label(self.mcp_tokens)
        if unknown := sorted(tokens.keys() - addresses.keys()):
            raise ValueError(f"mcp_tokens: {unknown[0]!r} is the label of no server in mcp_servers")
        for label, url in addresses.items():
            parts = urlsplit(url)
            if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc:
                raise ValueError(
                    f"mcp_servers: {label!r} needs an address that begins with https:// or http://, without credentials"
                )
        return tuple(ToolServer(label, url, tokens.get(label, "")) for label, url in addresses.items())

    @staticmethod
    def _by_label(told: str) -> dict[str, str]:
        """Raises ValueError."""
        pairs: dict[str, str] = {}
        for place, part in enumerate(_by_commas(told), 1):
            label, _, value = (piece.strip() for piece in part.partition("="))
            # What stands there may be a secret, and is not told.
            if not TOOL_SERVER.fullmatch(label) or not value:
                raise ValueError(f"entry {place} must be label=value, the label of letters, digits, _ and -")
            if label in pairs:
                raise ValueError(f"{label!r} stands there twice")
            pairs[label] = value
        return pairs


class TracesSettings(Section):
    endpoint: str = Field(
        "",
        description="OTLP/HTTP address of a collector of traces, such as http://tempo:4318/v1/traces; empty for none.",
    )
    share: float = Field(1.0, gt=0, le=1, description="Share of requests that are traced.")
    per_second: float = Field(
        20.0,
        gt=0,
        description="Traces that each process begins in a second at most, so that a busy one stays fast.",
    )


class Settings(Section):
    """Read once, at the start of a process."""

    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    backup: BackupSettings = BackupSettings()
    audit: AuditSettings = AuditSettings()
    models: ModelsSettings = ModelsSettings()
    engine: EngineSettings = EngineSettings()
    ingest: IngestSettings = IngestSettings()
    sources: SourcesSettings = SourcesSettings()
    oidc: OidcSettings = OidcSettings()
    search: SearchSettings = SearchSettings()
    chat: ChatSettings = ChatSettings()
    tools: ToolsSettings = ToolsSettings()
    traces: TracesSettings = TracesSettings()

    @property
    def database_url(self) -> str:
        if not self.storage.database_url:
            return f"sqlite:///{self.storage.data_dir / 'strongroom.db'}"
        if not self.storage.database_password:
            return self.storage.database_url
        return str(URL(self.storage.database_url).with_password(self.storage.database_password))

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
        if name.startswith(PREFIX) and name != CLIENTS_KEY:
            section, _, key = name.removeprefix(PREFIX).lower().partition("__")
            if section not in Settings.model_fields or not key:
                raise SettingsInvalid(f"Unknown setting {name}. {_suggest(section)}")
            annotation = Settings.model_fields[section].annotation
            assert annotation is not None
            if key.endswith(FROM_FILE) and key not in annotation.model_fields:
                values.setdefault(section, {})[key.removesuffix(FROM_FILE)] = _content(name, Path(value))
            else:
                values.setdefault(section, {})[key] = value
    return _validate(values)


def _content(name: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{name}: {path} cannot be read: {error}") from error


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
    lines += [
        "# [section] and name, work in strongroom.toml. Unknown names are refused. A name with _FILE behind it"
    ]
    lines += ["# takes the value from that file, as container engines hand out secrets."]
    for section, field in Settings.model_fields.items():
        lines.append("")
        assert field.annotation is not None
        for name, setting in field.annotation.model_fields.items():
            lines.append(f"# {setting.description}")
            lines.append(f"# {PREFIX}{section.upper()}__{name.upper()}={setting.default}")
    return "\n".join(lines) + "\n"
