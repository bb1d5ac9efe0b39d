"""OGX with inline FAISS, its own way to chunk, and embeddings over HTTP: how it is started for benchmarks of ingestion.

It speaks OpenAI's routes for files, vector stores and search, so `tests.bench.clients.Api` asks it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.bench.clients import Api
from tests.bench.peers.install import program
from tests.bench.peers.processes import running
from tests.stack import free_port

REPLY_S = 600.0
"""An attachment is answered once the file is in."""
VOCABULARY = "lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers"
"""tiktoken's, which OGX would fetch from the internet. litellm ships it, and is in OGX's environment for no more."""
CONFIG = """
version: 2
distro_name: bench
apis: [file_processors, files, inference, vector_io]
providers:
  inference:
  - provider_id: embedder
    provider_type: remote::openai
    config: {{base_url: "{embedder}/v1", api_key: "{key}"}}
  vector_io:
  - provider_id: faiss
    provider_type: inline::faiss
    config: {{persistence: {{namespace: "vector_io::faiss", backend: kv_default}}}}
  files:
  - provider_id: files
    provider_type: inline::localfs
    config: {{storage_dir: "{folder}/files", metadata_store: {{table_name: files, backend: sql_default}}}}
  file_processors:
  - {{provider_id: pypdf, provider_type: "inline::pypdf", config: {{}}}}
storage:
  backends:
    kv_default: {{type: kv_sqlite, db_path: "{folder}/kv.db"}}
    sql_default: {{type: sql_sqlite, db_path: "{folder}/sql.db"}}
  stores:
    metadata: {{namespace: registry, backend: kv_default}}
    inference: {{table_name: inference, backend: sql_default}}
    conversations: {{table_name: conversations, backend: sql_default}}
    prompts: {{table_name: prompts, backend: sql_default}}
    connectors: {{table_name: connectors, backend: sql_default}}
registered_resources:
  models:
  - model_id: {model}
    provider_id: embedder
    provider_model_id: {model}
    model_type: embedding
    metadata: {{embedding_dimension: {dimensions}}}
server: {{host: 127.0.0.1, port: {port}}}
vector_stores:
  default_provider_id: faiss
  default_embedding_model: {{provider_id: embedder, model_id: {model}}}
"""


@contextmanager
def ogx(folder: Path, *, api: str, key: str, model: str, dimensions: int) -> Iterator[Api]:
    """`api`: the URL of ours, whose /v1/embeddings embeds for it. Raises PeerAbsent and MeasureFailed."""
    command = program("ogx", "ogx")
    port, embedder_port = free_port(), free_port()
    embedder = f"http://127.0.0.1:{embedder_port}"
    cutting = [sys.executable, "-m", "tests.bench.peers.cutting_embedder", "--port", str(embedder_port)]
    kept = folder / "ogx"
    kept.mkdir()
    config = kept / "config.yaml"
    config.write_text(
        CONFIG.format(embedder=embedder, key=key, folder=kept, model=model, dimensions=dimensions, port=port)
    )
    # Its home would else be a folder of the user's.
    environment = {"HOME": str(kept), "TIKTOKEN_CACHE_DIR": str(_vocabulary(command))}
    url = f"http://127.0.0.1:{port}"
    with (
        running([*cutting, "--api", api], ready=f"{embedder}/health", log=folder / "ogx-embedder.log"),
        running(
            [command, "run", str(config), "--insecure"],
            ready=f"{url}/v1/health",
            log=folder / "ogx.log",
            environment=environment,
            working_dir=kept,
        ),
        httpx.Client(base_url=url, timeout=REPLY_S) as client,
    ):
        yield Api(client)


def _vocabulary(command: str) -> Path:
    (found,) = Path(command).parents[1].glob(VOCABULARY)
    return found
