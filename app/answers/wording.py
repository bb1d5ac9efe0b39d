"""Words that decide what a sentence claims, by language: negations, number words, months, units and the like.

For support.py. A language of which little is here is compared word by word all the same, only more strictly.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from retrieval.languages import DEFAULT_LANGUAGE, FUNCTION_WORDS, question_language


@dataclass(frozen=True)
class Wording:
    """One language. Words are lower case, as they stand in a text."""

    function_words: frozenset[str] = frozenset()
    """They carry nothing that a quote would have to hold."""
    light_words: frozenset[str] = frozenset()
    """Content words whose exchange hardly changes a claim: "is located in" for "is in"."""
    negations: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()
    """After a negation they take it back: "not only"."""
    contrasts: frozenset[str] = frozenset()
    """A negation before one does not reach beyond it."""
    pronouns: frozenset[str] = frozenset()
    """A sentence that begins with one is about what the sentence before it named."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    one: frozenset[str] = frozenset()
    """Words for 1 that are articles too: they count where another number stands in their place."""
    before_numbers: Mapping[str, str] = field(default_factory=dict)
    """What turns the sense of the number that follows: "more than 40", "before 1932"."""
    dates: frozenset[str] = frozenset()
    """Months and days of the week: exact, as numbers are."""
    endings: tuple[str, ...] = ()
    """What may be cut from a word's end, the longest first."""


def wording_of(text: str) -> Wording | None:
    """That of the language in which a text begins; None when nothing tells, as in a table of numbers."""
    sample = text[:READ_CHARS]
    language = question_language(sample)
    wording = WORDINGS.get(language, PLAIN)
    if language == DEFAULT_LANGUAGE and wording.function_words.isdisjoint(_WORD.findall(sample.lower())):
        return None
    return wording


READ_CHARS = 3_000
_WORD = re.compile(r"[^\W\d_]+")


def _words(told: str) -> frozenset[str]:
    return frozenset(told.split())


def _function_words(language: str, more: str = "") -> frozenset[str]:
    """With words that answers use of their documents."""
    return FUNCTION_WORDS[language] | _words(more)


def _numbers(from_two: str, more: str) -> dict[str, str]:
    """Words for 2, 3, 4 and so on, other spellings after a slash; and others as word=number."""
    counted = {
        spelling: str(number)
        for number, spellings in enumerate(from_two.split(), 2)
        for spelling in spellings.split("/")
    }
    return counted | dict(each.split("=") for each in more.split())


def _senses(**words_of: str) -> dict[str, str]:
    return {word: sense for sense, words in words_of.items() for word in words.split()}


