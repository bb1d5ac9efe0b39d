"""What a text is to the keyword index: its language, its words, and what in it stands whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysers import Language, language_of, read

SENTENCES = {
    Language.ARABIC: "يفتح القبو في الساعة التاسعة صباحا ويبقى مفتوحا حتى المساء",
    Language.DANISH: "Hvælvingen åbner klokken ni om morgenen, og nøglen er hos den mand, der ikke har travlt.",
    Language.DUTCH: "De kluis gaat om negen uur open en de sleutel hangt in de hal van het kantoor.",
    Language.ENGLISH: "The vault opens at nine in the morning and the key hangs in the hall of the office.",
    Language.FINNISH: "Holvi avataan aamulla yhdeksältä ja avain on aulassa, mutta se ei ole enää auki illalla.",
    Language.FRENCH: "Le coffre ouvre à neuf heures et la clé est dans le couloir, mais elle ne sert pas le soir.",
    Language.GERMAN: "Der Tresor öffnet um neun Uhr und der Schlüssel hängt im Flur, nicht bei der Verwaltung.",
    Language.GREEK: "Το θησαυροφυλάκιο ανοίγει στις εννέα και το κλειδί είναι στον διάδρομο.",
    Language.HUNGARIAN: "A páncélterem reggel kilenckor nyit, és a kulcs az előszobában van, de nem mindig.",
    Language.ITALIAN: "La cassaforte apre alle nove e la chiave è nel corridoio della casa, non in ufficio.",
    Language.NORWEGIAN: "Hvelvet åpner klokken ni, og nøkkelen henger i gangen, men ikke etter stengetid.",
    Language.PORTUGUESE: "O cofre abre às nove horas e a chave não está com o guarda, mas no corredor da casa.",
    Language.ROMANIAN: "Seiful se deschide la ora nouă și cheia este în hol, dar nu după ora închiderii.",
    Language.RUSSIAN: "Хранилище открывается в девять утра, и ключ висит в коридоре.",
    Language.SPANISH: "La caja fuerte abre a las nueve y la llave está en el pasillo, pero no por la tarde.",
    Language.SWEDISH: "Valvet öppnar klockan nio och nyckeln hänger i hallen, men inte efter stängning.",
    Language.TAMIL: "பெட்டகம் ஒன்பது மணிக்கு திறக்கப்படும், சாவி கூடத்தில் தொங்குகிறது.",
    Language.TURKISH: "Kasa saat dokuzda açılır ve anahtar bir çivide asılı, ama bu akşam için değil.",
}


@pytest.mark.parametrize("language", Language)
def test_a_sentence_tells_its_language(language: Language) -> None:
    assert language_of(SENTENCES[language]) is language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E-4031",
        "Total 1990 2,450 17 %",
        "war crimes",
        "The man will die in an instant; he was so sad that he had hat and gift on his son.",
        "The α-helix, β-sheet and γ-turn of the protein are shown below.",
        "東京の金庫は九時に開きます。",
        "این گاوصندوق ساعت نه باز می‌شود و کلید در راهرو است",
    ],
)
def test_what_gives_no_sign_of_another_language_is_read_as_english(text: str) -> None:
    assert language_of(text) is Language.ENGLISH


def test_identifiers_and_names_stand_whole() -> None:
    text = (
        "Error E-4031 (part AX-12/7b, firmware v2.3.1) at 192.168.0.1/24: Jean-Luc O'Brien paid $1,234,567.00 "
        "for std::vector and os.path.join, in C++ and C#; mail a.b@example.org."
    )
    assert read(text).wholes == (
        "E-4031",
        "AX-12/7b",
        "AX-12",
        "2.3.1",
        "192.168.0.1/24",
        "Jean-Luc",
        "O'Brien",
        "1,234,567.00",
        "std::vector",
        "os.path.join",
        "C++",
        "C#",
        "a.b@example.org",
    )


@pytest.mark.parametrize(
    "text",
    [
        "It's what we'd call a day. Don't!",
        "yes, no; perhaps: 1, 2, 3.",
        "l'école d'abord",
        "well-known",
        "a (b) [c]",
    ],
)
def test_what_is_no_name_does_not(text: str) -> None:
    assert read(text).wholes == ()


def test_a_name_may_be_asked_for_in_small_letters() -> None:
    assert read("who is o'brien", is_query=True).wholes == ("o'brien",)


def test_a_hyphen_is_a_hyphen_however_it_is_typed() -> None:
    assert read("E\u20114031 and E\u20134031 and O\u2019Brien").wholes == ("E-4031", "E-4031", "O'Brien")
    assert read("con\u00adtract").words == "contract"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("parseHttpResponse", "parse Http Response"),
        ("parseHTTPResponse", "parse HTTP Response"),
        ("XMLParser", "XML Parser"),
        ("getURLs", "get URLs"),
        ("vault", ""),
        ("Vault", ""),
        ("VAULT", ""),
        ("DNAs", ""),
        ("mRNA", ""),
        ("siRNAs", ""),
    ],
)
def test_camel_case_is_read_whole_and_in_parts(text: str, parts: str) -> None:
    assert read(text).words == " ".join([text, *parts.split()])


def test_snake_case_and_dotted_paths_are_read_whole_and_in_parts() -> None:
    reading = read("self.base_dir and max_retry_count")
    assert reading.wholes == ("self.base_dir", "base_dir", "max_retry_count")


def test_a_script_without_spaces_is_read_by_neighbours() -> None:
    assert read("東京都の水").words.split() == ["東京", "京都", "都の", "の水"]
    assert read("東京都").wholes == ("東", "京", "都")
    assert read("東京都", is_query=True).wholes == ()
    assert read("水", is_query=True).wholes == ("水",)
    assert read("한국어").words.split() == ["한국", "국어"]
    # A vowel above its consonant is not a letter of its own.
    assert read("ที่นี่").words.split() == ["ที่นี่"]


def test_full_width_letters_are_letters() -> None:
    assert read("ＡＢＣ１２３").words == "ABC123"


@given(st.text())
def test_every_text_can_be_read(text: str) -> None:
    for is_query in (False, True):
        read(text, is_query=is_query).words.encode()


def test_half_a_surrogate_pair_can_be_read_too() -> None:
    assert read("vault \ud800 door").words == "vault ? door"
