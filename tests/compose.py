"""Reads docker-compose.yml as Compose does, and runs its services as plain processes, without a container engine."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self

import yaml

from tests.stack import free_port

LOOPBACK = "127.0.0.1"
STOP_S = 10.0
POLL_S = 0.5


class VariableMissing(Exception):
    """A variable that the file requires is not set; the message names it."""


class ServiceFailed(Exception):
    """A service ended or did not become healthy; the message names it and ends with its log."""


@dataclass(frozen=True)
class HealthCheck:
    """A command that ends with 0 when the service is healthy."""

    command: list[str]
    timeout_s: float
    within_s: float
    """A service that never passed it is unhealthy after this."""


@dataclass(frozen=True)
class Service:
    """One service, variables and anchors resolved."""

    name: str
    image: str
    target: str | None
    """Stage of the Dockerfile; None for an image of others."""
    entrypoint: list[str]
    """Empty for the image's own."""
    command: list[str]
    environment: dict[str, str]
    health: HealthCheck | None
    depends_on: dict[str, str]
    """Name of a service to the condition that is waited for."""
    aliases: list[str]
    """Host names in the network, its own first."""
    port: int | None
    published: list[str]
    options: dict[str, Any] = field(repr=False)
    """All as it stands in the file."""


def read_compose(path: Path, variables: Mapping[str, str], *, profile: str) -> dict[str, Service]:
    """The services of a profile. Raises VariableMissing for `${NAME:?message}`."""
    services: dict[str, dict[str, Any]] = _interpolated(yaml.safe_load(path.read_text()), variables)[
        "services"
    ]
    built = {each["image"]: each["build"]["target"] for each in services.values() if "build" in each}
    return {
        name: _service(name, options, built.get(options["image"]))
        for name, options in services.items()
        if profile in options.get("profiles", [profile])
    }


_INNERMOST = re.compile(r"\$\{(?P<name>\w+)(?::(?P<operator>[-?+])(?P<word>[^${}]*))?\}")


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """`${NAME}`, `:-`, `:?` and `:+`, also one inside another. Raises VariableMissing."""

    def value(found: re.Match[str]) -> str:
        name, operator, word = found["name"], found["operator"], found["word"]
        is_set = variables.get(name, "")
        if operator == "+":
            return word if is_set else ""
        if operator == "?" and not is_set:
            raise VariableMissing(f"{name}: {word}")
        return is_set or (word if operator == "-" else "")

    while (replaced := _INNERMOST.sub(value, text)) != text:
        text = replaced
    assert "$" not in text, f"not understood: {text}"
    return text


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    match value:
        case str():
            return interpolate(value, variables)
        case list():
            return [_interpolated(each, variables) for each in value]
        case dict():
            return {key: _interpolated(each, variables) for key, each in value.items()}
    return value


def _service(name: str, options: dict[str, Any], target: str | None) -> Service:
    networks = options["networks"]
    more = [network or {} for network in networks.values()] if isinstance(networks, dict) else []
    return Service(
        name=name,
        image=options["image"],
        target=target,
        entrypoint=_words(options.get("entrypoint", [])),
        command=_words(options.get("command", [])),
        environment={key: str(value) for key, value in options.get("environment", {}).items()},
        health=_health(options["healthcheck"]) if "healthcheck" in options else None,
        depends_on={other: how["condition"] for other, how in options.get("depends_on", {}).items()},
        aliases=[name, *(alias for network in more for alias in network.get("aliases", []))],
        port=int(options["expose"][0]) if "expose" in options else None,
        published=options.get("ports", []),
        options=options,
    )


def _words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else command


def _health(options: dict[str, Any]) -> HealthCheck:
    kind, *command = options["test"]
    assert kind == "CMD", "CMD-SHELL needs a shell, and quoting"
    return HealthCheck(
        command, timeout_s=_seconds(options["timeout"]), within_s=_seconds(options["start_period"])
    )


def _seconds(duration: str) -> float:
    assert duration.endswith("s"), duration
    return float(duration.removesuffix("s"))


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile."""

    base: str
    instructions: list[tuple[str, str]]

    def last(self, instruction: str) -> str:
        return [words for name, words in self.instructions if name == instruction][-1]

    @property
    def entrypoint(self) -> list[str]:
        words: list[str] = yaml.safe_load(self.last("ENTRYPOINT"))
        return words


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """The stages by name."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, words = line.partition(" ")
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            stages[name] = stage = Stage(base, [])
        else:
            stage.instructions.append((instruction, words))
    return stages


@dataclass(frozen=True)
class Box:
    """What stands in for the container engine, its images and its volumes."""

    folder: Path
    """Logs, and a working folder for each service."""
    stages: Mapping[str, Stage]
    """Of the Dockerfile: they know the entrypoints of our images."""
    paths: Mapping[str, Path]
    """Folders in the containers to folders here."""
    programs: Mapping[str, Path]
    """Name of an image, without its tag, to the folder of the programs that it holds."""
    ports: Mapping[str, int]
    """Ports that are given; the other services get free ones."""
    running: Sequence[str] = ()
    """Services that somebody else runs at the given port."""


