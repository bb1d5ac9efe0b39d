"""The prompt's layout: what recurs stands first, so that an engine's prefix cache knows it."""

from app.prompt import INSTRUCTIONS, as_prefix, with_passages
from retrieval.passages import Passage


def passage(text: str) -> Passage:
    return Passage(
        document_id=1,
        collection_id="c",
        file_id="f",
        filename="notes.txt",
        text=text,
        start_char=0,
        end_char=len(text),
        headings=("Vault",),
        places=(),
        score=1.0,
    )


def test_passages_follow_the_instructions_and_all_that_varies_follows_the_passages() -> None:
    messages = [
        {"role": "system", "content": "Today is Tuesday."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A clerk."},
        {"role": "user", "content": "Where is the key?"},
    ]
    system, *history, question = with_passages(
        messages, [passage("In the hall."), passage("Iron.")], ranks=[1, 0]
    )
    assert system == {
        "role": "system",
        "content": f"{INSTRUCTIONS}\n\nPassages:\n[1] notes.txt > Vault\nIn the hall.\n\n"
        "[2] notes.txt > Vault\nIron.\n\nToday is Tuesday.",
    }
    assert history == messages[1:3]
    assert question["content"] == (
        "Passages, the most relevant first: [2], [1].\n\nQuestion: Where is the key?"
    )
    assert messages[-1]["content"] == "Where is the key?"


def test_two_prompts_over_the_same_passages_begin_alike_whatever_is_asked() -> None:
    shown = [passage("In the hall."), passage("Iron.")]
    prompts = [
        as_prefix(with_passages([{"role": "user", "content": asked}], shown, ranks=ranks))
        for asked, ranks in (("Where?", [0, 1]), ("Of what?", [1, 0]))
    ]
    begin = prompts[0][: prompts[0].index(b"user: ")]
    assert b"Iron." in begin
    assert prompts[1].startswith(begin)


def test_a_question_in_parts_keeps_its_parts() -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    *_, question = with_passages([{"role": "user", "content": parts}], [passage("Iron.")], ranks=[0])
    assert question["content"] == [{"type": "text", "text": "Question: "}, *parts]
