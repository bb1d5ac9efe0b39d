"""A test collection of ten documents that we wrote, in BEIR's layout."""

import json
from pathlib import Path

DOCUMENTS = {
    "lamp": (
        "Lamp Tower",
        "The Lamp Tower of Vellmouth has 118 steps and no lift. It was lit first in 1871.",
    ),
    "ferry": ("Ferry", "The ferry Tern leaves the east pier at 06:40 and comes back at noon."),
    "vault": ("", "The Icehouse keeps its seeds at minus 21 degrees Celsius behind two doors."),
    "paste": ("Wheat paste", "Wheat paste for scrolls simmers for 35 minutes and is stirred the whole time."),
    "<script>alert(1)</script>": (
        "Markup",
        "A page that closes its tags is <b>well formed</b>, said the printer.",
    ),
    "a/b c": ("Slash", "The slash divides the name of a folder from the name of a file."),
    "gate": ("Storm gate", "The storm gate is shut when the forecast tide is higher than 3.4 metres."),
    "maud": ("Old Maud", "A full tank keeps the generator Old Maud running for 62 hours."),
    "Lamp": ("Lamps", "Oil lamps smoke when their wicks are too long."),
    "empty": ("", "  "),
}
QUERIES = {
    "q1": "How many steps does the Lamp Tower have?",
    "q2": "When does the ferry Tern leave the east pier?",
    "q3": "At what temperature are seeds kept in the Icehouse?",
    "q4": "Who said that a page is well formed?",
    "unjudged": "Is there a query that nobody judged?",
}
JUDGED = {
    "q1": {"lamp": 2, "Lamp": 1},
    "q2": {"ferry": 1},
    "q3": {"vault": 1},
    "q4": {"<script>alert(1)</script>": 1},
}


def write_beir(folder: Path) -> Path:
    """Writes it into `folder`/harbour."""
    whole = folder / "harbour"
    (whole / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()]
    (whole / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    queries = [{"_id": key, "text": text} for key, text in QUERIES.items()]
    (whole / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    rows = [f"{query}\t{key}\t{grade}" for query, grades in JUDGED.items() for key, grade in grades.items()]
    (whole / "qrels" / "test.tsv").write_text(
        "\n".join(["query-id\tcorpus-id\tscore", *rows, "q1\tmaud\t0", ""])
    )
    return whole
