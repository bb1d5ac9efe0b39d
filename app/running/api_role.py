"""The api role as a program: `python -m app.running.api_role`. Commands need not wait for its imports."""

from app.api import create_app
from app.logs import start_logs
from app.observing.tracing import exporting
from app.running.core_dumps import forbid_core_dumps
from app.running.http_server import run_http
from app.settings import read_settings


def main() -> None:
    settings = read_settings()
    start_logs("api", settings.server.log_level)
    forbid_core_dumps()
    with exporting(settings.traces, "api"):
        run_http(
            create_app(settings),
            settings.server.host,
            settings.server.port,
            drain_s=settings.server.drain_s,
        )


if __name__ == "__main__":
    main()
