"""Fetches a model from a hub into the models folder, as a step of its own: `python -m app.running.pulling NAME`."""

import sys
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from app.settings import MIB, read_settings, weights_bytes

# Weights as safetensors alone, which run no code when they are read, and plain configurations.
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class PullFailed(Exception):
    """A model could not be fetched; the message says why and what to do."""


def pull(name: str, folder: Path) -> Path:
    """The model's folder, named by the last part of its name. What is there already is not fetched again.

    Raises PullFailed.
    """
    target = folder / name.rstrip("/").rpartition("/")[2]
    try:
        # Asked first, since a snapshot that fails says no more than that.
        HfApi().model_info(name)
        snapshot_download(name, local_dir=target, allow_patterns=list(WANTED))
    except OfflineModeIsEnabled as error:
        raise PullFailed("HF_HUB_OFFLINE is set: unset it for this command.") from error
    except HFValidationError as error:
        raise PullFailed(f"{name!r} is no name on a hub: write OWNER/MODEL.") from error
    except HfHubHTTPError as error:
        raise PullFailed(
            f"The hub has no {name!r} that may be fetched ({error.response.status_code}). Closed models need HF_TOKEN."
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise PullFailed(f"The hub cannot be reached ({type(error).__name__}).") from error
    if not weights_bytes(str(target)):
        raise PullFailed(f"{name!r} has no .safetensors weights: choose another model or revision.")
    return target


def main() -> None:
    settings = read_settings()
    try:
        target = pull(sys.argv[1], settings.models.folder)
    except PullFailed as error:
        sys.exit(f"strongroom: {error}")
    size = weights_bytes(str(target)) / MIB
    told = (
        f"{target}: {size:,.0f} MiB of weights. Name it {target.name!r} in engine.model or models.embedding."
    )
    sys.stdout.write(told + "\n")


if __name__ == "__main__":
    main()
