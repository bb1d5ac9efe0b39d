"""How a question that the documents do not answer is refused, in its own language, and how a model says so itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval.languages import DEFAULT_LANGUAGE, question_language


@dataclass(frozen=True)
class _Refusal:
    """In one language."""

    not_said: str
    """A whole sentence, without what ends it."""
    nothing_bears: str
    ending: str = "."
    before_questions: str = ": "


_REFUSALS: Mapping[str, _Refusal] = {
    "ar": _Refusal("لا تذكر المستندات ذلك", "لا يوجد فيها ما يتعلق بهذا السؤال"),
    "de": _Refusal("Die Dokumente sagen dazu nichts", "Nichts in ihnen betrifft diese Frage"),
    "en": _Refusal("The documents do not say", "Nothing in them bears on this question"),
    "es": _Refusal("Los documentos no lo dicen", "Nada en ellos se refiere a esta pregunta"),
    "fr": _Refusal(
        "Les documents ne le disent pas",
        "Rien dans ces documents ne concerne cette question",
        before_questions=" : ",
    ),
    "he": _Refusal("המסמכים אינם אומרים זאת", "אין בהם דבר הנוגע לשאלה זו"),
    "hi": _Refusal("दस्तावेज़ों में यह नहीं बताया गया है", "उनमें इस प्रश्न से संबंधित कुछ नहीं है", ending="।"),
    "it": _Refusal("I documenti non lo dicono", "Nulla in essi riguarda questa domanda"),
    "ja": _Refusal(
        "文書には書かれていません",
        "この質問に関係する内容は見つかりませんでした",
        ending="。",
        before_questions="：",
    ),
    "ko": _Refusal("문서에 나와 있지 않습니다", "이 질문과 관련된 내용이 없습니다"),
    "nl": _Refusal("De documenten zeggen dit niet", "Niets erin heeft betrekking op deze vraag"),
    "pl": _Refusal("Dokumenty o tym nie mówią", "Nic w nich nie dotyczy tego pytania"),
    "pt": _Refusal("Os documentos não o dizem", "Nada neles diz respeito a esta pergunta"),
    "ru": _Refusal("В документах об этом не сказано", "Ничто в них не относится к этому вопросу"),
    "tr": _Refusal("Belgelerde bu söylenmiyor", "İçlerinde bu soruyla ilgili hiçbir şey yok"),
    "uk": _Refusal("У документах про це не сказано", "Ніщо в них не стосується цього запитання"),
    "zh": _Refusal("文档中没有说明", "其中没有与这个问题相关的内容", ending="。", before_questions="："),
}
"""By ISO 639-1, each language that question_language tells."""


_NOT_SAID = tuple(each.not_said.lower() for each in _REFUSALS.values())


def refusal(question: str) -> str:
    """The whole reply to a question that nothing bears on."""
    said = _REFUSALS[question_language(question)]
    space = "" if said.ending == "。" else " "
    return f"{said.not_said}{said.ending}{space}{said.nothing_bears}{said.ending}"


def not_said_of(parts: Sequence[str]) -> str:
    """What is said of those questions of several that nothing bears on. One at least."""
    said = _REFUSALS[question_language(parts[0])]
    return f"{said.not_said}{said.before_questions}{' '.join(part.strip() for part in parts)}"


def declines(sentence: str) -> bool:
    """Whether a sentence of an answer says that the documents do not hold what was asked, and so claims nothing.

    Told by our own sentences in every language; and in some by a word for documents, a negation and a verb of saying,
    or by a first person who cannot answer. A text may itself say "the contract does not mention it": that is
    a claim, for its subject is none of those words.
    """
    folded = " ".join(sentence.split()).lower().replace("’", "'")
    if any(each in folded for each in _NOT_SAID):
        return True
    if len(folded.split()) > MAX_WORDS:
        return False
    return any(
        (way.subject.search(folded) and way.negation.search(folded) and way.saying.search(folded))
        or way.unable.search(folded)
        for way in _WAYS.values()
    )


MAX_WORDS = 40
"""A longer sentence says more than that."""


@dataclass(frozen=True)
class _Way:
    """How a model says in one language that it found nothing. Lower case."""

    subject: re.Pattern[str]
    negation: re.Pattern[str]
    saying: re.Pattern[str]
    unable: re.Pattern[str]


def _way(subject: str, negation: str, saying: str, unable: str) -> _Way:
    return _Way(*(re.compile(rf"(?<!\w)(?:{each})") for each in (subject, negation, saying, unable)))


_WAYS: Mapping[str, _Way] = {
    DEFAULT_LANGUAGE: _way(
        r"(?:the |these |this |those |any |your |given |provided |available |no )+(?:\w+ )?"
        r"(?:documents?|passages?|sources?|texts?|context|excerpts?|information)\b",
        r"(?:not|no|nothing|none|neither|nor|never|cannot|\w+n't)\b",
        r"(?:say|state|mention|contain|hold|provide|specif|include|answer|tell|give|indicate|discuss|address|describe"
        r"|explain|find|found|reveal|disclose|cover|bear|available|enough|sufficient)",
        r"(?:i|we) (?:do not|don't|cannot|can't|could not|couldn't|am unable|are unable|am not able|was unable)(?: to)?"
        r" (?:know|find|answer|determine|tell|say|provide|see)\b|there is (?:no|not enough|insufficient) information",
    ),
    "de": _way(
        r"(?:die|den|der|diese[nr]?|das|dem) (?:\w+ )?(?:dokument\w*|passagen?|quellen?|texte?n?|unterlagen"
        r"|abschnitte?n?|kontext)\b",
        r"(?:nicht|nichts|keine?\w*)\b",
        r"(?:sag|steht|stehen|erwähn|enth|nenn|geb|gibt|geht|angab|beantwort|information|hervor)",
        r"ich (?:weiß|kann|konnte|finde|habe)\b.*\b(?:nicht|nichts|keine)\b",
    ),
    "fr": _way(
        r"(?:les|ces|des|le|ce) (?:documents?|passages?|sources?|textes?|extraits?|contexte)\b",
        r"(?:ne|n'|aucune?|rien|pas)",
        r"(?:di[ts]|mentionn|contien|indiqu|précis|fourni|répond|donn|information|parl)",
        r"je ne (?:sais|peux|trouve|dispose)",
    ),
    "es": _way(
        r"(?:los|estos|el|este|las) (?:documentos?|pasajes?|fuentes?|textos?|fragmentos?|contexto)\b",
        r"(?:no|nada|ningun[oa]?|ningún)\b",
        r"(?:dice|menciona|contien|indica|especific|proporciona|respond|inform|habla)",
        r"no (?:sé|puedo|encuentro|dispongo)\b",
    ),
    "it": _way(
        r"(?:i|questi|il|nei|nel|le) (?:documenti?o?|passaggi?o?|fonti|testi?o?|brani?o?|contesto)\b",
        r"(?:non|nulla|niente|nessun[oa]?)\b",
        r"(?:dic|menzion|conteng|contien|indic|specific|forni|rispond|inform|parla)",
        r"non (?:so|posso|trovo|dispongo)\b",
    ),
    "pt": _way(
        r"(?:os|estes|esses|nos|o|no|as) (?:documentos?|passagens?|trechos?|fontes?|textos?|contexto)\b",
        r"(?:não|nada|nenhuma?)\b",
        r"(?:diz|menciona|cont[êé]m|indica|especific|fornec|respond|inform|fala)",
        r"(?:eu )?não (?:sei|posso|encontro|encontrei|disponho)\b",
    ),
    "nl": _way(
        r"(?:de|deze|het|dit) (?:documenten|document|passages?|bronnen|teksten|tekst|fragmenten|context)\b",
        r"(?:niet|niets|geen)\b",
        r"(?:zeg|vermeld|bevat|noem|geef|geven|staat|informatie|beantwoord)",
        r"ik (?:weet|kan|vind|heb)\b.*\b(?:niet|niets|geen)\b",
    ),
}
