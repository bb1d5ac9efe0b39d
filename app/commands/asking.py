"""`strongroom ask`, `chat` and `search`: answers that stream with their citations, and why a place was found."""

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer
from rich.style import Style
from rich.table import Table
from rich.text import Text

from app.commands.remote import Json, Remote, RemoteRefused
from app.commands.terminal import AsJson, DataDir, KeyFile, Url, console, print_json, with_remote

Collection = Annotated[str | None, typer.Option(help="Search this collection only.")]
EXCERPT_CHARS = 300


@dataclass
class Answer:
    """What a stream has told so far."""

    text: str = ""
    citations: list[Json] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    """Sentences that the documents do not support."""
    grounded: bool = False


def ask(
    question: Annotated[str, typer.Argument()],
    collection: Collection = None,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ask the documents; the answer streams, then its citations follow. Exit status 1 when they do not say."""

    async def run(remote: Remote) -> Answer:
        answer = Answer()
        said = [{"role": "user", "content": question}]
        async for piece in _answered(remote, said, collection, answer):
            if not as_json:
                typer.echo(piece, nl=False)
        return answer

    answer = with_remote(url, key_file, data_dir, run)
    if as_json:
        told = asdict(answer)
        print_json({"answer": told.pop("text"), **told})
    else:
        typer.echo()
        _show_evidence(answer)
    raise typer.Exit(0 if answer.grounded else 1)


def chat(
    collection: Collection = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Talk with the documents, question after question, until an empty line or Ctrl-D."""

    async def run(remote: Remote) -> None:
        said: list[Json] = []
        while question := _read_line():
            answer = Answer()
            said.append({"role": "user", "content": question})
            try:
                async for piece in _answered(remote, said, collection, answer):
                    typer.echo(piece, nl=False)
            except RemoteRefused as error:
                said.pop()
                console.print(str(error), style="red", markup=False)
                continue
            typer.echo()
            _show_evidence(answer)
            said.append({"role": "assistant", "content": answer.text})

    with_remote(url, key_file, data_dir, run)


def search(
    query: Annotated[str, typer.Argument()],
    collection: Annotated[str, typer.Option(help="Name or id of the collection.")],
    most: Annotated[int, typer.Option(min=1, max=50, help="Most results.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell why each result stands where it does.")
    ] = False,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Find places in a collection, best first. Exit status 1 when nothing is found."""

    async def run(remote: Remote) -> Json:
        body: Json = {"query": query, "max_num_results": most}
        if explain:
            body["include"] = ["scores"]
        found, _ = await remote.search(await remote.find_collection(collection), body)
        return found

    found = with_remote(url, key_file, data_dir, run)
    if as_json:
        print_json(found)
    else:
        for place, result in enumerate(found["data"], 1):
            _show_result(place, result)
        if explain and found["data"]:
            times = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in found["stage_ms"].items())
            console.print(f"\n{times}", style="dim")
    raise typer.Exit(0 if found["data"] else 1)


async def _answered(
    remote: Remote, said: list[Json], collection: str | None, answer: Answer
) -> AsyncIterator[str]:
    """The pieces of its text; `answer` grows with them."""
    model = f"rag/{collection}" if collection else "rag"
    async for chunk in remote.converse(said, model):
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            answer.text += piece
            answer.citations += choice["delta"].get("annotations") or []
            for span in choice["delta"].get("unsupported") or []:
                answer.unsupported.append(answer.text[span["start_index"] : span["end_index"]])
            yield piece
    answer.grounded = bool(answer.citations)


def _show_evidence(answer: Answer) -> None:
    """In a terminal a citation's name is a link; elsewhere the address follows."""
    for sentence in dict.fromkeys(answer.unsupported):
        console.print(f"\nThe documents do not say: “{sentence}”", style="yellow", markup=False)
    for each in answer.citations:
        page = f", page {each['page']}" if each["page"] else ""
        address = each["url_citation"]["url"]
        heading = f"\n[{each['number']}] {each['filename']}{page}"
        console.print(Text(heading, Style(bold=True, link=address if console.is_terminal else None)))
        console.print(f"“{each['quote']}”", markup=False)
        if not console.is_terminal:
            console.print(address, style="dim", markup=False, soft_wrap=True)


def _show_result(place: int, result: Json) -> None:
    page = f", page {result['page']}" if result["page"] else ""
    console.print(f"\n{place}. {result['filename']}{page}", style="bold", markup=False, end="")
    console.print(f"  {result['score']:.3f}", style="dim")
    text = " ".join("".join(part["text"] for part in result["content"]).split())
    console.print(text[:EXCERPT_CHARS] + ("…" if len(text) > EXCERPT_CHARS else ""), markup=False)
    if (scores := result.get("scores")) is not None:
        table = Table("by", "rank", "score", box=None, padding=(0, 3, 0, 0))
        for name, title in (
            ("dense", "meaning"),
            ("bm25", "words"),
            ("fused", "both"),
            ("rerank", "reranker"),
        ):
            told = scores.get(name)
            if isinstance(told, dict):
                table.add_row(title, str(told.get("rank") or ""), f"{told['score']:.4f}")
            elif told is not None:
                table.add_row(title, "", f"{told:.4f}")
        console.print(table)


def _read_line() -> str:
    try:
        return str(typer.prompt("\n?", default="", show_default=False, prompt_suffix=" ")).strip()
    except typer.Abort:
        return ""
