"""`strongroom eval …`: how well a running Strongroom finds and answers, measured through its API."""

import platform
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape

from app.answers.calibration import CalibrationInvalid, Fitted, write_fitted
from app.commands.remote import Remote, RemoteRefused
from app.commands.terminal import DataDir, KeyFile, Url, console, refuse, with_data_dir, with_remote
from app.evaluation import answers as answering
from app.evaluation import retrieval as searching
from app.evaluation.answers import OVERALL, AskingAs
from app.evaluation.beir import RetrievalSet, read_beir
from app.evaluation.calibration import Calibrated, calibrate, check_questions
from app.evaluation.compare import compare
from app.evaluation.draw import draw
from app.evaluation.lines import EvaluationRefused
from app.evaluation.questions import QuestionFile, read_questions
from app.evaluation.report import write_report
from app.evaluation.retrieval import DEFAULT_STAGES, Stage
from app.evaluation.runs import REPORT, RUNS, Begun, Kind, Run, RunFolder, Setting, now_utc, read_run
from app.evaluation.tables import show_calibration, show_comparison, show_dropped, show_run

eval_cli = typer.Typer(
    help="Measure search and answers, compare runs, draw up questions, calibrate refusals.",
    no_args_is_help=True,
)

Result = TypeVar("Result")
Resume = Annotated[Path | None, typer.Option(help="Folder of a run that was cut: go on with it.")]
Name = Annotated[str | None, typer.Option(help="What to call the run.")]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, max=64, help="Questions at the same time.")]


