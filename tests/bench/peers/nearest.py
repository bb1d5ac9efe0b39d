"""Chroma and LanceDB as an index of vectors alone: built, tuned to a recall, timed. Runs in their own environments.

`PYTHON nearest.py PEER FOLDER`, where FOLDER holds `rows.npy` and `queries.npy` (float32, unit rows) and `best.npy`
(each query's best 10 rows). It prints JSON: recall, seconds of each search, the knob that it took, seconds to build.
It must not import anything of this project.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

K = 10
ENOUGH = 0.99
GRAPH = {"space": "ip", "max_neighbors": 32, "ef_construction": 200}
"""Twice what Chroma takes by itself: with that it finds .84 of MiniLM's mixtures, however wide it searches."""
Search = Callable[[Any], Sequence[int]]


def chroma(folder: Path, rows: Any) -> Iterator[tuple[str, Search]]:
    """HNSW; wider searches until they find enough."""
    import chromadb  # type: ignore[import-not-found, unused-ignore]

    client = chromadb.PersistentClient(
        str(folder / "chroma"), settings=chromadb.Settings(anonymized_telemetry=False)
    )
    collection = client.create_collection("bench", configuration={"hnsw": GRAPH}, embedding_function=None)
    step = client.get_max_batch_size()
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        collection.add(ids=[str(start + n) for n in range(len(part))], embeddings=part)

    def search(query: Any) -> Sequence[int]:
        found = collection.query(query_embeddings=[query], n_results=K, include=["distances"])
        return [int(each) for each in found["ids"][0]]

    yield "its own settings", search
    for width in (200, 400, 800, 1600):
        collection.modify(configuration={"hnsw": {"ef_search": width}})
        yield f"ef_search {width}", search


def lancedb(folder: Path, rows: Any) -> Iterator[tuple[str, Search]]:
    """IVF with product quantization, as its documentation says for tables of this size, refined by the rows."""
    import lancedb as library  # type: ignore[import-not-found, unused-ignore]
    import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    content = pa.table({"id": pa.array(np.arange(len(rows))), "vector": vectors})
    table = library.connect(str(folder / "lancedb")).create_table("bench", content)
    if len(rows) >= 10_000:
        table.create_index(metric="dot", vector_column_name="vector")

    for probes, refine in ((20, 10), (50, 10), (100, 20), (200, 40), (400, 100)):

        def search(query: Any, probes: int = probes, refine: int = refine) -> Sequence[int]:
            asked = table.search(query).distance_type("dot").nprobes(probes).refine_factor(refine)
            ids: Sequence[int] = asked.select(["id"]).limit(K).to_arrow()["id"].to_pylist()
            return ids

        yield f"nprobes {probes}, refine_factor {refine}", search


def main() -> None:
    peer, folder = sys.argv[1], Path(sys.argv[2])
    rows, queries, best = (np.load(folder / f"{name}.npy") for name in ("rows", "queries", "best"))
    began_at = time.perf_counter()
    tuned = {"chroma": chroma, "lancedb": lancedb}[peer](folder, rows)
    knob, search = next(tuned)
    build_s = time.perf_counter() - began_at
    while True:
        for query in queries[:10]:
            search(query)
        shares, seconds = [], []
        for query, expected in zip(queries, best, strict=True):
            started = time.perf_counter()
            found = search(query)
            seconds.append(time.perf_counter() - started)
            shares.append(len(set(found) & set(expected.tolist())) / K)
        recall = float(np.mean(shares))
        following = next(tuned, None)
        if recall >= ENOUGH or following is None:
            break
        knob, search = following
    print(json.dumps({"recall": recall, "seconds": seconds, "knob": knob, "build_s": build_s}))


if __name__ == "__main__":
    main()
