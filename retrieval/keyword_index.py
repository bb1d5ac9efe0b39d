"""BM25 search over one collection, by tantivy, in memory. The only module that imports it."""

import math
import re
import threading
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

import tantivy

from retrieval.analysers import COMMON_WORDS, Language, Reading, read
from retrieval.rankings import Hit, IndexedChunk, Ranking, Vocabulary, best_first

KEYWORD_FORMAT = f"3, {tantivy.__version__}"
"""Of index files. A change of what texts are cut into makes another one."""
WRITER_HEAP_BYTES = 15_000_000
"""The least that tantivy accepts for one writer thread."""
MAX_QUERY_TERMS = 128
"""A pasted page as a query is cut here: BM25 gains nothing from more, and time grows with each term."""
MAX_QUERY_CHARS = 10_000
"""What of a query is read at all."""
MAX_WORD_BYTES = 100
MAX_LEAD_CHARS = 160
"""A longer first line is text like any other."""
FEW_DOCUMENTS = 1_500
"""So many are looked up one by one; more of them at once, which is slower for few."""
MANY_DOCUMENTS = 10_000
"""More than so many are looked for among the best chunks however deep these lie; fewer only where most are admitted.
Of 100,000 chunks in 10,000 documents, milliseconds looked up at once and found so: half admitted 4.8 and 3.4, nine in
ten 7.3 and 2.3, a fifth 3.1 and 5.0.
"""
FIRST_LOOK = 2
"""How many times k it looks there at first, and what it adds to the depth that it seems to need."""
SHALLOW_LOOK = 5
DEEPEST_LOOK = 20_000

STOP_WORDS_OF_TANTIVY = frozenset(Language) - {
    Language.ARABIC,
    Language.GREEK,
    Language.ROMANIAN,
    Language.TAMIL,
    Language.TURKISH,
}
_WORD = r"[\p{L}\p{M}\p{N}]+"
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_PLAIN_NUMBER = re.compile(r"\b\d+\b")
_LONG_FIGURE = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)(?!\w|[.,]\d)")


@cache
def analyser_of(language: Language, *, has_marks: bool = True) -> tantivy.TextAnalyzer:
    """Words, lower case, accents folded, the language's stop words out, Snowball stems."""
    stop_words = (
        tantivy.Filter.stopword(language)
        if language in STOP_WORDS_OF_TANTIVY
        else tantivy.Filter.custom_stopword(COMMON_WORDS.get(language, "").split())
    )
    by_language = (stop_words, tantivy.Filter.stemmer(language))
    # English is folded first: its stemmer knows no accents. Others tell stems and stop words by them.
    filters = (
        (tantivy.Filter.ascii_fold(), *by_language)
        if language is Language.ENGLISH
        else (*by_language, tantivy.Filter.ascii_fold())
    )
    builder = (
        tantivy.TextAnalyzerBuilder(_tokenizer(has_marks=has_marks))
        .filter(tantivy.Filter.remove_long(MAX_WORD_BYTES))
        .filter(tantivy.Filter.lowercase())
    )
    for each in filters:
        builder = builder.filter(each)
    return builder.build()


@cache
def _cutter(*, has_marks: bool) -> tantivy.TextAnalyzer:
    """Words as they stand."""
    return tantivy.TextAnalyzerBuilder(_tokenizer(has_marks=has_marks)).build()


def _tokenizer(*, has_marks: bool) -> tantivy.Tokenizer:
    """Where there are no marks both cut alike, and the simple one takes half the time."""
    return tantivy.Tokenizer.regex(_WORD) if has_marks else tantivy.Tokenizer.simple()


