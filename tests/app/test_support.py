"""What words can tell of a claim: what holds all of it supports it, what contradicts it in one thing does not."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answers.support import PassageWords, content_words, read
from app.answers.wording import ENGLISH
from tests.app.citing import passage

MANUAL = passage(
    "The strongroom is fireproof but not waterproof. It was built in 1932 by Jonas Vey, and opened before 1940. "
    "Its door weighs 1,200 kilograms. The iron key of the vault hangs in the north hall. "
    "The vault has three iron doors with brass locks. Visits take more than 40 minutes. "
    "The alarm never rings on Sundays. The archive cost $3.5 million. On May 3 the tower opened. "
    "Ismene Calder did not write the letter that the court read. The lamp turns every 12 seconds and is 23 metres "
    "high. There are two spare keys in the drawer. Water freezes at -5 °C in the cellar.",
    headings=("Brennick lighthouse",),
)


def supported(claim: str, *passages_: str, question: str = "") -> bool:
    passages = [passage(text) for text in passages_] or [MANUAL]
    return bool(PassageWords(passages, question=question).judge(claim).sure)


@pytest.mark.parametrize(
    "claim",
    [
        "The strongroom is fireproof.",
        "The strongroom is not waterproof.",
        "The strongroom isn't waterproof.",
        "The strongroom was built in 1932.",
        "The strongroom was built in 1932 by Jonas Vey.",
        "The door weighs 1200 kg.",
        "Its door weighs 1,200 kilograms.",
        "The iron key hangs in the north hall.",
        "In the north hall hangs the iron key of the vault.",
        "The iron key of the vault is located in the north hall.",
        "The vault has 3 iron doors.",
        "A visit takes more than 40 minutes.",
        "A visit takes over forty minutes.",
        "The alarm never rings on Sundays.",
        "The archive cost 3.5 million dollars.",
        "The archive cost $3,500,000.",
        "The tower opened on May 3.",
        "Ismene Calder did not write the letter.",
        "The lamp turns every twelve seconds.",
        "The lamp is 23 m high.",
        "The Brennick lighthouse has a lamp that turns every 12 seconds.",
        "There are two spare keys in the drawer.",
        "Water freezes at -5 °C.",
        "According to passage 1, the strongroom is fireproof.",
    ],
)
def test_what_a_passage_says_is_supported_in_other_order_and_form(claim: str) -> None:
    assert supported(claim)


@pytest.mark.parametrize(
    "claim",
    [
        # negations
        "The strongroom is waterproof.",
        "The strongroom is fireproof and waterproof.",
        "The strongroom is not fireproof.",
        "The strongroom was never built in 1932.",
        "No iron key of the vault hangs in the north hall.",
        "The alarm rings on Sundays.",
        "Ismene Calder wrote the letter that the court read.",
        "Ismene Calder did write the letter.",
        "The iron key doesn't hang in the north hall.",
        "The vault lacks three iron doors with brass locks.",
        # numbers, dates, units
        "The strongroom was built in 1933.",
        "Its door weighs 1,300 kilograms.",
        "Its door weighs 1.2 kilograms.",
        "Its door weighs 1,200 pounds.",
        "The vault has four iron doors with brass locks.",
        "Visits take less than 40 minutes.",
        "Visits take 40 minutes.",
        "The strongroom was built after 1932.",
        "The archive cost $3.5 billion.",
        "The archive cost 3.5 million euros.",
        "On June 3 the tower opened.",
        "On May 4 the tower opened.",
        "The lamp turns every 12 minutes.",
        "The lamp turns every 23 seconds.",
        "The lamp is 12 metres high.",
        "There is one spare key in the drawer.",
        "Water freezes at 5 °C in the cellar.",
        # names
        "The strongroom was built in 1932 by Anna Vey.",
        "Anna Calder did not write the letter that the court read.",
        "Dagmar built the strongroom in 1932.",
        # other words
        "The iron key of the vault hangs in the south hall.",
        "The iron key of the vault hangs in the north cellar.",
        "The wooden key of the vault hangs in the north hall.",
        "The strongroom was sold in 1932 by Jonas Vey.",
        "The vault has three iron doors with brass locks and a window.",
    ],
)
def test_a_claim_that_differs_in_one_thing_is_not(claim: str) -> None:
    assert not supported(claim)


def test_a_contradiction_is_not_even_left_open_and_a_paraphrase_is() -> None:
    words = PassageWords([MANUAL])
    for contradiction in (
        "The strongroom is not fireproof.",
        "The vault has four iron doors with brass locks.",
        "The strongroom was built in 1932 by Anna Vey.",
    ):
        assert words.judge(contradiction).open == ()
    paraphrase = words.judge("The strongroom was constructed in 1932 by Jonas Vey.")
    assert paraphrase.sure == ()
    assert MANUAL.text[paraphrase.open[0].start : paraphrase.open[0].end].endswith("opened before 1940.")


@pytest.mark.parametrize(
    ("quote", "claim", "lie"),
    [
        (
            "Der Tresor hat zwei Schlüssel im Flur.",
            "Im Flur hat der Tresor 2 Schlüssel.",
            "Der Tresor hat drei Schlüssel im Flur.",
        ),
        (
            "Der Schlüssel hängt nicht im Keller.",
            "Der Schlüssel hängt nicht im Keller.",
            "Der Schlüssel hängt im Keller.",
        ),
        ("Das Archiv öffnet am 3. Mai.", "Am 3. Mai öffnet das Archiv.", "Am 3. Juni öffnet das Archiv."),
        (
            "La clé est dans le hall nord.",
            "Dans le hall nord est la clé.",
            "La clé n'est pas dans le hall nord.",
        ),
        ("La réserve ouvre en juin.", "La réserve ouvre en juin.", "La réserve ouvre en mai."),
        (
            "La llave no está en el sótano viejo.",
            "La llave no está en el sótano viejo.",
            "La llave está en el sótano viejo.",
        ),
        ("La chiave è nella sala nord.", "La chiave è nella sala nord.", "La chiave non è nella sala nord."),
        (
            "A chave não fica no porão velho.",
            "A chave não fica no porão velho.",
            "A chave fica no porão velho.",
        ),
        (
            "De sleutel hangt in de grote hal.",
            "De sleutel hangt in de grote hal.",
            "De sleutel hangt niet in de grote hal.",
        ),
        ("Ключ висит в большом зале.", "Ключ висит в большом зале.", "Ключ не висит в большом зале."),
        ("保险库的钥匙挂在大厅里。", "钥匙挂在大厅里。", "钥匙不挂在大厅里。"),
        ("保险库有三把钥匙。", "保险库有三把钥匙。", "保险库有四把钥匙。"),
        ("钥匙没有丢失。", "钥匙没有丢失。", "钥匙丢失。"),
        ("金庫の鍵はホールにあります。", "金庫の鍵はホールにあります。", "金庫の鍵はホールにありません。"),
        ("金庫の鍵はホールにあります。", "鍵はホールです。", "金庫の鍵はキッチンにあります。"),
        ("열쇠는 복도에 걸려 있습니다.", "열쇠는 복도에 걸려 있습니다.", "열쇠는 복도에 걸려 있지 않습니다."),
        ("กุญแจแขวนอยู่ในห้องโถง", "กุญแจแขวนอยู่ในห้องโถง", "กุญแจแขวนอยู่ในห้องครัว"),
        ("तिजोरी की चाबी बड़े कमरे में है।", "तिजोरी की चाबी बड़े कमरे में है।", "तिजोरी की चाबी बड़े कमरे में नहीं है।"),
    ],
)
def test_other_languages_are_held_to_the_same(quote: str, claim: str, lie: str) -> None:
    assert supported(claim, quote)
    assert not supported(lie, quote)


def test_a_claim_mixed_from_two_sentences_is_not_supported() -> None:
    text = "Anna Vey painted the strongroom. It was built by Jonas Brandt."
    assert supported("The strongroom was built by Jonas Brandt.", text)
    assert not supported("Anna Vey built the strongroom.", text)
    assert not supported("The tower is red.", "The tower is high. The lamp is red.")


def test_an_answer_of_one_word_is_supported_where_the_question_is_answered() -> None:
    text = "The boat sails on Thursdays. The strongroom was built in 1932. The lamp is red."
    assert supported("Thursdays.", text, question="On which days does the boat sail?")
    assert supported("1932", text, question="When was the strongroom built?")
    assert not supported("1932", text, question="When was the red lamp broken?")
    assert not supported("1932", text)
    assert not supported("1933", text, question="When was the strongroom built?")


def test_a_name_alone_is_no_answer_unless_it_stands_beside_what_was_asked() -> None:
    text = "Harbour handbook\n\nThe harbour master is Ondine Marsh. Joss Amory likes tea."
    assert supported("Ondine Marsh.", text, question="Who is the harbour master?")
    assert not supported("Joss Amory.", text, question="Who is the harbour master?")
    assert not supported("> Harbour handbook", text, question="Who is the master?")
    assert not supported("The harbour master", text, question="Who is the harbour master?")


def test_a_wrapped_line_is_no_quote_for_the_rest_of_its_sentence_may_turn_it() -> None:
    assert not supported("The key hangs in the hall.", "It is not true that\nthe key hangs in the hall.")
    assert supported(
        "The key hangs in the hall.", "Where things are\nThe key hangs in the hall\nThe lamp burns"
    )


def test_a_long_table_is_quoted_by_its_row() -> None:
    rows = [f"Part number: P-{number}; Name: Pump {number}; Shelf: {number * 7}" for number in range(60)]
    table = "\n".join(rows)
    found = PassageWords([passage(table)]).judge("Pump 33 has the part number P-33 on shelf 231.").sure[0]
    assert table[found.start : found.end] == rows[33]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "Is the key in the hall?",
        "The keys are:",
        "The documents do not say.",
        "Sure, I hope this helps!",
    ],
)
def test_some_sentences_claim_nothing(text: str) -> None:
    assert not PassageWords([MANUAL]).judge(text).is_claim


@pytest.mark.parametrize(
    "text",
    [
        "The documents do not say who built the strongroom in 1932.",
        "The passages do not mention when the strongroom was built.",
        "I could not find who built the strongroom in the provided passages.",
        "There is no information about the iron key of the vault.",
        "The provided text doesn't specify that the strongroom is fireproof.",
        "Die Dokumente sagen nichts über den Tresor.",
        "Les documents ne disent pas où est la clé.",
        "Los documentos no dicen dónde está la llave.",
        "文档中没有说明钥匙在哪里。",
        "文書には書かれていません。",
    ],
)
def test_a_sentence_that_says_that_nothing_is_said_claims_nothing(text: str) -> None:
    assert not PassageWords([MANUAL]).judge(text).is_claim


def test_words_are_compared_by_stem_and_numbers_exactly() -> None:
    assert content_words("Keepers keeping 1,200 keys") == content_words("keeper keep key 1200")
    assert not content_words("12") & content_words("120")
    for one, other in (
        ("1,200.50", "1200.5"),
        ("007", "7"),
        ("3 million", "3,000,000"),
        ("twenty-five", "25"),
        ("１２", "12"),
    ):
        assert content_words(one) == content_words(other)
    assert content_words("3.5.2020") == {"3", "5", "2020"}


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_is_too_odd_to_be_read(text: str, claim: str) -> None:
    for finding in PassageWords([passage(text)], question=claim).judge(claim).sure:
        assert text[finding.start : finding.end].strip()
        assert 0 < finding.score <= 1


@pytest.mark.parametrize(
    "text",
    [
        *(letter * 200_000 for letter in "a[ .!。\n|1'字𝟙"),
        *(
            "a. " * 60_000,
            "1,1" * 60_000,
            "not " * 50_000,
            "A b, " * 40_000,
            "\nA" * 100_000,
            "x's" * 60_000,
        ),
        *(
            "Passage 1, " * 18_000,
            "३.५" * 60_000,
            "ー鍵は" * 60_000,
            "-1 " * 60_000,
            "the documents " * 14_000,
        ),
    ],
    ids=lambda text: repr(text[:9]),
)
@pytest.mark.slow
def test_a_passage_or_a_claim_of_200_000_characters_is_read_in_a_time_that_grows_with_it(text: str) -> None:
    """The bound is far above what any of these takes, and far below what a square of 200,000 would."""
    started = time.process_time()
    PassageWords([passage(text)]).judge("The iron key hangs in the north hall.")
    read(text, ENGLISH)
    PassageWords([MANUAL]).judge(text)
    PassageWords([MANUAL]).judge(text[:2_000])
    assert time.process_time() - started < 20