class ComposedStack:
    """The services as processes, started and checked in the order and by the commands of the file.

    Each runs with its own command and environment and nothing else of ours. Only what a container engine would
    translate is rewritten: host names and ports to free ports of this machine, mount points to folders.
    """

    def __init__(self, services: Mapping[str, Service], box: Box) -> None:
        self.services = services
        self.folder = box.folder
        self._box = box
        self.ports = {
            name: box.ports.get(name) or free_port()
            for name, each in services.items()
            if each.port is not None
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._healthy: set[str] = set()

    def __enter__(self) -> Self:
        # Ends the processes when these tests are killed themselves.
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "app.running.reaper"], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._reaper.communicate()

    def start(self, *, within_s: float) -> None:
        """Returns once every health check has passed. Raises ServiceFailed."""
        deadline = time.monotonic() + within_s
        order = TopologicalSorter({name: each.depends_on for name, each in self.services.items()})
        for name in order.static_order():
            service = self.services[name]
            for other, condition in service.depends_on.items():
                left_s = deadline - time.monotonic()
                if condition == "service_completed_successfully":
                    self.wait_completed(other, within_s=left_s)
                else:
                    assert condition == "service_healthy", condition
                    self.wait_healthy(other, within_s=left_s)
            if name not in self._box.running:
                self.launch(service)
        for name, service in self.services.items():
            if service.health is not None:
                self.wait_healthy(name, within_s=deadline - time.monotonic())

    def launch(self, service: Service) -> subprocess.Popen[bytes]:
        with self._log(service.name).open("wb") as log:
            process = subprocess.Popen(
                self._command(service),
                cwd=self._working_folder(service),
                env=self._environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A group of its own, which is ended with it.
                start_new_session=True,
            )
        self._processes[service.name] = process
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(f"+{process.pid}\n".encode())
        self._reaper.stdin.flush()
        return process

    def wait_completed(self, name: str, *, within_s: float) -> None:
        try:
            code = self._processes[name].wait(max(within_s, 0.0))
        except subprocess.TimeoutExpired as error:
            raise self._failure(name, "did not end") from error
        if code != 0:
            raise self._failure(name, f"ended with status {code}")

    def wait_healthy(self, name: str, *, within_s: float) -> None:
        """By running the health check itself, until it passes."""
        service = self.services[name]
        if name in self._healthy:
            return
        assert service.health is not None, f"{name} has no health check to wait for"
        deadline = time.monotonic() + min(within_s, service.health.within_s)
        while True:
            complaint = self._complaint(service, service.health)
            if complaint is None:
                self._healthy.add(name)
                return
            process = self._processes.get(name)
            if process is not None and process.poll() is not None:
                raise self._failure(name, f"ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(name, f"is not healthy: {complaint[-500:]}")
            time.sleep(POLL_S)

    def restart(self, name: str, *, within_s: float) -> None:
        """One service, as `up --force-recreate --wait` does: ended, started, and healthy again."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(STOP_S)
        self._healthy.discard(name)
        self.launch(self.services[name])
        self.wait_healthy(name, within_s=within_s)

    def stop(self) -> None:
        """As an engine does: SIGTERM, and after a while SIGKILL to what is left of each group."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert self._reaper.stdin is not None
            self._reaper.stdin.write(f"-{process.pid}\n".encode())
        self._processes.clear()

    def _complaint(self, service: Service, health: HealthCheck) -> str | None:
        """Runs the health check once. None when it passes."""
        try:
            check = subprocess.run(
                [self._rewritten(service, word) for word in health.command],
                cwd=self._working_folder(service),
                env=self._environment(service),
                capture_output=True,
                text=True,
                timeout=health.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the check took more than {health.timeout_s} s"
        return None if check.returncode == 0 else check.stdout + check.stderr

    def _command(self, service: Service) -> list[str]:
        entrypoint = service.entrypoint
        if not entrypoint and service.target is not None:
            entrypoint = self._box.stages[service.target].entrypoint
        command = [self._rewritten(service, word) for word in (*entrypoint, *service.command)]
        return [str(self._programs(service) / command[0]), *command[1:]]

    def _environment(self, service: Service) -> dict[str, str]:
        image = {
            "PATH": f"{self._programs(service)}:/usr/bin:/bin",
            "HOME": str(self._working_folder(service)),
        }
        return image | {name: self._rewritten(service, value) for name, value in service.environment.items()}

    def _programs(self, service: Service) -> Path:
        return self._box.programs[service.image.rpartition(":")[0]]

    def _rewritten(self, service: Service, text: str) -> str:
        for name, port in self.ports.items():
            other = self.services[name]
            for alias in other.aliases:
                text = re.sub(rf"(?<![\w.-]){re.escape(alias)}:{other.port}\b", f"{LOOPBACK}:{port}", text)
        if service.port is not None:
            text = re.sub(rf"\b{service.port}\b", str(self.ports[service.name]), text)
        for inside, here in self._box.paths.items():
            text = re.sub(rf"(?<![\w/.:-]){re.escape(inside)}\b", str(here), text)
        return text.replace("0.0.0.0", LOOPBACK)

    def _working_folder(self, service: Service) -> Path:
        # Not this folder: its strongroom.toml or .env must not be found.
        folder = self.folder / service.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _failure(self, name: str, what: str) -> ServiceFailed:
        log = self._log(name).read_text(errors="replace")[-3000:] if self._log(name).exists() else ""
        return ServiceFailed(f"{name} {what}\n{log}")


@contextmanager
def composed(services: Mapping[str, Service], box: Box, *, within_s: float) -> Iterator[ComposedStack]:
    """The services, healthy; ended at the end."""
    with ComposedStack(services, box) as stack:
        stack.start(within_s=within_s)
        yield stack
