"""`strongroom eval retrieval` on ten documents, through the real app."""

import shutil
from pathlib import Path

import pytest

from app.commands.terminal import console
from app.evaluation.beir import file_name, read_beir
from app.evaluation.retrieval import ingest_corpus
from app.evaluation.runs import BEGUN, OUTCOMES, REPORT, RUN, read_run
from tests.app.evaluation.beir_folder import DOCUMENTS, JUDGED, write_beir
from tests.app.evaluation.conftest import Commands
from tests.app.evaluation.test_runs import check_is_harmless

pytestmark = pytest.mark.slow

STAGES = ("bm25", "dense", "fused", "reranked")


async def test_a_folder_is_ingested_searched_in_each_stage_and_reported(
    commands: Commands, tmp_path: Path
) -> None:
    folder = write_beir(tmp_path)
    printed = await commands.succeed("retrieval", folder, "--ingest")
    (path,) = commands.runs
    run = read_run(path)
    assert tuple(run.variants) == STAGES
    assert len(run.outcomes) == len(STAGES) * len(JUDGED)
    means = {(each.variant, each.metric): each for each in run.summaries}
    for stage in STAGES:
        assert means[stage, "recall@10"].mean == 1.0, "ten documents are all found"
        assert means[stage, "nDCG@10"].mean > 0.9
        assert means[stage, "MRR"].count == len(JUDGED)
    wanted = run.of("bm25")["q4"]
    assert wanted.found[0] == "<script>alert(1)</script>", "hits are told by the ids of the corpus"
    assert run.of("dense")["q1"].found[0] == "lamp"
    assert {"embed", "keywords"} <= set(run.of("fused")["q1"].stage_ms)
    assert "embed" not in run.of("bm25")["q1"].stage_ms
    assert all(each.p50_ms <= each.p95_ms for each in run.timings)
    assert any("has no reranker" in note for note in run.notes)
    assert any("1 documents of the corpus are empty" in note for note in run.notes)
    told = check_is_harmless((path / REPORT).read_text())
    assert "Who said that a page is well formed?" in told.text
    assert "<script>alert(1)</script>" in told.text
    assert {each.name for each in path.iterdir()} == {RUN, REPORT}
    assert "nDCG@10" in printed
    assert str(path / REPORT) in printed.replace("\n", "")


async def test_a_corpus_that_is_there_in_part_is_completed_and_nothing_is_added_twice(
    commands: Commands, tmp_path: Path
) -> None:
    folder = write_beir(tmp_path)
    asked = read_beir(folder)
    async with commands.remote() as remote:
        collection_id = await remote.collection("eval-harbour")
        (tmp_path / file_name("lamp")).write_text(asked.documents["lamp"])
        batch = await remote.attach(collection_id, [await remote.upload(tmp_path / file_name("lamp"))])
        async for _ in remote.batch_events(collection_id, batch):
            pass
        for _ in range(2):
            notes = await ingest_corpus(remote, asked, "eval-harbour", console=console)
            assert notes == ["1 documents of the corpus are empty and were left out."]
            names = sorted((await remote.documents(collection_id)).values())
            assert names == sorted(file_name(each) for each in DOCUMENTS if each != "empty")
    await commands.succeed("retrieval", folder, "--collection", collection_id, "--stages", "fused")
    assert len(read_run(commands.runs[0]).outcomes) == len(JUDGED)


async def test_names_of_files_arrive_as_they_are(commands: Commands, tmp_path: Path) -> None:
    names = ["Größe 1 (a).txt", '50% "net" = %20; b.txt', "日本語 報告.txt", "two\nlines.txt"]
    async with commands.remote() as remote:
        collection_id = await remote.collection("names")
        for name in names:
            (tmp_path / name).write_text(f"A text of its own about {name}.")
        batch = await remote.attach(collection_id, [await remote.upload(tmp_path / name) for name in names])
        async for _ in remote.batch_events(collection_id, batch):
            pass
        arrived = (await remote.documents(collection_id)).values()
    assert sorted(arrived) == sorted([*names[:3], "twolines.txt"])


async def test_a_run_that_was_killed_asks_only_what_is_missing(commands: Commands, tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    await commands.succeed("retrieval", folder, "--ingest", "--stages", "bm25,fused")
    (whole,) = commands.runs
    run = read_run(whole)
    # What a kill within the second stage leaves: the start, some outcomes, and a line cut in its middle.
    cut = whole.with_name("cut")
    cut.mkdir()
    begun = run.model_dump_json(
        include={"format", "kind", "name", "main_metric", "settings", "versions", "started_at"}
    )
    (cut / BEGUN).write_text(begun)
    kept = [each.model_copy(update={"metrics": {}, "seconds": 123.0}) for each in run.outcomes[:5]]
    lines = [each.model_dump_json(exclude_defaults=True) for each in kept]
    (cut / OUTCOMES).write_text("\n".join([*lines, lines[0][:20]]))
    await commands.succeed("retrieval", folder, "--stages", "bm25,fused", "--resume", cut)
    resumed = read_run(cut)
    assert [each.seconds == 123.0 for each in resumed.outcomes] == [True] * 5 + [False] * 3
    assert [each.metrics for each in resumed.outcomes] == [each.metrics for each in run.outcomes]
    assert commands.runs == sorted([whole, cut])


async def test_two_runs_and_two_stages_are_compared(commands: Commands, tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    await commands.succeed("retrieval", folder, "--ingest", "--stages", "bm25,fused", "--name", "first")
    (first,) = commands.runs
    printed = await commands.succeed("compare", first, first)
    assert printed.count("No question changed in nDCG@10.") == 2
    assert "A: bm25" in await commands.succeed("compare", first, first, "--stages", "bm25,fused")
    assert "--stages takes two" in await commands.fail("compare", first, first, "--stages", "bm25")


async def test_some_queries_are_chosen_by_a_file_of_ids(commands: Commands, tmp_path: Path) -> None:
    only = tmp_path / "ids.txt"
    only.write_text("q2\nq4\n")
    await commands.succeed("retrieval", write_beir(tmp_path), "--ingest", "--stages", "rrf", "--only", only)
    assert set(read_run(commands.runs[0]).of("rrf")) == {"q2", "q4"}


async def test_what_cannot_be_evaluated_is_refused_with_what_to_change(
    commands: Commands, tmp_path: Path
) -> None:
    folder = write_beir(tmp_path)
    told = await commands.fail("retrieval", folder)
    assert "There is no collection 'eval-harbour'" in told
    assert "--ingest" in told
    assert "There is no stage 'sparse'" in await commands.fail("retrieval", folder, "--stages", "sparse")
    await commands.api.add_document(await commands.api.store("eval-harbour"), "other.txt", "Another text.")
    assert "holds no document of harbour" in await commands.fail("retrieval", folder)
    shutil.rmtree(folder / "qrels")
    assert "test.tsv is missing" in await commands.fail("retrieval", folder)
    assert commands.runs == []
