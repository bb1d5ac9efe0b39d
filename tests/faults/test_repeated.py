"""A reply that is lost on its way: whoever asks again gets the same, and nothing is there twice."""

import asyncio
from pathlib import Path

from sqlalchemy import func, select

from retrieval.tables import Blob
from tests.app.alone import api_alone

CONTENT = b"The Halcyon is moored at the north quay."
AGAIN = 5


async def test_what_is_sent_again_is_one_document_and_one_file_on_disk(tmp_path: Path) -> None:
    async with api_alone(tmp_path / "data") as alone:
        store = (await alone.client.vector_stores.create(name="quays")).id
        uploads = await asyncio.gather(
            *(alone.http.post("/v1/files", files={"file": ("a.txt", CONTENT)}) for _ in range(AGAIN))
        )
        assert {reply.status_code for reply in uploads} == {200}
        with alone.services.storage.database.read() as session:
            assert session.scalar(select(func.count()).select_from(Blob)) == 1

        body = {"file_id": uploads[0].json()["id"]}
        attached = await asyncio.gather(
            *(alone.http.post(f"/v1/vector_stores/{store}/files", json=body) for _ in range(AGAIN))
        )
        assert {reply.status_code for reply in attached} == {200}
        await alone.worker.drain()
        assert (await alone.http.post(f"/v1/vector_stores/{store}/files", json=body)).status_code == 200
        await alone.worker.drain()
        counts = (await alone.http.get(f"/v1/vector_stores/{store}")).json()["file_counts"]
        assert (counts["completed"], counts["total"]) == (1, 1)
        search = {"query": "moored north quay", "search_mode": "keyword"}
        found = await alone.http.post(f"/v1/vector_stores/{store}/search", json=search)
        assert len(found.json()["data"]) == 1

        deleted = await asyncio.gather(
            *(alone.http.delete(f"/v1/files/{body['file_id']}") for _ in range(AGAIN))
        )
        assert sorted({reply.status_code for reply in deleted}) == [200, 404]
        assert [reply.status_code for reply in deleted].count(200) == 1
