"""The models role as a program: `python -m app.running.models_role`. The only part of app that loads torch."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from starlette.applications import Starlette

from app.logs import start_logs
from app.observing.tracing import exporting
from app.running.http_server import run_http
from app.settings import MIB, ModelSource, ModelsSettings, model_path, read_settings, weights_bytes
from serving.batching.batcher import RowCache
from serving.hosting import DeclaredModel, HostingLimits, LoadedModel, ModelHost
from serving.models.embedding import load_embedding_model
from serving.models.reranking import load_reranking_model
from serving.protocols import Backend, Device, Precision
from serving.readiness import Kind
from serving.request_ids import TakeRequestIds
from serving.server import create_app
from serving.tracing import TraceRequests


def create_models_app(settings: ModelsSettings) -> Starlette:
    declared = [
        *_declare(Kind.EMBEDDING, settings.embeddings, load_embedding_model, settings),
        *_declare(Kind.RERANKING, settings.rerankers, load_reranking_model, settings),
    ]
    limits = HostingLimits(
        memory_bytes=settings.memory_mib * MIB or math.inf, idle_unload_s=settings.idle_unload_s or math.inf
    )
    cache = RowCache(settings.cache_mib * MIB) if settings.cache_mib else None
    return create_app(ModelHost(declared, limits=limits, cache=cache), token=settings.token or None)


def _declare(
    kind: Kind,
    sources: Sequence[ModelSource],
    load: Callable[..., LoadedModel],
    settings: ModelsSettings,
) -> list[DeclaredModel]:
    return [
        DeclaredModel(
            alias=source.alias,
            kind=kind,
            load=partial(
                load,
                model_path(source.source, settings.folder),
                name=source.alias,
                device=Device(settings.device),
                precision=Precision(settings.dtype),
                backend=Backend(settings.backend),
                threads=settings.threads or None,
                replicas=settings.replicas,
                allow_download=settings.allow_download,
            ),
            is_default=source is sources[0],
            expected_bytes=weights_bytes(model_path(source.source, settings.folder)),
        )
        for source in sources
    ]


def main() -> None:
    settings = read_settings()
    start_logs("models", settings.server.log_level)
    app = create_models_app(settings.models)
    with exporting(settings.traces, "models"):
        named = TakeRequestIds(app)
        run_http(
            TraceRequests(named) if settings.traces.endpoint else named,
            settings.models.host,
            settings.models.port,
        )


if __name__ == "__main__":
    main()
