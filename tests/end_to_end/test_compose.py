"""docker-compose.yml holds what it promises, and its services work together, started by its own commands."""

import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from openai import OpenAI
from psycopg import sql

from app.settings import Settings
from serving.generation.engine import Accelerator, EngineConfig, engine_command, engine_environment
from tests.compose import (
    LOOPBACK,
    Box,
    ComposedStack,
    Service,
    ServiceFailed,
    VariableMissing,
    composed,
    interpolate,
    read_compose,
    read_dockerfile,
)
from tests.postgres import BINARIES, PostgresServer
from tests.stack import ENGINE_PYTHON, MODELS, ROOT, free_port

pytestmark = pytest.mark.slow

FILE = ROOT / "docker-compose.yml"
SECRETS = {
    "postgres_password": "postgres/secret@with:signs",
    "models_token": "models-secret-0123456789",
    "engine_token": "engine-secret",
}
"""What stands in the files."""
PROFILES = ["gpu", "cpu", "scale", "scale-cpu"]
SCALED = {"api-1", "api-2", "proxy", "worker-2", "vllm-2"}
MEMORY = Path("/dev/shm")
CONFIGURATION = ROOT / "app" / "observing" / "configuration"
OURS = ["migrate", "api", "worker", "models-cpu"]
HAPROXY = Path("/usr/sbin/haproxy")
ENGINE_START_S = 360.0
"""It takes a minute, and several where other engines have the cores."""


@pytest.fixture(params=PROFILES)
def services(request: pytest.FixtureRequest) -> dict[str, Service]:
    return read_compose(FILE, {}, profile=request.param)


def test_variables_are_replaced_as_compose_does() -> None:
    assert interpolate("${A:-x}/${B:-${A:-y}}/${C}", {"A": "a"}) == "a/a/"
    assert interpolate("${A:+--flag ${A}}|${B:+--flag ${B}}", {"A": "a"}) == "--flag a|"
    with pytest.raises(VariableMissing, match="A: set it"):
        interpolate("${A:?set it}", {"A": ""})


def test_each_profile_is_a_complete_set_with_the_same_names_in_the_network() -> None:
    complete = {"postgres", "migrate", "api", "worker", "models", "vllm"}
    for profile in PROFILES:
        services = read_compose(FILE, {}, profile=profile)
        names = {alias for service in services.values() for alias in service.aliases}
        wanted = complete | SCALED if "scale" in profile else complete
        # The second models server goes by the first one's name.
        assert {name for name in names if "-cpu" not in name} - {"models-2"} == wanted, profile


def test_images_are_pinned(services: dict[str, Service]) -> None:
    for service in services.values():
        _, _, tag = service.image.rpartition(":")
        assert re.search(r"\d", tag), service.image
    assert read_compose(FILE, {}, profile="gpu")["vllm"].image == "vllm/vllm-openai:v0.33.0"


def test_each_image_of_ours_is_built_by_one_service_and_never_pulled(services: dict[str, Service]) -> None:
    ours = [service for service in services.values() if service.target is not None]
    builders = [service.image for service in ours if "build" in service.options]
    assert set(builders) == {service.image for service in ours}
    assert len(builders) == len(set(builders))
    for service in ours:
        assert ("build" in service.options) != (service.options.get("pull_policy") == "never")


def test_the_only_published_port_is_the_apis_or_its_proxys_on_loopback(services: dict[str, Service]) -> None:
    published = {service.name: service.published for service in services.values() if service.published}
    (entry,) = published
    assert entry == ("proxy" if "proxy" in services else "api")
    assert published[entry] == ["127.0.0.1:8080:8080"]
    elsewhere = read_compose(FILE, {"PUBLISH": "0.0.0.0:80"}, profile="cpu")["api"]
    assert elsewhere.published == ["0.0.0.0:80:8080"]


