"""Reads a text for the keyword index: its language, what words it can be cut into, and the names that stand whole.

The language is told by the script, and of Latin letters by the words that every sentence has: that takes 20 µs, needs
no model, and is right about running text, which is where inflection matters. A text that gives no sign of another
language is read as English.
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class Language(StrEnum):
    """Those whose words are cut to their stems."""

    ARABIC = "arabic"
    DANISH = "danish"
    DUTCH = "dutch"
    ENGLISH = "english"
    FINNISH = "finnish"
    FRENCH = "french"
    GERMAN = "german"
    GREEK = "greek"
    HUNGARIAN = "hungarian"
    ITALIAN = "italian"
    NORWEGIAN = "norwegian"
    PORTUGUESE = "portuguese"
    ROMANIAN = "romanian"
    RUSSIAN = "russian"
    SPANISH = "spanish"
    SWEDISH = "swedish"
    TAMIL = "tamil"
    TURKISH = "turkish"


COMMON_WORDS = {
    Language.DANISH: """og i at det er en til den af som på de med han for ikke der var mig sig men et har om vi
        havde hun nu over da fra du ud dem os op man hans hvor eller hvad skal selv her alle vil blev kunne ind når
        være også efter mellem""",
    Language.DUTCH: """de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om
        hem dan zou of wat mijn men dit zo door over ze zich bij ook tot je mij uit der daar naar heb hoe heeft
        hebben deze worden wordt werd geen kan meer waar welke""",
    Language.ENGLISH: """a an and are as at be but by for if in into is it no not of on or such that the their then
        there these they this to was will with from which were have has been had he his she her we you your its who
        what when where why how does did do can may should would about than""",
    Language.FINNISH: """ja on ei oli että se hän mutta joka ovat myös kun niin kuin tai sen olla vain jos mitä
        tämä hänen sekä ole jonka jotka mukaan noin siitä siinä vuonna olivat voi missä milloin kuka""",
    Language.FRENCH: """de la le les et des en un une du est que dans qui pour par sur au avec ce il pas plus ne se
        sont cette aux ou été ces son sa ses leur mais nous vous elle être comme fait peut quel quelle où quand
        comment""",
    Language.GERMAN: """der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an
        werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder
        aber vor zur bis mehr durch man wurde wenn können was wer wann wo welche warum""",
    Language.GREEK: """και το της η του να με την οι από για τα στο που είναι ο τον δεν στην των τους σε μια ένα τη
        θα ή ως ότι""",
    Language.HUNGARIAN: """a az és hogy nem is egy meg ez de van volt csak mint már vagy még ki ha el azt majd kell
        lehet minden amely illetve volna azok ezt pedig után mikor hol""",
    Language.ITALIAN: """di e il la che in un per è del non una della con i da le al si sono dei come nel più gli
        delle alla ha anche lo nella questo ma dal su o se stato essere loro cui quando dove chi quale""",
    Language.NORWEGIAN: """og i det på som er en til å av for at med har de ikke den jeg om et han men var seg fra
        vi hun så eller skal kan blir ble også etter ved være noe hvor hva nå hvem når mellom""",
    Language.PORTUGUESE: """de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao
        ele das tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso são onde quem qual""",
    Language.ROMANIAN: """de și în a la cu pe nu un o că din care este mai sau pentru al ce ca fi au fost lui ai
        prin dar sunt se după această acest ale doar le unui unei unde când""",
    Language.SPANISH: """de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya
        o este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante ser
        son fue está qué cuál cuándo dónde quién""",
    Language.SWEDISH: """och i att det som en på är av för den till med de inte har om ett han men var sig från vi
        så kan när hon eller skulle också vid under efter blev sin nu där hade alla vara ska vad hur vem mellan""",
    Language.TURKISH: """ve bir bu da için ile de olarak çok daha olan gibi en ne kadar ama sonra var olduğu her
        göre tarafından ya ise ki değil mi veya bunu oldu ancak içinde şu nerede nasıl kim""",
}
"""Words that nearly every paragraph has, and that say nothing of what it is about."""

SAMPLE_CHARS = 600
"""How much of a text is read to tell its language: a paragraph has some forty of the common words in it."""
LEAST_WORDS = 2
LEAST_SHARE = 0.05
"""Of a text's words, those that another language has to have in it: a list of names may hold two of any."""
LEAST_WEIGHT = 1.0
OVER_ENGLISH = 1.5
"""What they must weigh, and how much more than the English ones. A word of n languages weighs 1 / n."""
SCRIPT_SHARE = 0.3
"""Of a text's characters: English with the Greek letters of its formulas is English."""

_LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
"""As plain text: an enum's hash takes ten times as long, and this is read for each word of each text."""
for _language, _words in COMMON_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF[_word] = (*_LANGUAGES_OF.get(_word, ()), _language.value)

_SCRIPTS = {
    Language.RUSSIAN: re.compile("[\u0400-\u052f]+"),
    Language.GREEK: re.compile("[\u0370-\u03ff\u1f00-\u1fff]+"),
    Language.ARABIC: re.compile("[\u0600-\u06ff]+"),
    Language.TAMIL: re.compile("[\u0b80-\u0bff]+"),
}
_OTHER_SCRIPT = re.compile("[\u0370-\u052f\u0600-\u06ff\u0b80-\u0bff]")
_NOT_ARABIC = re.compile("[\u067e\u0686\u0698\u06a9\u06af\u06cc\u06d2]")
"""Letters of Persian and Urdu, whose words the Arabic stemmer would maim."""

_AS_TYPED = (
    *((sign, "-") for sign in "\u2010\u2011\u2012\u2013\u2212"),
    *((sign, "'") for sign in "\u2018\u2019\u02bc"),
    ("\u00ad", ""),
    ("\u0130", "I"),
)
"""Hyphens and apostrophes as keyboards have them; no hyphen that only shows at a line's end; the Turkish capital I,
whose small form has a dot of its own.
"""
_UNSPACED = re.compile(
    "["
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u1000-\u103f\u1050-\u109f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\uac00-\ud7a3"  # Hangul: spaces stand between phrases, not between words and their endings
    "]+"
)
"""A stretch of a script that is written without spaces between words."""
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0711-\u074a"
    "\u07a6-\u109f\u135d-\u135f\u1712-\u17d3\u18a9-\u1cf9\u1dc0-\u1dff\u20d0-\u20f0\ua66f-\uabed]"
)
"""Scripts and signs in which marks stand between letters: vowels in Hindi, accents that no letter was made of."""
_MIXED = re.compile(r"[a-z]{3}[A-Z]|[a-z][A-Z][a-z]|[A-Z]{2}[a-z]{2}")
"""In parseXml, getURL and XMLParser words are put together; in mRNA they are not."""
_PART = re.compile(r"[A-Z]+s?(?![a-z])|[A-Z]?[a-z]+")
_EDGES = ".,;:!?()[]{}<>\"'"
_WHOLE = re.compile(
    r"""
    \w+ (?: (?: [-./:@\\]{1,3} | '(?!(?:s|t|d|m|re|ve|ll)\b) | ,(?=\d{3}(?!\d)) ) \w+ )+
    | [^\W_]\w*_\w*[^\W_]
    | \b [A-Za-z][A-Za-z]? (?: \+\+ | \# ) (?!\w)
    """,
    re.VERBOSE,
)
"""E-4031, AX-12/7b, 192.168.0.1, snake_case, os.path.join, O'Brien, 1,234,567, C++; but not it's."""
_NAMED = re.compile(r"[\d_/:@\\.+#]|[^\W\d_a-zß-ÿ]")
"""What makes an identifier or a name of words with hyphens: a digit, another sign, a capital."""
_PIECES = re.compile(r"[./:@\\]+")
_VERSION = re.compile(r"v(?=\d+\.)", re.IGNORECASE)
_YEAR = r"(?:19|20)\d\d"
_YEAR_WITHIN = re.compile(rf"\b[A-Za-z]{{1,2}}\d?({_YEAR})\b")
"""FY2018, Q22023."""
_IS_YEAR = re.compile(rf"\s*{_YEAR}\s*")
_CELLS = " | "
"""Between the cells of a table's row."""
_AROUND_FIGURES = "$€£¥%()+-–—"


@dataclass(frozen=True)
class Reading:
    """What a text is to the index."""

    language: Language
    words: str
    """The text, so written that what is neither letter, mark nor digit separates all the words in it: of scripts
    without spaces each two neighbours, of camelCase the parts too, of FY2018 the year. Cells of figures are left out:
    in pieces they would count as words, and make of each table a long text that says little of anything.
    """
    wholes: tuple[str, ...]
    """Identifiers and names with signs in them, as they stand; figures in cells of tables; of scripts without spaces
    each letter.
    """

    @property
    def has_marks(self) -> bool:
        """Whether marks may stand between the letters of a word."""
        return not self.words.isascii() and _MARKS.search(self.words) is not None


