"""Questions in seventeen languages, short as people ask them: which language it is, and what they are about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evidence import content_words
from retrieval.languages import DEFAULT_LANGUAGE, LANGUAGES, question_language

QUESTIONS = {
    "ar": ["كم درجة في برج المصباح؟", "من هو مدير الميناء؟"],
    "de": ["Wie viele Stufen hat der Lampenturm?", "Wer leitet den Hafen?", "Was bedeutet E-4031?"],
    "en": ["How many steps has the Lamp Tower?", "Who is Ondine Marsh?", "E-4031?"],
    "es": ["¿Cuántos escalones tiene la torre?", "¿Quién dirige el puerto?", "Dónde está la llave"],
    "fr": ["Combien de marches compte la tour ?", "Qui dirige le port ?", "Où est la clé de la cave ?"],
    "he": ["כמה מדרגות יש במגדל?", "מי מנהל את הנמל?"],
    "hi": ["मीनार में कितनी सीढ़ियाँ हैं?", "बंदरगाह का प्रमुख कौन है?"],
    "it": ["Quanti gradini ha la torre?", "Chi dirige il porto?", "Dove si trova la chiave?"],
    "ja": ["灯台には何段の階段がありますか？", "港長は誰ですか？"],
    "ko": ["등대에는 계단이 몇 개 있습니까?", "항만 책임자는 누구입니까?"],
    "nl": ["Hoeveel treden heeft de toren?", "Wie is de havenmeester?", "Waar hangt de sleutel?"],
    "pl": ["Ile stopni ma wieża?", "Kto kieruje portem?", "Gdzie jest klucz?"],
    "pt": ["Quantos degraus tem a torre?", "Quem dirige o porto?", "Onde está a chave?"],
    "ru": ["Сколько ступеней в башне?", "Кто начальник порта?"],
    "tr": ["Kulede kaç basamak var?", "Liman müdürü kimdir ve nerede?"],
    "uk": ["Скільки сходинок у вежі?", "Хто керує портом?"],
    "zh": ["灯塔有多少级台阶？", "港务长是谁？"],
}


@pytest.mark.parametrize(
    ("language", "question"), [(key, each) for key, asked in QUESTIONS.items() for each in asked]
)
def test_the_language_of_a_short_question_is_told(language: str, question: str) -> None:
    assert question_language(question) == language


def test_every_language_is_asked_in() -> None:
    assert tuple(QUESTIONS) == LANGUAGES


def test_a_name_in_other_letters_does_not_change_a_questions_language() -> None:
    assert question_language("Что такое SmolLM2?") == "ru"
    assert question_language("什么是 Strongroom？") == "zh"
    assert question_language("Who wrote 羅生門?") == "en"


@pytest.mark.parametrize("text", ["", "   ", "4031", "?!", "\ud800", "𝔈𝔪𝔦𝔩"])
def test_what_tells_nothing_is_the_default(text: str) -> None:
    assert question_language(text) == DEFAULT_LANGUAGE


@given(st.text())
def test_any_text_has_one_of_the_languages(text: str) -> None:
    assert question_language(text) in LANGUAGES


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("How many steps has the Lamp Tower?", {"steps", "lamp", "tower"}),
        ("Wie viele Stufen hat der Lampenturm?", {"stufen", "lampenturm"}),
        ("Сколько ступеней в башне?", {"ступеней", "башне"}),
        ("What is it?", {"what", "is", "it"}),
        ("E-4031?", {"4031"}),
        ("灯塔有多少级台阶？", {"灯塔", "塔有", "级台", "台阶"}),
    ],
)
def test_content_words_are_those_that_say_what_is_asked_for(question: str, wanted: set[str]) -> None:
    assert set(content_words(question)) == wanted