def test_only_what_is_published_is_in_a_network_with_a_way_out_and_opens_no_connections_there(
    services: dict[str, Service],
) -> None:
    networks = yaml.safe_load(FILE.read_text())["networks"]
    assert networks["inside"] == {"internal": True}
    assert networks["edge"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    for service in services.values():
        expected = {"inside", "edge"} if service.published else {"inside"}
        assert set(service.options["networks"]) == expected


def test_what_fetches_models_is_the_only_service_that_reaches_the_internet_and_sees_no_data() -> None:
    services = read_compose(FILE, {}, profile="pull")
    assert all("outside" not in services[name].options["networks"] for name in services if name != "pull")
    pull = services["pull"].options
    assert yaml.safe_load(FILE.read_text())["networks"]["outside"] == {}
    assert (pull["networks"], pull["entrypoint"]) == (["outside"], ["strongroom", "models", "pull"])
    assert [volume["target"] for volume in pull["volumes"]] == ["/models"]
    assert not {"secrets", "ports", "depends_on"} & pull.keys()
    assert pull["read_only"]
    assert (pull["cap_drop"], pull["restart"]) == (["ALL"], "no")


def test_the_first_lines_make_the_secrets_and_name_a_profile(tmp_path: Path) -> None:
    lines = re.findall(r"^#   ((?:umask|for name) .*)$", FILE.read_text(), re.MULTILINE)
    subprocess.run(["sh", "-e", "-c", "\n".join(lines)], cwd=tmp_path, check=True)
    files = yaml.safe_load(FILE.read_text())["secrets"]
    for name in SECRETS:
        path = tmp_path / files[name]["file"]
        assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (tmp_path / ".env").read_text() == "COMPOSE_PROFILES=gpu\n"


def test_secrets_are_files_outside_of_git_that_go_to_those_who_need_them(
    services: dict[str, Service],
) -> None:
    files = yaml.safe_load(FILE.read_text())["secrets"]
    for name in SECRETS:
        path = files[name]["file"].removeprefix("./")
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert ignored.returncode == 0, path
    for service in services.values():
        for name, value in service.environment.items():
            if re.search(r"TOKEN|PASSWORD|SECRET|KEY$", name):
                assert name.endswith("_FILE"), f"{name} of {service.name}"
                assert value.removeprefix("/run/secrets/") in service.options["secrets"]
    holders = {
        secret: {each.name for each in services.values() if secret in each.options.get("secrets", [])}
        for secret in SECRETS
    }
    apis = {name for name in services if re.fullmatch(r"api(-\d)?", name)}
    workers = {name for name in services if name.startswith("worker")}
    models = {name for name in services if name.startswith("models")}
    engines = {name for name in services if name.startswith("vllm")}
    assert list(holders.values()) == [
        {"postgres", "migrate", *apis, *workers},
        {*models, *apis, *workers},
        {*engines, *apis},
    ]


def test_every_container_has_few_rights(services: dict[str, Service]) -> None:
    stages = read_dockerfile(ROOT / "Dockerfile")
    for service in services.values():
        options = service.options
        assert options["read_only"] is True
        assert options["cap_drop"] == ["ALL"]
        assert options["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in options
        assert "cap_add" not in options
        user = options["user"] if service.target is None else stages[service.target].last("USER")
        assert int(user.partition(":")[0]) > 0


def test_what_runs_on_has_a_health_check_and_comes_back(services: dict[str, Service]) -> None:
    for service in services.values():
        if service.name == "migrate":
            assert service.health is None
            assert service.options["restart"] == "no"
        else:
            assert service.health is not None
            # The images hold no curl.
            assert service.health.command[0] in {"python", "python3", "pg_isready", "wget"}
            assert service.options["restart"] == "unless-stopped"


def test_dependencies_exist_and_can_meet_their_conditions(services: dict[str, Service]) -> None:
    for service in services.values():
        for other, condition in service.depends_on.items():
            runs_on = services[other].health is not None
            assert condition == ("service_healthy" if runs_on else "service_completed_successfully")


def test_volumes_are_declared_and_models_are_only_read(services: dict[str, Service]) -> None:
    declared = set(yaml.safe_load(FILE.read_text())["volumes"])
    for service in services.values():
        for volume in service.options.get("volumes", []):
            if isinstance(volume, str) and volume.startswith("./"):
                assert (ROOT / volume.partition(":")[0]).is_file()
                assert volume.endswith(":ro")
            elif isinstance(volume, str):
                assert volume.partition(":")[0] in declared
            else:
                assert (volume["target"], volume["read_only"]) == ("/models", True)
    users_of_data = {
        each.name for each in services.values() if "data:/data" in each.options.get("volumes", [])
    }
    ours = {name for name in services if re.fullmatch(r"migrate|(api|worker)(-\d)?", name)}
    assert users_of_data == ours


def test_every_setting_exists(services: dict[str, Service]) -> None:
    known = set(Settings().to_environment())
    for service in services.values():
        named = {name for name in service.environment if name.startswith("STRONGROOM_")}
        unknown = {name.removesuffix("_FILE") for name in named} - known
        assert not unknown, service.name


@pytest.mark.parametrize("tool_parser", ["", "hermes"])
@pytest.mark.parametrize("service_name", ["vllm", "vllm-2", "vllm-cpu", "vllm-cpu-2"])
def test_the_engine_is_started_as_serve_starts_it(service_name: str, tool_parser: str) -> None:
    profile = "scale-cpu" if "cpu" in service_name else "scale"
    variables = {
        "STRONGROOM_ENGINE__MODEL": "some-model",
        "STRONGROOM_ENGINE__MAX_MODEL_LEN": "8192",
        "STRONGROOM_ENGINE__GPU_MEMORY_UTILIZATION": "0.7",
        "STRONGROOM_ENGINE__KV_CACHE_GIB": "3",
        "STRONGROOM_ENGINE__TOOL_PARSER": tool_parser,
    }
    service = read_compose(FILE, variables, profile=profile)[service_name]
    config = EngineConfig(
        python=Path("python3"),
        model="/models/some-model",
        served_name="some-model",
        accelerator=Accelerator.CUDA if profile == "scale" else Accelerator.CPU,
        host="0.0.0.0",
        port=8000,
        api_key="engine-secret",
        max_model_len=8192,
        tool_parser=tool_parser or None,
        gpu_memory_share=0.7,
        cpu_cache_gib=3,
    )
    command = engine_command(config)
    assert service.command == command[3:]
    assert all(word in service.entrypoint[-1] for word in command[:3])
    assert '["VLLM_API_KEY"] = open("/run/secrets/engine_token")' in service.entrypoint[-1]
    assert service.environment | {"VLLM_API_KEY": "engine-secret"} == engine_environment(config)


OBSERVERS = {"prometheus", "tempo", "grafana"}


def test_observability_is_pinned_hardened_and_published_on_loopback_alone() -> None:
    added = read_compose(FILE, {}, profile="observability")
    observers = {name: added[name] for name in added if added[name].options.get("profiles")}
    assert observers.keys() == OBSERVERS
    for service in observers.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service.image)
        assert service.options["read_only"] is True
        assert service.options["cap_drop"] == ["ALL"]
        assert service.options["security_opt"] == ["no-new-privileges:true"]
        assert int(service.options["user"].partition(":")[0]) > 0
        expected = {"inside", "edge"} if service.name == "grafana" else {"inside"}
        assert set(service.options["networks"]) == expected
    published = {name: service.published for name, service in observers.items() if service.published}
    assert published == {"grafana": ["127.0.0.1:3000:3000"]}


def test_what_observability_reads_is_there_and_its_secrets_are_files_outside_of_git() -> None:
    document = yaml.safe_load(FILE.read_text())
    for name in OBSERVERS:
        for volume in document["services"][name]["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
                assert volume.endswith(":ro")
            else:
                assert source in document["volumes"]
        for secret in document["services"][name].get("secrets", []):
            path = document["secrets"][secret]["file"].removeprefix("./")
            ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
            assert ignored.returncode == 0, path
    told = document["services"]["grafana"]["environment"]
    assert [told[name] for name in told if "REPORTING" in name or "UPDATES" in name] == ["false"] * 3
    tempo = yaml.safe_load((CONFIGURATION / "tempo.yml").read_text())
    assert tempo["usage_report"] == {"reporting_enabled": False}
    (job,) = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())["scrape_configs"]
    api = document["services"]["api"]
    assert job["dns_sd_configs"][0]["names"] == ["api"]
    assert str(job["dns_sd_configs"][0]["port"]) in api["expose"]


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: the word and what follows, lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_dockerfile_keeps_to_what_hadolint_asks() -> None:
    """By hadolint's numbers: DL3002, 3004, 3006 to 3009, 3013, 3015, 3020, 3025, 3042, 3047, 4000 and 4006."""
    found = instructions()
    stages = {value.split(" AS ")[1] for word, value in found if word == "FROM"}
    for word, value in found:
        match word:
            case "FROM":
                image = value.partition(" ")[0]
                assert image in stages or re.search(r":[\w.-]*\d[\w.-]*$", image), f"DL3006, DL3007: {image}"
                assert ":latest" not in image
            case "RUN":
                assert "sudo" not in value, "DL3004"
                assert "| " not in value or "pipefail" in value, "DL4006"
                assert "wget" not in value, "DL3047"
                if "apt-get install" in value:
                    assert "--no-install-recommends" in value, "DL3015"
                    assert " -y" in value, "DL3014"
                    assert value.endswith("rm -rf /var/lib/apt/lists/*"), "DL3009"
                    assert "apt-get update" in value
                if "pip install" in value:
                    # DL3013: what is installed has its version in a list, or stands beside it.
                    assert re.search(r"-c constraints\.txt|-r \S+|==\d|--no-deps", value), value
            case "ADD" | "MAINTAINER":
                raise AssertionError(f"DL3020, DL4000: {word} {value}")
            case "CMD" | "ENTRYPOINT":
                assert value.startswith("["), "DL3025"
            case "WORKDIR":
                assert value.startswith("/"), "DL3000"
    assert any(word == "ENV" and "PIP_NO_CACHE_DIR=1" in value for word, value in found), "DL3042"
    for name in ("strongroom", "engine-cpu"):
        user = read_dockerfile(ROOT / "Dockerfile")[name].last("USER")
        assert user.partition(":")[0] not in {"root", "0"}, "DL3002"


def test_no_secret_is_built_into_an_image() -> None:
    words = " ".join(f"{word} {value}" for word, value in instructions() if word in {"ARG", "ENV"})
    assert not re.search(r"TOKEN|PASSWORD|SECRET|_KEY\b", words)


def test_models_and_engine_share_one_gpu() -> None:
    services = read_compose(FILE, {"GPU": "1", "GPU_2": "3"}, profile="scale")
    for name, card in (("models", "1"), ("vllm", "1"), ("models-2", "3"), ("vllm-2", "3")):
        (device,) = services[name].options["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": [card], "capabilities": ["gpu"]}
    vllm = services["vllm"].command
    # Compose cannot look at the card, as `serve` does.
    assert 0 < float(vllm[vllm.index("--gpu-memory-utilization") + 1]) < 1
    for profile in PROFILES:
        others = read_compose(FILE, {}, profile=profile).values()
        with_gpu = {each.name for each in others if "deploy" in each.options}
        on_cards = {"gpu": {"models", "vllm"}, "scale": {"models", "vllm", "models-2", "vllm-2"}}
        assert with_gpu == on_cards.get(profile, set())


def test_images_are_built_from_files_that_the_builder_gets() -> None:
    stages = read_dockerfile(ROOT / "Dockerfile")
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages.values()
        for instruction, words in stage.instructions
        if instruction == "COPY" and not words.startswith("--from")
        for source in words.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'"(\w+)\*"', pyproject.partition("packages.find")[2].partition("\n\n")[0])
    assert set(packages) < copied
    assert all((ROOT / source).exists() for source in copied - {"README.md"})