def read(text: str, *, is_query: bool = False) -> Reading:
    """Never raises, whatever the text.

    A query's `wholes` are only those that it asks for by itself: a letter that stands alone, and a name with an
    apostrophe whether it has its capital or not.
    """
    letters: list[str] = []
    if not text.isascii():
        text = _normalized(text)
        text, letters = _spaced(text, only_alone=is_query)
    spans = text.split()
    capitals = [span for span in spans if not span.islower()]
    parts = [part for span in capitals if not (span.istitle() or span.isupper()) for part in _parts(span)]
    parts += _YEAR_WITHIN.findall(text)
    signs = [core for span in spans if not span.isalnum() and not (core := span.strip(_EDGES)).isalnum()]
    wholes = _wholes(" ".join(signs), is_query=is_query) if signs else []
    words, figures = (text, []) if is_query or _CELLS not in text else _without_figures(text)
    return Reading(
        language=language_of(text),
        words=" ".join([words, *parts]) if parts else words,
        wholes=(*wholes, *figures, *letters),
    )


def language_of(text: str) -> Language:
    sample = text[:SAMPLE_CHARS]
    if not sample.isascii() and _OTHER_SCRIPT.search(sample):
        for script, letters in _SCRIPTS.items():
            if sum(map(len, letters.findall(sample))) > SCRIPT_SHARE * len(sample):
                is_other = script is Language.ARABIC and _NOT_ARABIC.search(sample)
                return Language.ENGLISH if is_other else script
    weights: dict[str, float] = {}
    counts: dict[str, int] = {}
    words = sample.lower().split()
    for word in _LANGUAGES_OF.keys() & words:
        languages = _LANGUAGES_OF[word]
        for language in languages:
            weights[language] = weights.get(language, 0.0) + 1 / len(languages)
            counts[language] = counts.get(language, 0) + 1
    english = weights.pop("english", 0.0)
    if not weights:
        return Language.ENGLISH
    best = max(weights, key=lambda language: (weights[language], language))
    has_enough = counts[best] >= max(LEAST_WORDS, LEAST_SHARE * len(words))
    is_sure = has_enough and weights[best] >= max(LEAST_WEIGHT, OVER_ENGLISH * english)
    return Language(best) if is_sure else Language.ENGLISH


def _normalized(text: str) -> str:
    """Full-width and composed letters as the others are written; half a surrogate pair, which is no text, as `?`."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    normalized = unicodedata.normalize("NFKC", whole)
    # One by one, each in next to no time: a table would look up every letter.
    for sign, typed in _AS_TYPED:
        normalized = normalized.replace(sign, typed)
    return normalized


def _spaced(text: str, *, only_alone: bool) -> tuple[str, list[str]]:
    """The text with each two neighbours of a stretch without spaces as a word, and the stretches' letters."""
    letters: list[str] = []

    def pairs(stretch: re.Match[str]) -> str:
        each = _clusters(stretch[0])
        if len(each) == 1 or not only_alone:
            letters.extend(each)
        if len(each) == 1:
            return f" {each[0]} "
        return f" {' '.join(left + right for left, right in pairwise(each))} "

    return _UNSPACED.sub(pairs, text), letters


def _without_figures(text: str) -> tuple[str, list[str]]:
    """The text without cells that hold no letter and are no year, and the plain numbers in these."""
    figures: list[str] = []
    lines = text.split("\n")
    for index, line in enumerate(lines):
        cells = line.split(_CELLS)
        if len(cells) == 1:
            continue
        kept = [cell for cell in cells if any(map(str.isalpha, cell)) or _IS_YEAR.fullmatch(cell)]
        if len(kept) < len(cells):
            spans = " ".join(cell for cell in cells if cell not in kept).split()
            figures += [core for span in spans if (core := span.strip(_AROUND_FIGURES)).isdigit()]
            lines[index] = _CELLS.join(kept)
    return "\n".join(lines), figures


def _clusters(stretch: str) -> list[str]:
    """Its letters, each with the marks above and below it."""
    clusters: list[str] = []
    for character in stretch:
        if clusters and unicodedata.category(character).startswith("M"):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _parts(span: str) -> list[str]:
    """Of parseHttpResponse: parse, Http, Response."""
    if not _MIXED.search(span):
        return []
    parts = [part for part in _PART.findall(span) if len(part) > 1]
    return parts if len(parts) > 1 else []


def _wholes(text: str, *, is_query: bool) -> list[str]:
    wholes: list[str] = []
    for whole in _WHOLE.findall(text):
        # O'Brien and Jean-Luc are names, l'école and well-known are not; who asks in small letters may mean either.
        if not (is_query or _NAMED.search(whole)) or ("'" in whole and not (is_query or whole[0].isupper())):
            continue
        wholes.append(_VERSION.sub("", whole))
        # Of self.base_dir, base_dir is asked for as well.
        pieces = _PIECES.split(whole)
        wholes += [piece for piece in pieces if len(pieces) > 1 and ("-" in piece or "_" in piece)]
    return wholes