@cache
def _whole_analyser() -> tantivy.TextAnalyzer:
    """What stands between spaces, in lower case and without accents."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
        .filter(tantivy.Filter.remove_long(MAX_WORD_BYTES))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .build()
    )


def stems_of_chunk(chunk: IndexedChunk, reading: Reading) -> list[str]:
    """Its words as they are indexed: those of its first line, which tells what it is about, twice; its file's name.

    Measured on nDCG@10, fused: cranfield +.007; BM25 alone: clapnq +.003, scifact's training questions +.004. Three
    times gains no more. Names of files tell the year and the company that a page of a report does not.
    """
    beside = (read(lead_of(chunk.text)), read(name_of(chunk.filename)))
    # By the language of its text: a line of two words tells none.
    more = [stem for each in beside for stem in stems_of(replace(each, language=reading.language))]
    return [*stems_of(reading), *more]


def lead_of(text: str) -> str:
    """The first line of several: a chunk's headings, its document's title, or what the columns of its table are."""
    line, _, rest = text.partition("\n")
    return line if rest and len(line) <= MAX_LEAD_CHARS else ""


@lru_cache(maxsize=1_024)
def name_of(filename: str) -> str:
    """The words of a file's name, if they are several: one alone is a number or an id more often than a title."""
    words = [word for word in _BETWEEN_WORDS.split(PurePosixPath(filename).stem) if word]
    return " ".join(words) if len(words) > 1 else ""


def asked_of(query: str) -> Reading:
    """A query as it is asked for: plain numbers among the identifiers too, since in tables they are no words, and
    those like 1,577 and 8.5 there alone, since their parts stand in many others.
    """
    reading = read(query, is_query=True)
    words = _LONG_FIGURE.sub(" ", reading.words)
    return replace(reading, words=words, wholes=(*reading.wholes, *_PLAIN_NUMBER.findall(words)))


def stems_of(reading: Reading) -> list[str]:
    """A text's words as they are indexed."""
    analyser = analyser_of(reading.language, has_marks=reading.has_marks)
    # A stem may be empty: that of an Arabic vowel without its consonant.
    return [stem for stem in analyser.analyze(reading.words) if stem]


def words_of(reading: Reading) -> list[str]:
    """A text's words as they stand in it."""
    words: list[str] = _cutter(has_marks=reading.has_marks).analyze(reading.words)
    return words


def wholes_of(reading: Reading) -> list[str]:
    """A text's identifiers as they are indexed."""
    wholes: list[str] = _whole_analyser().analyze(" ".join(reading.wholes))
    return wholes


def weight_of(whole: str) -> int:
    """How often an identifier counts in a query. One with a digit is what was asked for, and the words about it, such
    as "version", stand in many texts. Names with hyphens are words among others: counted twice, they cost .001 of nDCG.
    So are plain numbers.
    """
    return 2 if any(character.isdigit() for character in whole) and not whole.isdigit() else 1