WORDINGS: Mapping[str, Wording] = {
    "en": Wording(
        function_words=_function_words(
            "en",
            """according passage passages text texts document documents context answer answers question questions based
            provided given following yes s t ll re ve d m st nd rd th""",
        ),
        light_words=_words(
            """states stated located situated found called named known refer refers referred mention mentions
            mentioned say says said state describe describes described explain explains explained include
            includes including included contain contains contained consist consists involve involves involved
            use used uses using make makes made keep keeps kept give gives get gets take takes become became
            remain remains well specifically particular particularly especially mainly primarily primary main
            additionally furthermore moreover also various several many much certain specific general overall
            due result results way information hope let know sure okay ok please thank thanks hello help
            currently now today indicates indicate suggests suggest shows show considered example examples etc
            time"""
        ),
        negations=_words(
            """not no never none neither nor nobody nothing nowhere cannot without hardly barely scarcely unable fail
            fails failed failing refuse refuses refused deny denies denied lack lacks lacked lacking unlike except
            excluding prevent prevents prevented instead"""
        ),
        only=_words("only just merely simply"),
        contrasts=_words("but however although though whereas while yet because rather"),
        pronouns=_words(
            "it its he his she her they their this these that those such both there here him them who which"
        ),
        numbers=_numbers(
            """two three four five six seven eight nine ten eleven twelve/dozen thirteen fourteen fifteen sixteen
            seventeen eighteen nineteen twenty""",
            """thirty=30 forty=40 fifty=50 sixty=60 seventy=70 eighty=80 ninety=90 hundred=100 thousand=1000
            million=1000000 billion=1000000000 trillion=1000000000000""",
        ),
        one=_words("one single"),
        before_numbers=_senses(
            more="more over above exceeding exceeds exceed exceeded least minimum beyond",
            less="less fewer under below most maximum",
            before="before until till",
            after="after since",
        ),
        dates=_words(
            """january february march april may june july august september october november december monday tuesday
            wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays
            sundays"""
        ),
        endings=("ies", "ied", "ing", "ed", "es", "s", "ly", "e", "y"),
    ),
    "de": Wording(
        function_words=_function_words(
            "de", "laut dokument dokumente dokumenten passage passagen text abschnitt antwort frage"
        ),
        light_words=_words(
            "befindet befinden liegt genannt heißt bezeichnet verwendet enthält umfasst derzeit"
        ),
        negations=_words(
            """nicht kein keine keinem keinen keiner keines nie niemals niemand nirgends nichts ohne weder noch kaum
            unmöglich außer statt verhindert verhinderte"""
        ),
        only=_words("nur bloß"),
        contrasts=_words("aber jedoch sondern obwohl während weil doch"),
        pronouns=_words("er sie es sein seine seiner ihr ihre ihrer dies diese dieser dieses das dort dabei"),
        numbers=_numbers(
            "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf/dutzend",
            """hundert=100 tausend=1000 million=1000000 millionen=1000000 milliarde=1000000000
            milliarden=1000000000""",
        ),
        one=_words("ein eine einen einem einer eines eins"),
        before_numbers=_senses(
            more="mehr über mindestens",
            less="weniger unter höchstens",
            before="vor bis",
            after="nach seit ab",
        ),
        dates=_words(
            """januar februar märz april mai juni juli august september oktober november dezember montag dienstag
            mittwoch donnerstag freitag samstag sonntag montags dienstags mittwochs donnerstags freitags samstags
            sonntags"""
        ),
        endings=("ern", "en", "er", "es", "em", "et", "te", "n", "e", "s", "t"),
    ),
    "fr": Wording(
        function_words=_function_words(
            "fr", "document documents passage passages texte réponse question m t"
        ),
        light_words=_words(
            "trouve situé située appelé appelée nommé connu utilisé contient comprend actuellement"
        ),
        negations=_words(
            """ne n pas jamais aucun aucune rien personne sans ni nulle guère sauf impossible incapable empêche refuse
            refusé"""
        ),
        only=_words("seulement uniquement"),
        contrasts=_words("mais cependant toutefois quoique tandis car"),
        pronouns=_words("il elle ils elles ce cela cet cette ces son sa ses leur leurs celui celle ceux y"),
        numbers=_numbers(
            "deux trois quatre cinq six sept huit neuf dix onze douze/douzaine",
            """vingt=20 trente=30 cent=100 cents=100 mille=1000 million=1000000 millions=1000000
            milliard=1000000000 milliards=1000000000""",
        ),
        one=_words("un une"),
        before_numbers=_senses(more="plus", less="moins", before="avant jusqu jusque", after="après depuis"),
        dates=_words(
            """janvier février mars avril mai juin juillet août septembre octobre novembre décembre lundi mardi
            mercredi jeudi vendredi samedi dimanche lundis mardis mercredis jeudis vendredis samedis dimanches"""
        ),
        endings=("ements", "ement", "aient", "ées", "ée", "és", "ent", "ait", "er", "es", "é", "e", "s", "x"),
    ),
    "es": Wording(
        function_words=_function_words(
            "es", "documento documentos pasaje pasajes texto respuesta pregunta según"
        ),
        light_words=_words(
            "encuentra ubicado ubicada llamado llamada conocido conocida usa utiliza contiene incluye"
        ),
        negations=_words(
            "no nunca jamás ningún ninguno ninguna nada nadie sin ni tampoco apenas excepto salvo imposible incapaz"
        ),
        only=_words("solo sólo solamente únicamente"),
        contrasts=_words("pero sino aunque mientras porque embargo"),
        pronouns=_words("él ella ellos ellas esto este esta estos estas ese esa eso su sus lo"),
        numbers=_numbers(
            "dos tres cuatro cinco seis siete ocho nueve diez once doce/docena",
            "veinte=20 treinta=30 cien=100 ciento=100 mil=1000 millón=1000000 millones=1000000",
        ),
        one=_words("un una uno"),
        before_numbers=_senses(more="más", less="menos", before="antes hasta", after="después desde"),
        dates=_words(
            """enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre lunes martes
            miércoles jueves viernes sábado domingo sábados domingos"""
        ),
        endings=("amente", "ciones", "ción", "aron", "aban", "os", "as", "es", "ó", "a", "o", "e", "s"),
    ),
    "it": Wording(
        function_words=_function_words(
            "it",
            "documento documenti passaggio passaggi brano brani testo risposta domanda secondo d dell nell",
        ),
        light_words=_words(
            "trova situato situata chiamato chiamata noto nota usato contiene comprende include"
        ),
        negations=_words(
            "non mai nessun nessuno nessuna niente nulla senza né neppure nemmeno tranne impossibile"
        ),
        only=_words("solo soltanto solamente"),
        contrasts=_words("ma però bensì mentre sebbene perché"),
        pronouns=_words("esso essa essi egli lei lui loro questo questa questi queste ciò suo sua suoi sue"),
        numbers=_numbers(
            "due tre quattro cinque sei sette otto nove dieci undici dodici/dozzina",
            "venti=20 trenta=30 cento=100 mille=1000 mila=1000 milione=1000000 milioni=1000000",
        ),
        one=_words("un una uno"),
        before_numbers=_senses(
            more="più oltre", less="meno", before="prima fino entro", after="dopo dal dall"
        ),
        dates=_words(
            """gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre lunedì
            martedì mercoledì giovedì venerdì sabato domenica"""
        ),
        endings=("amente", "zioni", "zione", "arono", "i", "e", "o", "a"),
    ),
    "pt": Wording(
        function_words=_function_words(
            "pt", "documento documentos passagem passagens texto resposta pergunta segundo"
        ),
        light_words=_words(
            "encontra fica localizado localizada chamado chamada conhecido usado contém inclui"
        ),
        negations=_words(
            "não nunca jamais nenhum nenhuma nada ninguém sem nem tampouco exceto salvo impossível"
        ),
        only=_words("só somente apenas"),
        contrasts=_words("mas porém embora enquanto porque contudo"),
        pronouns=_words("ele ela eles elas isto isso este esta estes estas esse essa seu sua seus suas"),
        numbers=_numbers(
            "dois/duas três quatro cinco seis sete oito nove dez onze doze/dúzia",
            "vinte=20 trinta=30 cem=100 cento=100 mil=1000 milhão=1000000 milhões=1000000",
        ),
        one=_words("um uma"),
        before_numbers=_senses(more="mais", less="menos", before="antes até", after="depois após desde"),
        dates=_words(
            """janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro segunda terça
            quarta quinta sexta sábado domingo"""
        ),
        endings=("amente", "ções", "ção", "aram", "avam", "os", "as", "es", "ou", "a", "o", "e", "s"),
    ),
    "nl": Wording(
        function_words=_function_words(
            "nl", "document documenten passage passages tekst antwoord vraag volgens"
        ),
        light_words=_words("bevindt ligt gelegen genoemd heet bekend gebruikt bevat omvat momenteel"),
        negations=_words("niet geen nooit niemand niets nergens zonder noch nauwelijks behalve onmogelijk"),
        only=_words("alleen enkel slechts"),
        contrasts=_words("maar echter hoewel terwijl want omdat"),
        pronouns=_words("hij zij ze het dit deze dat die hun haar zijn"),
        numbers=_numbers(
            "twee drie vier vijf zes zeven acht negen tien elf twaalf/dozijn",
            "honderd=100 duizend=1000 miljoen=1000000 miljard=1000000000",
        ),
        one=_words("één een"),
        before_numbers=_senses(
            more="meer minstens", less="minder hoogstens", before="vóór tot", after="na sinds vanaf"
        ),
        dates=_words(
            """januari februari maart april mei juni juli augustus september oktober november december maandag dinsdag
            woensdag donderdag vrijdag zaterdag zondag"""
        ),
        endings=("en", "te", "de", "e", "s", "t", "n"),
    ),
    "pl": Wording(
        function_words=_function_words("pl"), negations=_words("nie bez nigdy nikt nic ani żaden żadna")
    ),
    "ru": Wording(
        function_words=_function_words("ru"), negations=_words("не нет ни без никогда никто ничего нельзя")
    ),
    "uk": Wording(
        function_words=_function_words("uk"), negations=_words("не ні без ніколи ніхто нічого немає")
    ),
    "tr": Wording(function_words=_function_words("tr"), negations=_words("değil yok hiç hiçbir")),
    "ar": Wording(function_words=_function_words("ar"), negations=_words("لا لم لن ليس ليست غير بدون")),
    "he": Wording(function_words=_function_words("he"), negations=_words("לא אין בלי אינו אינה אינם")),
    "hi": Wording(function_words=_function_words("hi"), negations=_words("नहीं न बिना मत")),
}

