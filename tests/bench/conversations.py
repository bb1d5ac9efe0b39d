"""Conversations whose last question leans on what was said before, or does not, and the documents that answer them.

All of it is made up. The documents come in families that say the same of different places, firms and machines, so
that a question that lost its subject finds the wrong one.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """`turns`: question, answer, question and so on; the last is the question to be searched."""

    kind: str
    turns: tuple[str, ...]
    wanted: tuple[str, ...]
    """The documents that answer it."""
    alone: str
    """The last question as a person would write it to stand on its own."""

    @property
    def asked(self) -> list[str]:
        return list(self.turns[::2])

    @property
    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": "assistant" if index % 2 else "user", "content": text}
            for index, text in enumerate(self.turns)
        ]


_TOWNS = {
    # lighthouse: height, year, keeper; bakery: owner, opening; ferry: price, days; museum: ticket, closed
    "Brennick": (47, 1871, "Joss Amory", "Mara Lind", "six", 12, "Thursdays", 4, "Mondays"),
    "Tolm": (31, 1902, "Edda Ruun", "Pieter Vos", "five", 9, "Tuesdays", 6, "Wednesdays"),
    "Askeroy": (58, 1855, "Nils Tveit", "Signe Dahl", "seven", 22, "Saturdays", 5, "Sundays"),
    "Penhallow": (24, 1913, "Morwen Tyack", "Jory Pascoe", "half past five", 15, "Fridays", 3, "Tuesdays"),
    "Vardehavn": (39, 1888, "Aslak Somby", "Berit Holm", "eight", 31, "Mondays", 8, "Fridays"),
    "Kilmory": (28, 1864, "Ailsa Muir", "Ewan Baird", "six thirty", 11, "Wednesdays", 2, "Thursdays"),
}
_FIRMS = {
    # leave days, carry over until, nights: hotel limit, receipts within, home days, doctor's note after
    "Harrow Mills": (27, "the end of March", 110, 14, 2, 3),
    "Ostra Shipping": (30, "the end of June", 145, 30, 3, 1),
    "Delphine Optics": (25, "the end of January", 95, 21, 4, 2),
}
_MACHINES = {
    # what, descaling or cleaning every, tool, warranty years, void by, error, meaning
    "Corva 200": (
        "espresso machine",
        "six weeks",
        "citric powder",
        3,
        "hard water",
        "E-21",
        "the water tank is empty",
    ),
    "Lumo X3": (
        "projector",
        "ninety days",
        "a dry brush",
        2,
        "a lamp of another make",
        "E-21",
        "the fan is blocked",
    ),
    "Terrafix 9": (
        "hammer drill",
        "forty hours",
        "lithium grease",
        5,
        "use under water",
        "E-21",
        "the battery is too warm",
    ),
}


def documents() -> Mapping[str, str]:
    """Texts by name."""
    texts: dict[str, str] = {}
    for town, (height, year, keeper, owner, opens, price, day, ticket, closed) in _TOWNS.items():
        texts[f"lighthouse {town}"] = (
            f"The lighthouse of {town} is {height} metres high. The tower was built in {year} of grey granite, and its "
            f"keeper is {keeper}, who lives in the cottage beside it. Visitors climb the stairs on guided tours only."
        )
        texts[f"bakery {town}"] = (
            f"The bakery on the market square of {town} belongs to {owner}. It opens at {opens} in the morning and "
            f"is known for rye bread with caraway. Orders for feasts are taken two days ahead."
        )
        texts[f"ferry {town}"] = (
            f"The ferry to {town} costs {price} crowns for a grown person and half of that for a child. It "
            f"does not sail on "
            f"{day}, when the ship is overhauled. Bicycles travel without a ticket."
        )
        texts[f"museum {town}"] = (
            f"The fishing museum of {town} shows nets, boats and the log books of the herring fleet. A ticket "
            f"is {ticket} "
            f"crowns. The house is closed on {closed}. Dogs wait outside."
        )
    for firm, (leave, until, hotel, receipts, home, note) in _FIRMS.items():
        texts[f"leave {firm}"] = (
            f"Staff of {firm} have {leave} days of annual leave. Days that were not taken can be carried over until "
            f"{until} of the next year; after that they lapse. Requests go to the line manager in writing."
        )
        texts[f"travel {firm}"] = (
            f"On business travel {firm} pays for hotels up to {hotel} euros a night. Receipts are handed in "
            f"within {receipts} "
            "days of the return. Trains are booked in second class, and taxis need a reason."
        )
        texts[f"remote {firm}"] = (
            f"Employees of {firm} may work from home on {home} days a week, if their team agrees. The firm provides a "
            "screen and a chair, but does not pay for the internet connection."
        )
        texts[f"sickness {firm}"] = (
            f"Whoever falls ill at {firm} calls in before nine. A doctor's note is needed after {note} days "
            f"of absence. Wages "
            "are paid on for six weeks."
        )
    for name, (what, every, tool, years, void, error, meaning) in _MACHINES.items():
        texts[f"cleaning {name}"] = (
            f"The {name} {what} has to be cleaned every {every} with {tool}. Pull the plug before the cover "
            f"is opened, and let "
            "the parts dry for an hour."
        )
        texts[f"warranty {name}"] = (
            f"The warranty of the {name} {what} lasts {years} years from the day of purchase. Damage by {void} is not "
            "covered. Keep the invoice: claims are made through the shop."
        )
        texts[f"errors {name}"] = (
            f"When the {name} {what} shows {error}, {meaning}. Switch it off, wait for five minutes and start "
            f"it again. If the "
            "code comes back, call the service line."
        )
    return texts


CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation(
        "pronoun",
        ("How high is the lighthouse of Brennick?", "It is 47 metres high.", "Who is its keeper?"),
        ("lighthouse Brennick",),
        "Who is the keeper of the lighthouse of Brennick?",
    ),
    Conversation(
        "pronoun",
        ("Who owns the bakery in Askeroy?", "Signe Dahl owns it.", "When does she open it in the morning?"),
        ("bakery Askeroy",),
        "When does Signe Dahl open the bakery in Askeroy in the morning?",
    ),
    Conversation(
        "pronoun",
        ("What does the ferry to Vardehavn cost?", "31 crowns.", "On which day does it not sail?"),
        ("ferry Vardehavn",),
        "On which day does the ferry to Vardehavn not sail?",
    ),
    Conversation(
        "pronoun",
        ("What is shown in the fishing museum of Tolm?", "Nets and boats.", "When is it closed?"),
        ("museum Tolm",),
        "When is the fishing museum of Tolm closed?",
    ),
    Conversation(
        "pronoun",
        ("Who runs the bakery in Kilmory?", "Ewan Baird.", "What bread is he known for?"),
        ("bakery Kilmory",),
        "What bread is Ewan Baird's bakery in Kilmory known for?",
    ),
    Conversation(
        "pronoun",
        ("How much leave do people at Ostra Shipping get?", "30 days.", "Until when can they carry it over?"),
        ("leave Ostra Shipping",),
        "Until when can staff of Ostra Shipping carry over annual leave?",
    ),
    Conversation(
        "pronoun",
        (
            "What does Delphine Optics pay for hotels?",
            "Up to 95 euros a night.",
            "How soon do they want the receipts?",
        ),
        ("travel Delphine Optics",),
        "How soon does Delphine Optics want the receipts of business travel?",
    ),
    Conversation(
        "pronoun",
        ("How often is the Corva 200 cleaned?", "Every six weeks.", "With what is that done?"),
        ("cleaning Corva 200",),
        "With what is the Corva 200 cleaned?",
    ),
    Conversation(
        "pronoun",
        ("What does E-21 mean on the Lumo X3?", "The fan is blocked.", "What do I do about it?"),
        ("errors Lumo X3",),
        "What do I do about E-21 on the Lumo X3?",
    ),
    Conversation(
        "pronoun",
        ("How long is the warranty of the Terrafix 9?", "Five years.", "What does it not cover?"),
        ("warranty Terrafix 9",),
        "What does the warranty of the Terrafix 9 not cover?",
    ),
    Conversation(
        "pronoun",
        ("When was the tower of Penhallow built?", "In 1913.", "Of what stone is it?"),
        ("lighthouse Penhallow",),
        "Of what stone is the tower of Penhallow?",
    ),
    Conversation(
        "pronoun",
        ("Who keeps the lighthouse of Vardehavn?", "Aslak Somby.", "Where does he live?"),
        ("lighthouse Vardehavn",),
        "Where does Aslak Somby, the keeper of the lighthouse of Vardehavn, live?",
    ),
    Conversation(
        "ellipsis",
        ("What does the ferry to Tolm cost?", "9 crowns.", "And for a child?"),
        ("ferry Tolm",),
        "What does the ferry to Tolm cost for a child?",
    ),
    Conversation(
        "ellipsis",
        ("What does the ferry to Tolm cost?", "9 crowns.", "And to Kilmory?"),
        ("ferry Kilmory",),
        "What does the ferry to Kilmory cost?",
    ),
    Conversation(
        "ellipsis",
        ("How high is the lighthouse of Askeroy?", "58 metres.", "And that of Tolm?"),
        ("lighthouse Tolm",),
        "How high is the lighthouse of Tolm?",
    ),
    Conversation(
        "ellipsis",
        ("How many days of leave are there at Harrow Mills?", "27.", "What about Delphine Optics?"),
        ("leave Delphine Optics",),
        "How many days of leave are there at Delphine Optics?",
    ),
    Conversation(
        "ellipsis",
        ("When is a doctor's note needed at Ostra Shipping?", "After one day.", "And at Harrow Mills?"),
        ("sickness Harrow Mills",),
        "When is a doctor's note needed at Harrow Mills?",
    ),
    Conversation(
        "ellipsis",
        ("How many days can I work from home at Delphine Optics?", "Four.", "Who has to agree?"),
        ("remote Delphine Optics",),
        "Who has to agree to work from home at Delphine Optics?",
    ),
    Conversation(
        "ellipsis",
        ("How long is the warranty of the Corva 200?", "Three years.", "Even with hard water?"),
        ("warranty Corva 200",),
        "Does the warranty of the Corva 200 cover damage by hard water?",
    ),
    Conversation(
        "ellipsis",
        ("May I take a bicycle on the ferry to Penhallow?", "Yes, without a ticket.", "On Fridays?"),
        ("ferry Penhallow",),
        "Does the ferry to Penhallow sail on Fridays?",
    ),
    Conversation(
        "ellipsis",
        ("What is a ticket for the museum of Brennick?", "4 crowns.", "With dogs?"),
        ("museum Brennick",),
        "Are dogs allowed in the museum of Brennick?",
    ),
    Conversation(
        "definite",
        ("How high is the lighthouse of Kilmory?", "28 metres.", "Who may climb the stairs?"),
        ("lighthouse Kilmory",),
        "Who may climb the stairs of the lighthouse of Kilmory?",
    ),
    Conversation(
        "definite",
        ("Who owns the bakery in Tolm?", "Pieter Vos.", "When are orders for a feast placed at the bakery?"),
        ("bakery Tolm",),
        "When are orders for a feast placed at the bakery in Tolm?",
    ),
    Conversation(
        "definite",
        (
            "What does E-21 mean on the Terrafix 9?",
            "The battery is too warm.",
            "What if the code comes back?",
        ),
        ("errors Terrafix 9",),
        "What if the code E-21 comes back on the Terrafix 9?",
    ),
    Conversation(
        "definite",
        ("What does Harrow Mills pay for hotels?", "110 euros.", "Which class is booked on the train?"),
        ("travel Harrow Mills",),
        "Which class does Harrow Mills book on the train?",
    ),
    Conversation(
        "definite",
        ("How often is the Lumo X3 cleaned?", "Every ninety days.", "How long do the parts have to dry?"),
        ("cleaning Lumo X3",),
        "How long do the parts of the Lumo X3 have to dry after cleaning?",
    ),
    Conversation(
        "definite",
        ("When is the museum of Askeroy closed?", "On Sundays.", "What is the price of a ticket?"),
        ("museum Askeroy",),
        "What is the price of a ticket for the museum of Askeroy?",
    ),
    Conversation(
        "chain",
        (
            "How high is the lighthouse of Penhallow?",
            "24 metres.",
            "Who is its keeper?",
            "Morwen Tyack.",
            "And when was it built?",
        ),
        ("lighthouse Penhallow",),
        "When was the lighthouse of Penhallow built?",
    ),
    Conversation(
        "chain",
        (
            "What does the ferry to Askeroy cost?",
            "22 crowns.",
            "And for children?",
            "11 crowns.",
            "When does it not sail?",
        ),
        ("ferry Askeroy",),
        "When does the ferry to Askeroy not sail?",
    ),
    Conversation(
        "chain",
        (
            "How many days of leave does Harrow Mills give?",
            "27.",
            "Can they be carried over?",
            "Until the end of March.",
            "To whom do I send the request for it?",
        ),
        ("leave Harrow Mills",),
        "To whom do I send a request for leave at Harrow Mills?",
    ),
    Conversation(
        "chain",
        (
            "How long is the warranty of the Lumo X3?",
            "Two years.",
            "What is not covered by it?",
            "Damage by a lamp of another make.",
            "Where do I make such a claim?",
        ),
        ("warranty Lumo X3",),
        "Where do I make a claim under the warranty of the Lumo X3?",
    ),
    Conversation(
        "chain",
        (
            "Who owns the bakery in Brennick?",
            "Mara Lind.",
            "When does she open?",
            "At six.",
            "How high is the lighthouse there?",
        ),
        ("lighthouse Brennick",),
        "How high is the lighthouse of Brennick?",
    ),
    Conversation(
        "shift",
        ("How high is the lighthouse of Brennick?", "47 metres.", "What does the ferry to Vardehavn cost?"),
        ("ferry Vardehavn",),
        "What does the ferry to Vardehavn cost?",
    ),
    Conversation(
        "shift",
        ("Who owns the bakery in Tolm?", "Pieter Vos.", "How often is the Corva 200 cleaned?"),
        ("cleaning Corva 200",),
        "How often is the Corva 200 cleaned?",
    ),
    Conversation(
        "shift",
        (
            "How long is the warranty of the Corva 200?",
            "Three years.",
            "How many days of leave does Ostra Shipping give?",
        ),
        ("leave Ostra Shipping",),
        "How many days of leave does Ostra Shipping give?",
    ),
    Conversation(
        "shift",
        ("What does Harrow Mills pay for hotels?", "110 euros.", "When is the museum of Kilmory closed?"),
        ("museum Kilmory",),
        "When is the museum of Kilmory closed?",
    ),
    Conversation(
        "shift",
        ("When is the museum of Tolm closed?", "On Wednesdays.", "When is the museum of Penhallow closed?"),
        ("museum Penhallow",),
        "When is the museum of Penhallow closed?",
    ),
    Conversation(
        "shift",
        (
            "What does E-21 mean on the Lumo X3?",
            "The fan is blocked.",
            "What does E-21 mean on the Corva 200?",
        ),
        ("errors Corva 200",),
        "What does E-21 mean on the Corva 200?",
    ),
    Conversation(
        "shift",
        ("Who keeps the lighthouse of Tolm?", "Edda Ruun.", "When does Berit Holm open her bakery?"),
        ("bakery Vardehavn",),
        "When does Berit Holm open her bakery?",
    ),
    Conversation(
        "shift",
        (
            "What does the ferry to Askeroy cost?",
            "22 crowns.",
            "Who pays wages for six weeks at Delphine Optics?",
        ),
        ("sickness Delphine Optics",),
        "Who pays wages for six weeks at Delphine Optics?",
    ),
    Conversation(
        "several",
        ("How high is the lighthouse of Tolm and what does the ferry to Askeroy cost?",),
        ("lighthouse Tolm", "ferry Askeroy"),
        "How high is the lighthouse of Tolm and what does the ferry to Askeroy cost?",
    ),
    Conversation(
        "several",
        ("Who owns the bakery in Penhallow? When is the museum of Vardehavn closed?",),
        ("bakery Penhallow", "museum Vardehavn"),
        "Who owns the bakery in Penhallow? When is the museum of Vardehavn closed?",
    ),
    Conversation(
        "several",
        (
            "How many days of leave does Harrow Mills give, and how many days can I work from home at Ostra Shipping?",
        ),
        ("leave Harrow Mills", "remote Ostra Shipping"),
        "How many days of leave does Harrow Mills give, and how many days can I work from home at Ostra Shipping?",
    ),
    Conversation(
        "several",
        ("How often is the Terrafix 9 cleaned and how long is the warranty of the Lumo X3?",),
        ("cleaning Terrafix 9", "warranty Lumo X3"),
        "How often is the Terrafix 9 cleaned and how long is the warranty of the Lumo X3?",
    ),
    Conversation(
        "several",
        ("What does E-21 mean on the Terrafix 9? And when is a doctor's note needed at Delphine Optics?",),
        ("errors Terrafix 9", "sickness Delphine Optics"),
        "What does E-21 mean on the Terrafix 9? And when is a doctor's note needed at Delphine Optics?",
    ),
    Conversation(
        "several",
        ("Who is the keeper of the lighthouse of Kilmory and who owns the bakery in Askeroy?",),
        ("lighthouse Kilmory", "bakery Askeroy"),
        "Who is the keeper of the lighthouse of Kilmory and who owns the bakery in Askeroy?",
    ),
)
