"""The models role as a program: `python -m app.models_role`. The only part of app that loads torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI

from app.http_server import run_http
from app.logs import start_logs
from app.settings import ModelsSettings, model_path, read_settings
from serving.models.embedding import load_embedding_model
from serving.models.reranking import load_reranking_model
from serving.protocols import Device, Precision
from serving.server import create_app

Loaded = TypeVar("Loaded")


def create_models_app(settings: ModelsSettings) -> FastAPI:
    load_embedding = partial(_load, load_embedding_model, settings.embedding, settings)
    load_reranking = partial(_load, load_reranking_model, settings.reranker, settings)
    return create_app(
        load_embedding=load_embedding,
        load_reranking=load_reranking if settings.reranker else None,
        token=settings.token or None,
    )


def _load(load: Callable[..., Loaded], name: str, settings: ModelsSettings) -> Loaded:
    return load(
        model_path(name, settings.folder),
        name=Path(name).name,
        device=Device(settings.device),
        precision=Precision(settings.dtype),
        threads=settings.threads,
        allow_download=settings.allow_download,
    )


def main() -> None:
    settings = read_settings()
    start_logs("models", settings.server.log_level)
    run_http(create_models_app(settings.models), settings.models.host, settings.models.port)


if __name__ == "__main__":
    main()