class TantivyKeywordIndex:
    """Safe to use from several threads; a writer lives only while changes are applied.

    Each text is cut into stems by its own language, in one field, so that what is rare is so in the whole
    collection. Identifiers stand in a second field, whole.
    """

    def __init__(self, folder: Path | None = None, *, holding: Sequence[int] | None = None) -> None:
        """In memory, or with files in a new folder; with `holding`, in one that has an index of these chunks."""
        self._index = _make_index(folder) if holding is None else tantivy.Index.open(str(folder))
        # `apply` reloads it. When tantivy does so too, each waits 100 ms for the other's lock.
        self._index.config_reader(reload_policy="manual")
        self._index.register_tokenizer("wholes", _whole_analyser())
        self._schema = self._index.schema
        self._chunk_ids = set(holding or ())
        self._languages = _languages(self._index.searcher())
        self._lock = threading.Lock()
        if self._index.searcher().num_docs != len(self._chunk_ids):
            raise ValueError("It holds another number of chunks.")

    @classmethod
    def load(cls, folder: Path, *, chunk_ids: Sequence[int]) -> "TantivyKeywordIndex":
        """Reads the files of an index that holds these chunks. Raises ValueError when they are not what it holds."""
        return cls(folder, holding=chunk_ids)

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
                    writer.add_document(_as_document(chunk))
                writer.commit()
            self._index.reload()
            self._languages = _languages(self._index.searcher())
            self._chunk_ids.difference_update(known)
            self._chunk_ids.update(chunk.chunk_id for chunk in added)
            assert self._index.searcher().num_docs == len(self._chunk_ids)

    def search(self, queries: Sequence[str], k: int, *, documents: Set[int] | None = None) -> list[Ranking]:
        languages = self._languages
        searcher = self._index.searcher()
        return [
            self._search_one(searcher, self._query(searcher, languages, query), k, documents)
            for query in queries
        ]

    def vocabulary(self, words: Sequence[str]) -> Vocabulary:
        searcher, languages = self._index.searcher(), self._languages
        stems = {
            word: {stem for language in languages for stem in analyser_of(language).analyze(word)}
            for word in words
        }
        count = searcher.num_docs
        return Vocabulary(
            count,
            {
                word: min(sum(searcher.doc_freq("text", stem) for stem in each), count)
                for word, each in stems.items()
            },
        )

    def chunk_ids(self) -> Set[int]:
        with self._lock:
            return frozenset(self._chunk_ids)

    def _query(
        self, searcher: tantivy.Searcher, languages: Sequence[Language], text: str
    ) -> tantivy.Query | None:
        """Any of its words, each by the stems that it has in the languages of the texts, or identifiers.

        None when no word counts.
        """
        reading = asked_of(text[:MAX_QUERY_CHARS])
        words = dict.fromkeys(words_of(reading))
        stems = {_alternatives(word, reading, languages) for word in [*words][:MAX_QUERY_TERMS]} - {()}
        asked = [self._any_stem(searcher, alternatives) for alternatives in sorted(stems)]
        wholes = dict.fromkeys(wholes_of(reading))
        asked += [
            self._term("wholes", whole)
            for whole in [*wholes][:MAX_QUERY_TERMS]
            # As several clauses: a boost would keep tantivy from passing over what cannot be among the best.
            for _ in range(weight_of(whole))
        ]
        if not asked:
            return None
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, each) for each in asked])

    def _any_stem(self, searcher: tantivy.Searcher, stems: Sequence[str]) -> tantivy.Query:
        """The stems that one word has in several languages, as if they were one term.

        Else the stem of a language with few texts would count as a rare word, however common the word is.
        """
        holding = {stem: searcher.doc_freq("text", stem) for stem in stems} if len(stems) > 1 else {}
        found = [stem for stem, chunks in holding.items() if chunks]
        if len(found) <= 1:
            return self._term("text", (found or stems)[0])
        together = sum(holding.values())
        chunks = max(searcher.num_docs, together)
        return tantivy.Query.disjunction_max_query(
            [
                tantivy.Query.boost_query(
                    self._term("text", stem), _idf(together, chunks) / _idf(holding[stem], chunks)
                )
                for stem in found
            ]
        )

    def _term(self, field: str, term: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, term, "freq")

    def _search_one(
        self,
        searcher: tantivy.Searcher,
        query: tantivy.Query | None,
        k: int,
        documents: Set[int] | None,
    ) -> Ranking:
        if query is None or (documents is not None and not documents):
            return ()
        if documents is None:
            return _best(searcher, query, k)
        if len(documents) > FEW_DOCUMENTS:
            deepest = DEEPEST_LOOK if len(documents) > MANY_DOCUMENTS else SHALLOW_LOOK * k
            return self._best_of_many(searcher, query, k, documents, deepest)
        return _best(searcher, self._restricted(query, documents), k)

    def _restricted(self, query: tantivy.Query, documents: Set[int]) -> tantivy.Query:
        """To chunks of these documents, which add nothing to scores."""
        if len(documents) > FEW_DOCUMENTS:
            within = tantivy.Query.term_set_query(self._schema, "document_id", sorted(documents))
        else:
            each = (tantivy.Query.term_query(self._schema, "document_id", number) for number in documents)
            within = tantivy.Query.boolean_query([(tantivy.Occur.Should, one) for one in each])
        without_score = tantivy.Query.const_score_query(within, 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, without_score)])

    def _best_of_many(
        self, searcher: tantivy.Searcher, query: tantivy.Query, k: int, documents: Set[int], deepest: int
    ) -> Ranking:
        """The same ranking, by going down the unrestricted one until k chunks of the documents were met."""
        depth = FIRST_LOOK * k
        while depth <= deepest:
            hits, owners = _ranked(searcher, query, depth)
            met = [hit for hit, owner in zip(hits, owners, strict=True) if owner in documents]
            if len(met) >= k or len(hits) < depth:
                return best_first(met[:k])
            depth = FIRST_LOOK * depth * k // (len(met) + 1)
        return _best(searcher, self._restricted(query, documents), k)