ENGLISH = WORDINGS["en"]
PLAIN = Wording()
"""Of a language that is not here: Chinese, Japanese and Korean are read by their characters."""

_UNIT_SPELLINGS = (
    "metre metres meter meters m",
    "kilometre kilometres kilometer kilometers km",
    "centimetre centimetres centimeter centimeters cm",
    "millimetre millimetres millimeter millimeters mm",
    "foot feet ft",
    "inch inches",
    "yard yards yd",
    "mile miles mi",
    "kilogram kilograms kilogramm kilogrammes kg",
    "gram grams gramm grammes g",
    "tonne tonnes ton tons tonnen",
    "pound pounds lb lbs £ gbp",
    "litre litres liter liters l",
    "second seconds sec secs s sekunde sekunden seconde secondes",
    "minute minutes min mins minuten",
    "hour hours hr hrs h stunde stunden heure heures hora horas",
    "day days tag tage tagen jour jours día días",
    "week weeks woche wochen semaine semaines semana semanas",
    "month months monat monate monaten mois mes meses",
    "year years yr yrs jahr jahre jahren ans année années año años",
    "percent % prozent pourcent procent",
    "dollar dollars $ usd",
    "euro euros € eur",
    "°c celsius",
    "°f fahrenheit",
    "kilowatt kilowatts kw",
    "megawatt megawatts mw",
    "kilobyte kilobytes kb",
    "megabyte megabytes mb",
    "gigabyte gigabytes gb",
    "terabyte terabytes tb",
)
UNITS: Mapping[str, str] = {
    spelling: spellings.split()[0] for spellings in _UNIT_SPELLINGS for spelling in spellings.split()
}
"""What may stand after a number, and a currency's sign also before it: each unit in one spelling."""

NEGATES_CLAUSE = re.compile(r"な[いかくけ]|ません|ずに|ざる|않|없|못|아니")
"""Japanese and Korean negate a clause at its end."""
NEGATES_WHAT_FOLLOWS = re.compile(r"[不没沒無无未勿](?![过過仅僅但只同断斷来來论論])|非(?!常)")
"""Chinese negates what comes after; the words that are left out only look alike."""
BEGINS_CLAUSE = re.compile(r"但是|可是|然而|不过|不過|而是|但")
