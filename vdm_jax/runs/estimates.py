"""Several likelihood estimates of one checkpoint: one table, one JSON file."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vdm_jax.runs.trained import UNFINISHED, TrainedModel
from vdm_jax.runtime.files import write_checked, write_text
from vdm_jax.runtime.processes import is_first
from vdm_jax.training.progress import remove_progress
from vdm_jax.training.state import step_of

ESTIMATES, TABLE = "estimates.json", "estimates.md"

COLUMNS = {
    "estimator": lambda row: row["settings"]["name"],
    "test bits/dim": lambda row: f"{row['bits_per_dim']:.4f} ± {row['standard_error']:.4f}",
    "T": lambda row: _steps(row["settings"]),
    "M": lambda row: row["settings"].get("samples"),
    "draws": lambda row: row["settings"].get("draws"),
    "dequantization": lambda row: row["settings"].get("dequantization"),
    "calls per example": lambda row: row["calls"],
    "grid difference": lambda row: _signed(row["discretization"]),
    "seconds": lambda row: f"{row['seconds']:.1f}",
}
"""Heading -> function of a row of `estimate` that returns a cell; a cell that is None is shown as a dash."""


def estimate(
    trained: TrainedModel, log: Callable[[str], None], split: str = "test"
) -> list[dict[str, Any]]:
    """Evaluate the estimators of the config on a split, and log each result.

    After an interruption, evaluations that took longer than `SAVE_SECONDS` are read from the folder, and the
    interrupted one continues after its last saved batch. `report_estimates` removes these files.

    Returns:
      The fields of an `Evaluation`, and "seconds" of wall time, of which compilation is a part, for each.
    """
    rows = []
    for spec in trained.settings.evaluate.estimators:
        start = time.monotonic()
        result = trained.evaluate(split, estimator=spec, resume=True)
        seconds = time.monotonic() - start
        log(f"{split}: {result}")
        settings = dict(result.settings)
        rows.append(result._asdict() | {"settings": settings, "seconds": seconds})
    return rows


def report_estimates(trained: TrainedModel, workdir: Path, log: Callable[[str], None]) -> None:
    """Evaluate the estimators of the config on the test split; write a table and a JSON file of several."""
    rows = estimate(trained, log)
    if len(rows) == 1:  # no file is written, so that a run can be evaluated while it trains
        remove_progress(trained.workdir / UNFINISHED)
        return
    files = {"table": workdir / TABLE, "estimates": workdir / ESTIMATES}
    table = estimates_table(rows)
    log(table)
    if is_first():
        trained.check_folder()
        about = {"of": trained.identity, "step": step_of(trained.state)}
        write_text(files["table"], table + "\n")
        write_checked(files["estimates"], about | {"test": rows})
        remove_progress(trained.workdir / UNFINISHED)
    for name, file in files.items():
        log(f"  {name:<15} {file}")


def estimates_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of estimates of one checkpoint, with a legend."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = [cell(row) for cell in COLUMNS.values()]
        shown = ["–" if value is None else str(value) for value in cells]
        lines.append(f"| {' | '.join(shown)} |")
    row = rows[0]
    about = (
        f"± standard error over the examples; {row['data']}, {row['examples']} examples; EMA weights of step "
        f"{row['step']}. elbo, tuned and importance are upper bounds for the chain with T steps; ode is of the "
        "probability flow, and its calls also compute gradients. Seconds are of the last command and include "
        "compilation."
    )
    return "\n".join([*lines, "", about])


def _steps(settings: Mapping[str, Any]) -> str | None:
    """Return T, or the solver and the steps of its grid; None for an estimator without either."""
    if "solver" in settings:
        return f"{settings['steps']} {settings['solver']}"
    if "timesteps" not in settings:
        return None
    return "∞" if settings["timesteps"] is None else str(settings["timesteps"])


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.4f}"