def _make_index(folder: Path | None) -> tantivy.Index:
    if folder is not None:
        folder.mkdir(parents=True)
    schema = (
        tantivy.SchemaBuilder()
        .add_unsigned_field("chunk_id", indexed=True, fast=True)
        .add_unsigned_field("document_id", indexed=True, fast=True)
        .add_text_field("text", tokenizer_name="whitespace", index_option="freq")
        .add_text_field("wholes", tokenizer_name="wholes", index_option="freq")
        .add_text_field("language", tokenizer_name="raw", index_option="basic")
        .build()
    )
    return tantivy.Index(schema, path=None if folder is None else str(folder))


def _languages(searcher: tantivy.Searcher) -> tuple[Language, ...]:
    """Those of the texts."""
    return tuple(each for each in Language if searcher.doc_freq("language", each.value))


def _as_document(chunk: IndexedChunk) -> tantivy.Document:
    reading = read(chunk.text)
    document = tantivy.Document()
    document.add_unsigned("chunk_id", chunk.chunk_id)
    document.add_unsigned("document_id", chunk.document_id)
    document.add_text("language", reading.language.value)
    # Cut here, by the language of each text, and put together again: tokens that come cut cost more than all else.
    document.add_text("text", " ".join(stems_of_chunk(chunk, reading)))
    if reading.wholes:
        document.add_text("wholes", " ".join(reading.wholes))
    return document


def _alternatives(word: str, query: Reading, languages: Sequence[Language]) -> tuple[str, ...]:
    """The stems of a word in each of the languages; none for a stop word of the query's own."""

    def stems(language: Language) -> list[str]:
        return [stem for stem in analyser_of(language, has_marks=query.has_marks).analyze(word) if stem]

    if not stems(query.language):
        return ()
    return tuple(sorted({stem for language in languages for stem in stems(language)}))


def _idf(holding: int, chunks: int) -> float:
    """As tantivy weighs a term."""
    return math.log(1 + (chunks - holding + 0.5) / (holding + 0.5))


def _best(searcher: tantivy.Searcher, query: tantivy.Query, k: int) -> Ranking:
    found = searcher.search(query, k, count=False).hits
    chunk_ids = searcher.fast_field_values("chunk_id", [address for _, address in found])
    return best_first([Hit(int(i), score) for i, (score, _) in zip(chunk_ids, found, strict=True)])


def _ranked(searcher: tantivy.Searcher, query: tantivy.Query, k: int) -> tuple[list[Hit], list[int]]:
    """The best k hits, and the document of each."""
    found = searcher.search(query, k, count=False).hits
    addresses = [address for _, address in found]
    chunk_ids = searcher.fast_field_values("chunk_id", addresses)
    owners = searcher.fast_field_values("document_id", addresses)
    hits = [Hit(int(i), score) for i, (score, _) in zip(chunk_ids, found, strict=True)]
    return hits, [int(owner) for owner in owners]
