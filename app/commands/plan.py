"""`strongroom plan`: which generation models fit on this machine, with how much cache and at what speed, about."""

from rich.table import Table

from app.commands.terminal import AsJson, console, print_json
from app.running.planning import GIB, SIZES, Budget, Fit, budgets, fit, local_models
from app.settings import read_settings


def plan(
    as_json: AsJson = False,
) -> None:
    """Show how memory is shared out here, which models fit, and what to expect of them: an estimate."""
    settings = read_settings()
    longest = settings.engine.max_model_len
    plans = [
        (budget, [fit(budget, model, max_model_len=longest) for model in (*local_models(settings), *SIZES)])
        for budget in budgets(settings)
    ]
    if as_json:
        print_json([_told(budget, fits) for budget, fits in plans])
        return
    for budget, fits in plans:
        console.print(
            f"[bold]{budget.device}[/]: {budget.total_bytes / GIB:.1f} GiB, of which an engine gets "
            f"{budget.engine_bytes / GIB:.1f} beside the embedding and reranking models that are set."
        )
        if budget.share is not None:
            console.print(
                "`strongroom serve` sees to that; docker compose by "
                f"STRONGROOM_ENGINE__GPU_MEMORY_UTILIZATION={budget.share} in .env.",
                soft_wrap=True,
            )
        table = Table(
            "model",
            "weights",
            "key-value cache",
            f"answers of {longest} tokens at once",
            "tokens/s of one, at most about",
        )
        for each in fits:
            table.add_row(
                each.model.name,
                f"{each.model.weights_bytes / GIB:.1f} GiB",
                f"{each.cache_bytes / GIB:.1f} GiB" if each.fits else "",
                f"{each.answers:,.0f}" if each.fits else "[red]does not fit[/]",
                f"{each.tokens_per_s:,.0f}" if each.fits and each.tokens_per_s is not None else "",
            )
        console.print(table)
    console.print(
        "Tokens a second are estimated from the speed of memory, for one answer at a time; "
        "`strongroom bench` measures them. Several GPUs can share one model: engine.tensor_parallel."
    )


def _told(budget: Budget, fits: list[Fit]) -> dict[str, object]:
    return {
        "device": budget.device,
        "memory_bytes": budget.total_bytes,
        "engine_bytes": budget.engine_bytes,
        "gpu_memory_utilization": budget.share,
        "models": [
            {
                "name": each.model.name,
                "weights_bytes": each.model.weights_bytes,
                "fits": each.fits,
                "cache_bytes": each.cache_bytes,
                "cache_tokens": each.tokens,
                "answers_at_once": round(each.answers, 1),
                "estimated_tokens_per_s": None if each.tokens_per_s is None else round(each.tokens_per_s, 1),
            }
            for each in fits
        ],
    }
