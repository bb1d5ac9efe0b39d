"""BM25 search over one collection, by tantivy, in memory. The only module that imports it."""

import threading
from collections.abc import Sequence, Set

import tantivy

from retrieval.rankings import Hit, IndexedChunk, Ranking, best_first

WRITER_HEAP_BYTES = 15_000_000
"""The least that tantivy accepts for one writer thread."""
MAX_QUERY_TERMS = 128
"""A pasted page as a query is cut here: BM25 gains nothing from more, and time grows with each term."""


def english_analyzer() -> tantivy.TextAnalyzer:
    """Words, lower case, accents folded, English stop words out, Snowball stems."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(100))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stopword("english"))
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


class TantivyKeywordIndex:
    """Safe to use from several threads; a writer lives only while changes are applied."""

    def __init__(self) -> None:
        self._schema = (
            tantivy.SchemaBuilder()
            .add_unsigned_field("chunk_id", indexed=True, fast=True)
            .add_unsigned_field("document_id", indexed=True)
            .add_text_field("text", tokenizer_name="english", index_option="freq")
            .build()
        )
        self._analyzer = english_analyzer()
        self._index = tantivy.Index(self._schema)
        self._index.register_tokenizer("english", self._analyzer)
        # `apply` reloads it. When tantivy does so too, each waits 100 ms for the other's lock.
        self._index.config_reader(reload_policy="manual")
        self._chunk_ids: set[int] = set()
        self._lock = threading.Lock()

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        with self._lock:
            known = self._chunk_ids.intersection(removed)
            if not added and not known:
                return
            with self._index.writer(heap_size=WRITER_HEAP_BYTES, num_threads=1) as writer:
                if known:
                    # By query, since delete_documents_by_term takes every number for a signed one and finds nothing.
                    writer.delete_documents_by_query(
                        tantivy.Query.term_set_query(self._schema, "chunk_id", sorted(known))
                    )
                for chunk in added:
                    writer.add_document(
                        tantivy.Document.from_dict(
                            {
                                "chunk_id": chunk.chunk_id,
                                "document_id": chunk.document_id,
                                "text": chunk.text,
                            },
                            self._schema,
                        )
                    )
                writer.commit()
            self._index.reload()
            self._chunk_ids.difference_update(known)
            self._chunk_ids.update(chunk.chunk_id for chunk in added)
            assert self._index.searcher().num_docs == len(self._chunk_ids)

    def search(self, queries: Sequence[str], k: int, *, documents: Set[int] | None = None) -> list[Ranking]:
        searcher = self._index.searcher()
        return [self._search_one(searcher, query, k, documents) for query in queries]

    def chunk_ids(self) -> Set[int]:
        with self._lock:
            return frozenset(self._chunk_ids)

    def _search_one(
        self, searcher: tantivy.Searcher, text: str, k: int, documents: Set[int] | None
    ) -> Ranking:
        terms = sorted(set(self._analyzer.analyze(text)[:MAX_QUERY_TERMS]))
        if not terms or (documents is not None and not documents):
            return ()
        any_term = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "text", term, "freq"))
                for term in terms
            ]
        )
        query = any_term
        if documents is not None:
            within = tantivy.Query.term_set_query(self._schema, "document_id", sorted(documents))
            query = tantivy.Query.boolean_query(
                [
                    (tantivy.Occur.Must, any_term),
                    (tantivy.Occur.Must, tantivy.Query.const_score_query(within, 0.0)),
                ]
            )
        found = searcher.search(query, k, count=False).hits
        chunk_ids = searcher.fast_field_values("chunk_id", [address for _, address in found])
        return best_first([Hit(int(i), score) for i, (score, _) in zip(chunk_ids, found, strict=True)])