@eval_cli.command("retrieval")
def retrieval(
    folder: Annotated[Path, typer.Argument(help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv.")],
    collection: Annotated[
        str | None,
        typer.Option(help="Name or id of the collection that holds the corpus; eval-<folder> by default."),
    ] = None,
    ingest: Annotated[
        bool, typer.Option("--ingest", help="Add what of the corpus is not there yet.")
    ] = False,
    stages: Annotated[str, typer.Option(help=f"Any of {', '.join(Stage)}, with commas.")] = ",".join(
        DEFAULT_STAGES
    ),
    k: Annotated[int, typer.Option(min=1, max=50, help="Depth of nDCG and recall.")] = 10,
    split: Annotated[str, typer.Option(help="Which of the folder's qrels.")] = "test",
    only: Annotated[Path | None, typer.Option(help="File of query ids, one a line: ask no others.")] = None,
    at_once: AtOnce = 4,
    name: Name = None,
    resume: Resume = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Search a test collection in each stage: nDCG, recall, MRR and MAP with intervals, time per query."""

    def read() -> tuple[RetrievalSet, list[Stage]]:
        return read_beir(folder, split=split, only=_ids(only)), _stages(stages)

    asked, chosen = _or_refuse(read)
    into = collection or f"eval-{asked.name}"

    async def run(remote: Remote) -> tuple[Path, Run]:
        if ingest:
            notes = await searching.ingest_corpus(remote, asked, into, console=console)
            collection_id = await remote.collection(into)
        else:
            collection_id = await _collection(remote, into, hint="Add --ingest to make it of the corpus.")
            notes = await searching.check_corpus(remote, asked, collection_id)
        settings: dict[str, Setting] = {
            "folder": str(folder.resolve()),
            "input_sha256": asked.sha256,
            "collection_id": collection_id,
            "stages": [stage.value for stage in chosen],
            "k": k,
            "chunks_asked_for": searching.CHUNKS_ASKED_FOR,
        }
        begun = await _begun(remote, Kind.RETRIEVAL, name or asked.name, f"nDCG@{k}", settings)
        with _opened(begun, resume, data_dir) as opened:
            await searching.search_all(
                remote, asked, collection_id, chosen, opened, at_once=at_once, console=console
            )
            outcomes = searching.scored(opened, asked, chosen, k=k)
            told = [*asked.notes, *notes, *searching.notes_on(outcomes)]
            return opened.path, opened.finish(outcomes, told)

    path, finished = _with_remote(url, key_file, data_dir, run)
    write_report(path / REPORT, finished, asked.excerpt)
    _show(path, finished)


@eval_cli.command("answers")
def answers(
    questions: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"question": …, "answers": […], "documents": [names of files], "answerable": true}.'
        ),
    ],
    collection: Annotated[
        str | None,
        typer.Option(help="Name or id of the collection to ask; by default all that the key may read."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Model of the engine that says which answers are right.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt, such as a wish for short answers.")
    ] = None,
    at_once: AtOnce = 4,
    name: Name = None,
    resume: Resume = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ask questions end to end: exact match, F1, citations, refusals, and a judge if you name one."""
    asked: QuestionFile = _or_refuse(lambda: read_questions(questions))

    async def run(remote: Remote) -> tuple[Path, Run]:
        collection_id = await _collection(remote, collection) if collection is not None else None
        settings: dict[str, Setting] = {
            "questions": str(questions.resolve()),
            "input_sha256": asked.sha256,
            "collection_id": collection_id,
            "system": system,
            "judge": judge,
        }
        how = AskingAs(collection_id=collection_id, system_prompt=system, judge=judge, at_once=at_once)
        begun = await _begun(remote, Kind.ANSWERS, name or asked.name, OVERALL, settings)
        with _opened(begun, resume, data_dir) as opened:
            await answering.answer_all(remote, asked, how, opened, console=console)
            outcomes = answering.answered(opened, asked)
            return opened.path, opened.finish(outcomes, answering.notes_on(outcomes, judge=judge))

    path, finished = _with_remote(url, key_file, data_dir, run)
    write_report(path / REPORT, finished)
    _show(path, finished)


@eval_cli.command("calibrate")
def calibrate_command(
    questions: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"question": …, "answers": […]}, or {"question": …, "answerable": false}.'
        ),
    ],
    collection: Annotated[str, typer.Option(help="Name or id of the collection to ask.")],
    at_once: AtOnce = 4,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Set what evidence a question needs to be answered, by questions that your documents answer and others.

    Half of them fit it, the other half tell how often it is right. It is kept in the data folder, as evidence.json,
    and counts from the api role's next start on.
    """
    asked: QuestionFile = _or_refuse(lambda: read_questions(questions))
    _or_refuse(lambda: check_questions(asked))
    settings = with_data_dir(data_dir)

    async def run(remote: Remote) -> Calibrated:
        collection_id = await _collection(remote, collection)
        return await calibrate(remote, asked, collection_id, at_once=at_once, console=console)

    found = _with_remote(url, key_file, data_dir, run)
    reranker = settings.models.default_reranker if found.is_reranked else None
    if found.is_reranked and reranker is None:
        refuse("The server reranks, but models.reranker is empty here: run it with the server's settings.")
    fitted = Fitted(
        intercept=found.weighing.intercept,
        weights=dict(found.weighing.weights),
        threshold=found.weighing.threshold,
        reranker=reranker,
        questions=asked.name,
        fitted_at=now_utc(),
        held_out=found.held_out,
    )
    try:
        path = write_fitted(settings.storage.data_dir, fitted)
    except (CalibrationInvalid, OSError) as error:
        refuse(str(error))
    show_calibration(console, found)
    console.print(
        f"Written to {path}; it counts once the api role starts again.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@eval_cli.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of the run to compare with it.")],
    stages: Annotated[
        str | None, typer.Option(help="Compare this stage of A with that of B, such as fused,reranked.")
    ] = None,
) -> None:
    """Compare two runs question by question: differences with 95 % intervals, p, and what changed most.

    p is of a paired randomisation test, for one metric; it is not corrected for how many are shown.
    """
    named = tuple(stages.split(",")) if stages is not None else None
    if named is not None and len(named) != 2:
        refuse("--stages takes two, the one of A and the one of B: fused,reranked.")
    pair = (named[0].strip(), named[1].strip()) if named is not None else None
    for each in _or_refuse(lambda: compare(read_run(run_a), read_run(run_b), variants=pair)):
        show_comparison(console, each)


@eval_cli.command("draw")
def draw_command(
    collection: Annotated[str, typer.Option(help="Name or id of the collection to draw from.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many questions.")] = 50,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write or fill up; questions-<collection>.jsonl by default."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of the engine that writes them; its first by default.")
    ] = None,
    at_once: AtOnce = 4,
    seed: Annotated[int | None, typer.Option(help="Chooses the same passages again.")] = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Let the engine draw up questions from a collection's documents, as `eval answers` takes them."""
    path = out or Path(f"questions-{collection}.jsonl")

    async def run(remote: Remote) -> None:
        drawn = await draw(
            remote,
            await _collection(remote, collection),
            path,
            count=count,
            model=model or await _first_model(remote),
            at_once=at_once,
            chance=random.Random(seed),  # noqa: S311 - which passages are asked about is no secret
            console=console,
        )
        console.print(f"{drawn.questions} of {count} questions are in {path}.", markup=False, highlight=False)
        show_dropped(console, drawn.dropped.most_common())
        if drawn.questions < count:
            console.print(
                "The passages ran out. A larger model, or more documents, give more.", style="yellow"
            )

    _with_remote(url, key_file, data_dir, run)


async def _begun(
    remote: Remote, kind: Kind, name: str, main_metric: str, settings: dict[str, Setting]
) -> Begun:
    collection_id = settings["collection_id"]
    versions = {each: version(each) for each in ("strongroom", "ir-measures", "numpy")}
    if isinstance(collection_id, str):
        stored = await remote.collection_now(collection_id)
        versions |= {"collection": stored["name"], "embedding model": stored["embedding_model"]}
    return Begun(
        kind=kind,
        name=name,
        main_metric=main_metric,
        settings=settings,
        versions={**versions, "python": platform.python_version()},
        started_at=now_utc(),
    )


async def _collection(remote: Remote, name: str, hint: str = "") -> str:
    try:
        return await remote.find_collection(name)
    except RemoteRefused as error:
        if error.status is not None or not hint:
            raise
        raise EvaluationRefused(f"{error} {hint}") from error


async def _first_model(remote: Remote) -> str:
    models = await remote.engine_models()
    if not models:
        raise EvaluationRefused("No generation engine is ready: see engine.url and GET /ready.")
    return models[0]


@contextmanager
def _opened(begun: Begun, resume: Path | None, data_dir: Path | None) -> Iterator[RunFolder]:
    """Tells how to go on when the run is cut, by Ctrl-C or by a server that went away."""
    if resume is not None:
        folder = RunFolder.resume(resume, begun)
    else:
        folder = RunFolder.begin(with_data_dir(data_dir).storage.data_dir / RUNS, begun)
    try:
        with folder:
            yield folder
    except BaseException:
        told = f"{len(folder.outcomes)} outcomes are kept. Go on with: --resume {folder.path}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        raise


def _show(path: Path, run: Run) -> None:
    show_run(console, run)
    console.print(f"Report: {escape(str(path / REPORT))}", highlight=False, soft_wrap=True)


def _stages(named: str) -> list[Stage]:
    chosen = list(dict.fromkeys(each.strip() for each in named.split(",") if each.strip()))
    for each in chosen:
        if each not in list(Stage):
            raise EvaluationRefused(f"There is no stage '{each}'. There are {', '.join(Stage)}.")
    if not chosen:
        raise EvaluationRefused(f"--stages is empty. There are {', '.join(Stage)}.")
    return [Stage(each) for each in chosen]


def _ids(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    try:
        return frozenset(line.strip() for line in path.read_text("utf-8").split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationRefused(f"{path} cannot be read: {error}.") from error


def _with_remote(
    url: str,
    key_file: Path | None,
    data_dir: Path | None,
    use: Callable[[Remote], Coroutine[Any, Any, Result]],
) -> Result:
    try:
        return _or_refuse(lambda: with_remote(url, key_file, data_dir, use))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _or_refuse(use: Callable[[], Result]) -> Result:
    try:
        return use()
    except EvaluationRefused as error:
        refuse(str(error))
