"""The language that a question is asked in, and the words that every question in it has. Pure.

Questions are short: one function word may be all that tells, which the index's way of reading texts
(`analysers.language_of`) takes for too little, and they come in languages whose words it does not stem.
"""

import re
import unicodedata
from collections.abc import Mapping

DEFAULT_LANGUAGE = "en"
"""Of a text that has no sign of any, such as a part number alone."""

FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": """a about above after again all also am an and any are as at be because been before being below between
            both but by can could did do does doing done down during each either else ever every few for from further
            had has have having he her here hers him his how i if in into is it its itself just let like many may me
            might mine more most much must my name named no nor not of off often on once one only or other our ours
            out over own per please same shall she should since so some such tell than that the their theirs them
            then there these they this those through to too under until up upon us used very via was we were what
            when where whether which while who whom whose why will with within without would you your yours""",
        "de": """aber alle allem allen aller alles als also am an andere anderen auch auf aus bei beim bin bis bist da
            damit dann das dass dein dem den denn der des dessen die dies diese diesem diesen dieser dieses doch dort
            du durch ein eine einem einen einer eines er es euch für gab gibt hat hatte hatten haben ich ihm ihn ihnen
            ihr ihre ihrem ihren ihrer im in ins ist ja je jede jedem jeden jeder jedes kann kein keine können konnte
            man mein mit muss müssen nach nicht nichts noch nun nur ob oder ohne sehr sein seine seinem seinen seiner
            seit sich sie sind so soll sollen sollte sowie über um und uns unser unter vom von vor wann war waren warum
            was wegen welche welchem welchen welcher welches wem wen wenn wer werden wessen wie wieso wieviel viel
            viele vielen will wir wird wo wodurch wofür woher wohin womit worden wozu wurde wurden zu zum zur zwischen
            bitte bedeutet heißt lautet""",
        "fr": """à afin ai ainsi alors après au aucun aucune aussi autre autres aux avait avant avec avoir ce ceci cela
            celle celui ces cet cette ceux chaque chez ci combien comme comment dans de depuis des donc dont du elle
            elles en encore entre es est et étaient était été être eu faire fait fut il ils j je l la là laquelle le
            lequel les lesquels leur leurs lors lui ma mais me même mes moins mon n ne ni non nos notre nous on ont où
            ou par parce pas pendant peu peut peuvent plus pour pourquoi pouvez puis qu quand que quel quelle quelles
            quels qui quoi s sa sans se selon sera ses si son sont sous sur ta te tes toi ton tous tout toute toutes
            très tu un une vers vos votre vous y a d c""",
        "es": """a al algo algún alguna algunas algunos ante antes aquel aquella así aún aunque cada como cómo con
            contra cuál cuáles cual cuando cuándo cuánta cuántas cuánto cuántos cuanto de del desde después donde
            dónde dos durante e el él ella ellas ellos en entre era eran es esa esas ese eso esos esta está están
            estas este esto estos fue fueron ha había han hasta hay la las le les lo los más me mi mis muy nada ni no
            nos nosotros o otra otras otro otros para pero poco por porque puede pueden que qué quien quién quiénes se
            sea ser si sí sin sobre son su sus también tan tanto te tiene tienen toda todas todo todos tras tu tus un
            una uno unos usted y ya yo""",
        "it": """a ad agli ai al alla alle allo altra altre altri altro anche ancora avere aveva avevano c che chi ci
            ciò come con contro cosa cui da dagli dai dal dalla dalle dallo degli dei del della delle dello dentro di
            dopo dove dov due e è ed era erano essere fa fino fra fu furono gli ha hai hanno ho i il in io l la le lei
            li lo loro lui ma me mi mia mie mio molto ne né negli nei nel nella nelle nello no noi non nostra nostro o
            ogni oltre per perché più però poi prima può possono qual quale quali quando quanta quante quanti quanto
            quella quelle quelli quello questa queste questi questo qui se sei senza si sia siamo sono sopra sotto
            sta stata stato su sua sue sugli sui sul sulla sulle sullo suo suoi te ti tra tu tua tuo tutta tutte tutti
            tutto un una uno vi voi""",
        "pt": """a à ainda algum alguma alguns antes ao aos aquela aquele aqueles aquilo as às até cada com como contra
            cujo da das de dela dele deles depois do dos durante e é ela elas ele eles em entre era eram essa essas
            esse esses esta está estão estas este estes eu foi foram há isso isto já lhe lhes mais mas me mesmo meu
            minha muito muitos na não nas nem nenhum no nos nós nossa nosso num numa o onde os ou outra outras outro
            outros para pela pelas pelo pelos por porque porquê pode podem pouco qual quais quando quanta quantas
            quanto quantos que quê quem são se sem ser será seu seus sob sobre sua suas também tem têm tinha toda
            todas todo todos tu um uma umas uns você vocês""",
        "nl": """aan al alle als altijd andere bij daar dan dat de deze die dit doch doen door dus een eens en er ge
            geen had heb hebben heeft hem het hier hij hoe hoeveel hoelang hun iemand iets ik in is ja je kan kunnen
            kon maar me meer men met mij mijn moet moeten na naar niet niets nog nu of om omdat onder ons ook op over
            reeds sinds te tegen ten ter tijdens toch toen tot tussen u uit uw van vanaf veel voor waar waarom wat was
            waren wanneer we welk welke werd werden wie wiens wij wil worden wordt zal ze zelf zich zij zijn zo zonder
            zou""",
        "pl": """a aby ale albo bardzo bez być był była było były bądź by ci co czego czemu czy czyj czyli dla do gdy
            gdzie go i ich ile ilu im inne inny iż ja jak jaka jaką jaki jakie jakiego jakim jakich je jego jej jest
            jestem już kiedy kim kogo komu która które którego której który których którym którzy kto lub ma mają
            może można mnie mu my na nad nam nas nie nich nim niż o od on ona one oni oraz po pod podczas ponieważ
            przed przez przy są się skąd swój ta tak tam te tego tej ten to tu tych tym tylko w we więc wszystkie z za
            ze że został została zostały""",
        "tr": """acaba ama ancak aynı bana bazı belki ben beni benim bir biri birkaç biz bize bizim bu buna bunlar
            bunu bunun burada çok çünkü da daha de defa değil diğer diye dolayı en fakat gibi göre hangi hangisi hem
            hep her hiç için ile ise kaç kadar kendi ki kim kime kimi kimin mı mi mu mü nasıl ne neden nedir nerede
            nereden nereye niçin niye o olan olarak oldu olduğu olmak olur on ona onlar onu onun önce sana sen siz
            sonra şey şu tarafından tüm var ve veya ya yani yok zaman""",
        "ru": """а без более больше будет бы был была были было быть в вам вас ведь во вот все всего всех вы где да
            даже для до его ее её если есть еще ещё же за здесь и из или им имеет их к как какая какие каким каких
            какого какое какой какова каков какую когда кого кому который которая которые которого которой которых
            кто куда ли между меня мне может можно мой мы на над надо нас наш не него нее ней нет ни них но ну о об
            однако он она они оно от откуда очень по под после потому почему при про с со сколько такой там тем то
            того тоже той только том ты у уже хоть чего чей чем чему что чтобы эта эти это этого этой этом этот я""",
        "uk": """а або але без більше був була були було бути в вам вас ви від він вона вони воно все всі де для до
            дуже є ж за з зі із і й його йому її їй їх їхній коли кого кому котрий куди лише ми між мене мені може
            можна на над нам нас наш не нею ні ним них але о об однак от перед по під після при про саме свій скільки
            собі та так такий там те тим ти то тоді той тому тут у уже хто це цей ця ці цього цьому чи чий чим чого
            чому що щоб як яка яке який яким яких якого якої які якому яку звідки я""",
        "ar": """في من على إلى الى عن مع هذا هذه ذلك تلك التي الذي الذين ما ماذا متى أين اين كيف لماذا كم هل هو هي هم
            هناك كان كانت يكون تكون أن ان إن لا لم لن ليس قد كل بعض بعد قبل بين عند حتى إذا أو او ثم أي أية منذ حول
            خلال ومن وما وهو وهي كما لكن بها به له لها فيها فيه منها منه عليه عليها من""",
        "he": """של את על אל עם מן אם או גם כי לא מה מהו מהי מהם מי מתי איפה היכן איך כיצד למה מדוע כמה האם הוא היא
            הם הן זה זאת זו אלה אלו היה היתה הייתה היו יש אין כל אבל רק עוד כדי לפני אחרי בין תחת איזה איזו אילו אשר
            אני אתה אנחנו לי לו לה להם בו בה אותו אותה מאין לאן""",
        "hi": """का के की को में से है हैं था थी थे हो होता होती होते और या पर ने यह वह ये वे इस उस इन उन कि जो क्या कौन कब
            कहाँ कहां कैसे क्यों कितना कितनी कितने किस किसने किसका किसकी किसके किसे कौनसा कौनसी एक भी ही तो तक लिए
            लिये साथ बाद पहले द्वारा नहीं न कर करता करते करना किया गया गई गए जा जाता सकता सकते अपने अपना""",
    }.items()
}
"""By ISO 639-1, for languages that put spaces between words. Words of questions are among them."""

_BOUND = re.compile(
    # Chinese, Japanese, Korean: what asks and what binds, within runs that no space divides.
    "什么|甚么|怎么样|怎么|为什么|为何|如何|哪里|哪儿|哪些|哪个|哪一|谁的|多少|多久|多大|是否|请问|有没有|有哪些|的是|吗|呢|的"
    "|ですか|ますか|でしょうか|でした|ました|です|ます|とは何|とは|どこ|どの|どれ|どう|どんな|いつ|誰が|だれ|なぜ|何時|何人|何個"
    "|いくつ|いくら|という|ください|について|における|무엇입니까|무엇인가요|무엇|어디에|어디|언제|누가|누구|얼마나|얼마"
    "|어떻게|어떤|왜|입니까|인가요|습니까|나요|니까|까요"
)

LANGUAGES = (
    "ar",
    "de",
    "en",
    "es",
    "fr",
    "he",
    "hi",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "ru",
    "tr",
    "uk",
    "zh",
)

_SCRIPTS: Mapping[str, re.Pattern[str]] = {
    "ko": re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
    "ja": re.compile("[\u3040-\u30ff]"),
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"),
    "ar": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "hi": re.compile("[\u0900-\u097f]"),
    "ru": re.compile("[\u0400-\u04ff]"),
}
"""Letters of scripts that tell a language; of Cyrillic ones, two."""
_OWN_LETTERS: Mapping[str, re.Pattern[str]] = {
    "de": re.compile("[ß]"),
    "es": re.compile("[¿¡ñ]"),
    "fr": re.compile("[œêîûëï]"),
    "it": re.compile("[ìò]"),
    "pl": re.compile("[ąęłńśźż]"),
    "pt": re.compile("[ãõ]"),
    "ru": re.compile("[ыэъё]"),
    "tr": re.compile("[ğış]"),
    "uk": re.compile("[іїєґ]"),
}
"""Letters that only one of our languages in a script has, or has often."""
_LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr")
_CYRILLIC = ("ru", "uk")
_WORD = re.compile(r"\b[^\W\d_]+\b(?![-./]?\d)")
"""No letters of an identifier: E-4031."""


def question_language(question: str) -> str:
    """ISO 639-1, one of LANGUAGES; DEFAULT_LANGUAGE where nothing tells."""
    folded = _folded(question)
    letters = {language: len(script.findall(folded)) for language, script in _SCRIPTS.items()}
    latin = sum("a" <= character <= "z" for character in folded)
    # Kana among Chinese characters is Japanese.
    if letters["ja"]:
        letters["ja"] += letters["zh"]
    script = max(letters, key=lambda language: letters[language])
    # Names in Latin letters stand in questions of every script, and others in English ones.
    asked_in_latin = latin > letters[script] and max(_votes(folded, _LATIN).values()) > 0
    if letters[script] and not asked_in_latin:
        return _likeliest(folded, _CYRILLIC) if script == "ru" else script
    return _likeliest(folded, _LATIN)


def function_words(question: str) -> frozenset[str]:
    """Those of its language. English ones too where it has Latin letters: subjects are often asked for in English."""
    own = FUNCTION_WORDS.get(question_language(question), frozenset())
    return own | FUNCTION_WORDS["en"] if re.search("[A-Za-z]", question) else own


def without_bound(question: str) -> str:
    """The question without what asks and binds in languages that no space divides, whose rest is cut into pairs."""
    return question if question.isascii() else _BOUND.sub(" ", question)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _likeliest(folded: str, languages: tuple[str, ...]) -> str:
    """The first of equals."""
    votes = _votes(folded, languages)
    return max(languages, key=lambda language: votes[language])


def _votes(folded: str, languages: tuple[str, ...]) -> dict[str, int]:
    """Function words of each language. One letter of its own counts as one word."""
    said = _WORD.findall(folded)
    return {
        language: sum(word in FUNCTION_WORDS[language] for word in said)
        + (language in _OWN_LETTERS and _OWN_LETTERS[language].search(folded) is not None)
        for language in languages
    }
