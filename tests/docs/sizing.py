"""README's sizing table: `python -m tests.docs.sizing --write` makes it of what `strongroom plan` counts with."""

import argparse
import re

from app.running.planning import GIB, SIZES, Budget, fit
from serving.generation.engine import gpu_memory_share
from tests.stack import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- sizing: python -m tests.docs.sizing --write -->\n"
END = "<!-- end of sizing -->"
CARDS_GIB = (12, 24, 48, 80, 141)
MAX_MODEL_LEN = 8192
BESIDE = (GIB, GIB)
"""Weights of an embedding and of a reranking model on the same card."""


def table() -> str:
    lines = [f"| model | weights | {' | '.join(f'{size} GiB' for size in CARDS_GIB)} |"]
    lines.append("| --- |" + " --- |" * (len(CARDS_GIB) + 1))
    for model in SIZES:
        answers = []
        for size in CARDS_GIB:
            total = size * GIB
            share = gpu_memory_share(total, engines_on_it=1, model_weights=BESIDE, gpu_holds_models=True)
            found = fit(Budget("card", total, int(share * total), None), model, max_model_len=MAX_MODEL_LEN)
            answers.append(f"{found.answers:.0f}" if found.fits else "")
        lines.append(f"| {model.name} | {model.weights_bytes / GIB:.0f} GiB | {' | '.join(answers)} |")
    return "\n".join(lines) + "\n"


def written() -> str:
    """The table as README has it."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        text = README.read_text()
        README.write_text(
            re.sub(rf"(?s){re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}{table()}{END}", text)
        )
    else:
        print(table(), end="")