def test_images_rest_on_pinned_bases_and_run_our_command_as_nobody_special() -> None:
    stages = read_dockerfile(ROOT / "Dockerfile")
    bases = {stage.base for stage in stages.values() if stage.base not in stages}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases.pop())
    assert list(stages)[-1] == "strongroom"
    assert stages["strongroom"].entrypoint == ["strongroom"]
    for name in ("strongroom", "engine-cpu"):
        assert stages[name].last("USER") == "10001:10001"


def test_the_engines_torch_is_that_of_make_setup() -> None:
    pins = [
        set(re.findall(r"torch==[\d.]+", (ROOT / name).read_text())) for name in ("Makefile", "Dockerfile")
    ]
    assert pins[0] == pins[1]
    assert len(pins[0]) == 1


@pytest.fixture(scope="module")
def postgres_service(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """The tests' PostgreSQL with the user and the database that the image would make."""
    environment = read_compose(FILE, {}, profile="cpu")["postgres"].environment
    assert environment["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    user = sql.Identifier(environment["POSTGRES_USER"])
    database = sql.Identifier(environment["POSTGRES_DB"])
    password = sql.Literal(SECRETS["postgres_password"])
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login password {}").format(user, password))
        connection.execute(sql.SQL("create database {} owner {}").format(database, user))
        yield postgres_server
        connection.execute(sql.SQL("drop database {} with (force)").format(database))
        connection.execute(sql.SQL("drop role {}").format(user))


def box_of(folder: Path, ports: dict[str, int]) -> Box:
    found = sorted(BINARIES.glob("*/bin/pg_isready"))
    secrets = folder / "secrets"
    secrets.mkdir(exist_ok=True)
    for name, value in SECRETS.items():
        # As `openssl rand` ends it.
        (secrets / name).write_text(f"{value}\n")
    return Box(
        folder=folder,
        stages=read_dockerfile(ROOT / "Dockerfile"),
        # Of the services' folders in memory, which each has for itself, there is one here.
        paths={
            "/tmp": MEMORY,
            "/data": folder / "data",
            "/models": MODELS,
            "/run/secrets": secrets,
            "/usr/local/etc/haproxy": ROOT / "app" / "running",
        },
        programs={
            "strongroom": Path(sys.executable).parent,
            "strongroom-engine-cpu": ENGINE_PYTHON.parent,
            "postgres": found[-1].parent if found else Path("/usr/bin"),
            "haproxy": HAPROXY.parent,
        },
        ports=ports,
        running=["postgres"],
    )


@pytest.mark.parametrize("name", OURS)
def test_a_role_with_an_unknown_setting_ends_with_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    services = read_compose(FILE, {}, profile="cpu")
    typo = {"STRONGROOM_SERVER__PROT": "80"}
    service = replace(services[name], environment=services[name].environment | typo)
    with ComposedStack(services, box_of(tmp_path, {})) as stack:
        stack.launch(service)
        with pytest.raises(
            ServiceFailed, match=rf"(?s){name} ended with status 2.*Unknown setting server\.prot"
        ):
            stack.wait_completed(name, within_s=60)


def test_a_wrong_command_fails_the_start(tmp_path: Path) -> None:
    services = read_compose(FILE, {}, profile="cpu")
    wrong = replace(services["migrate"], command=["migrait"], depends_on={})
    needing = replace(services["api"], depends_on={"migrate": "service_completed_successfully"})
    starting = composed({"migrate": wrong, "api": needing}, box_of(tmp_path, {}), within_s=60)
    with pytest.raises(ServiceFailed, match=r"(?s)migrate ended with status 2.*migrait"), starting:
        pass


def test_a_health_check_that_asks_the_wrong_place_fails_the_start(
    postgres_service: PostgresServer, tmp_path: Path
) -> None:
    postgres = read_compose(FILE, {}, profile="cpu")["postgres"]
    box = box_of(tmp_path, {"postgres": postgres_service.port})
    assert postgres.health is not None
    elsewhere = [word.replace("5432", "1") for word in postgres.health.command]
    wrong = replace(postgres, health=replace(postgres.health, command=elsewhere, within_s=1))
    with composed({"postgres": postgres}, box, within_s=30):
        pass
    with (
        pytest.raises(ServiceFailed, match="postgres is not healthy"),
        composed({"postgres": wrong}, box, within_s=30),
    ):
        pass


@pytest.fixture(scope="module")
def stack(
    postgres_service: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComposedStack]:
    """Every service of the profile for machines without a GPU."""
    if not ENGINE_PYTHON.exists() or not (MODELS / "SmolLM2-135M-Instruct").is_dir():
        pytest.skip("The engine's environment or the demo models are missing: run `make setup`.")
    published = free_port()
    services = read_compose(FILE, {"PUBLISH": f"{LOOPBACK}:{published}"}, profile="cpu")
    box = box_of(tmp_path_factory.mktemp("compose"), {"postgres": postgres_service.port, "api": published})
    with composed(services, box, within_s=ENGINE_START_S) as running:
        yield running


@pytest.mark.engine
@pytest.mark.timeout(ENGINE_START_S + 120)
def test_a_question_through_the_published_port_is_answered_with_a_citation(stack: ComposedStack) -> None:
    (published,) = stack.services["api"].published
    address, _, _ = published.rpartition(":")
    key = (stack.folder / "data" / "keys" / "admin.key").read_text().strip()
    client = OpenAI(base_url=f"http://{address}/v1", api_key=key, max_retries=0, timeout=120)
    note = stack.folder / "ferry-note.md"
    note.write_text("# Ferry\n\nThe ferry Halcyon leaves Orsund at 06:40. Its master is Petra Lindqvist.\n")
    store = client.vector_stores.create(name="harbour")
    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=note)
    assert file.status == "completed", file.last_error
    reply = client.chat.completions.create(
        model="rag/harbour",
        messages=[{"role": "user", "content": "At what time does the ferry Halcyon leave Orsund?"}],
        temperature=0,
        max_tokens=60,
    )
    message = reply.choices[0].message
    assert "06:40" in (message.content or "")
    assert message.annotations
    cited: dict[str, Any] = message.annotations[0].model_dump()
    assert "06:40" in cited["quote"]
    assert cited["filename"] == "ferry-note.md"
    opened = httpx.get(cited["url_citation"]["url"].partition("#")[0])
    assert opened.status_code == 200
    assert cited["url_citation"]["url"].startswith(f"http://{address}/")


@pytest.mark.engine
@pytest.mark.timeout(ENGINE_START_S + 120)
def test_everything_is_ready_and_asks_for_its_secret(stack: ComposedStack) -> None:
    ports = stack.ports
    ready = httpx.get(f"http://{LOOPBACK}:{ports['api']}/ready", timeout=10)
    assert ready.status_code == 200, ready.text
    assert ready.json()["roles"]["database"]["reason"] == "postgresql"
    for port, path in (
        (ports["api"], "/v1/models"),
        (ports["models-cpu"], "/models/embedding/all-MiniLM-L6-v2"),
        (ports["vllm-cpu"], "/v1/models"),
    ):
        assert httpx.get(f"http://{LOOPBACK}:{port}{path}").status_code == 401
