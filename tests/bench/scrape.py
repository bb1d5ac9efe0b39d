"""How long /metrics takes beside 10,000 collections: `python -m tests.bench --only scrape [--quick]`."""

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from rich.progress import Progress
from sqlalchemy import insert, select

from app.access.auth import DEFAULT_TENANT
from app.settings import read_settings
from app.storage.opening import open_storage
from retrieval.tables import Collection, Tenant, new_id
from tests.api_role import ApiRole
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.peers import gateways, load
from tests.bench.peers.load import LoadProcess
from tests.bench.run import QUICK_REASON
from tests.faults.ingesting import quick_models
from tests.faults.quick_models import ALIAS

SAYS = "a scrape of /metrics beside 10,000 collections, models and an engine included, p95"
MUST_BE = Bound(20.0, is_upper=True)
COLLECTIONS, QUICK_COLLECTIONS = 10_000, 100
SCRAPES, QUICK_SCRAPES = 200, 10


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-scrape-") as folder,
        gateways.mock_engine(Path(folder)) as engine,
        quick_models(Path(folder) / "models.log") as models_url,
        ApiRole(
            Path(folder) / "data",
            {
                "STRONGROOM_ENGINE__URL": engine.url,
                "STRONGROOM_MODELS__URL": models_url,
                "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            },
        ) as api,
        LoadProcess() as process,
    ):
        count = QUICK_COLLECTIONS if is_quick else COLLECTIONS
        _add_collections(Path(folder) / "data", count)
        api.start()
        progress.console.print(f"scrape: {count} collections", highlight=False)
        request = (
            f"GET /metrics HTTP/1.1\r\nHost: {urlsplit(api.url).netloc}\r\nAuthorization: Bearer {api.key}\r\n\r\n"
        ).encode()
        scrapes = 1 + (QUICK_SCRAPES if is_quick else SCRAPES)
        answers = load.checked(process.run(load.one_by_one, api.url, [request] * scrapes))[1:]
        told = process.run(load.ask, api.url, request).body
    if f"strongroom_collections {count}.0".encode() not in told:
        raise MeasureFailed("The scrape does not tell of all collections.")
    samples = Samples.milliseconds([each.seconds for each in answers])
    return [
        Figure(
            "scrape",
            SAYS,
            unit="ms",
            measured=round(samples.percentile(95), 1),
            bound=MUST_BE,
            is_judged=not is_quick,
            reason=QUICK_REASON if is_quick else "",
            samples={"scrape": samples},
            facts={"bytes of a scrape": len(told), "cores": os.cpu_count() or 1},
        )
    ]


def _add_collections(data_dir: Path, count: int) -> None:
    settings = read_settings().with_options(storage={"data_dir": str(data_dir)})
    with open_storage(settings) as storage, storage.database.write() as session:
        tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == DEFAULT_TENANT)).one()
        row = {"tenant_id": tenant_id, "attributes": {}, "created_at": 1.0, "last_active_at": 1.0}
        rows = [{**row, "id": new_id("vs_"), "name": f"collection {each}"} for each in range(count)]
        session.execute(insert(Collection), rows)
