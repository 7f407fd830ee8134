"""The metrics of each step: means for the log, skipped updates, spikes of the loss."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdm_jax.runtime.console import log
from vdm_jax.runtime.processes import is_first
from vdm_jax.training.logs import MetricsLog

SPIKE = 10.0
"""Standard deviations above the mean of the last losses that make a loss a spike."""

MEMORY = 100
"""Steps over which that mean and deviation are taken, with exponentially falling weights."""


class Meter:
    """Takes the metrics of each step, watches them and writes their means.

    Attributes:
      step: the last one that was taken.
      carried: sums since the last line, streaks and spreads of the losses, number of lines; a checkpoint keeps
        them, so that the lines of a run do not depend on where it was interrupted.
      ended: what has diverged and at which step, or None.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        *,
        every: int,
        step: int,
        begun: dict[str, Any],
        patience: int,
        names: Sequence[str] = (),
    ):
        self.log, self.every, self.step, self.patience = log, every, step, patience
        self.runs = names or ("",)
        self.sums: dict[str, float] = dict(begun.get("sums", {}))
        self.streaks: dict[str, int] = dict(begun.get("streaks", {}))
        self.spreads: dict[str, list[float]] = dict(begun.get("spreads", {}))
        self.lost: dict[str, str] = {}  # and why
        self.ended: tuple[str, int] | None = None

    @property
    def carried(self) -> dict[str, Any]:
        return {
            "sums": dict(self.sums),
            "streaks": dict(self.streaks),
            "spreads": dict(self.spreads),
            "lines": 0 if self.log is None else self.log.lines,
        }

    def add(self, metrics: dict[str, Any]) -> str:
        """Take the metrics of a dispatch, arrays [n], or of several runs [n, R], named "run/metric" then.

        Returns a word on them for the progress bar.
        """
        arrays = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        shown = "bits_per_dim" if "bits_per_dim" in arrays else "loss"
        word = f"{shown.replace('_per_', '/')} {np.mean(arrays[shown]):.3f}"
        columns = {name: value.reshape(len(value), -1).tolist() for name, value in arrays.items()}
        for values in zip(*columns.values(), strict=True):
            self.step += 1
            before = {*self.lost}
            for i, run in enumerate(self.runs):
                self._take(run, {n: v[i] for n, v in zip(columns, values, strict=True)})
            self._judge(before)
            if self.ended is not None:
                break
            if self.step % self.every == 0:
                self._write()
        return word

    def note(self, metrics: dict[str, float]) -> None:
        """Write a line of its own."""
        if self.log is not None:
            self.log.write(self.step, metrics)

    def _take(self, run: str, row: dict[str, float]) -> None:
        """The metrics of a run at a step."""
        skipped = row.pop("skipped") > 0
        self._sum(run, "skipped", float(skipped))
        if skipped:
            self._skip(run, row)
            return
        self.streaks.pop(run, None)
        if self.lost.pop(run, None):  # no bad step has touched its parameters
            self._say(f"{run} goes on: the update of step {self.step} was applied")
        self._sum(run, "steps", 1.0)
        for name, value in row.items():
            self._sum(run, name, value)
        if self._spikes(run, row["loss"]):
            self._sum(run, "spikes", 1.0)

    def _sum(self, run: str, name: str, value: float) -> None:
        key = f"{run}/{name}" if run else name
        self.sums[key] = self.sums.get(key, 0.0) + value

    def _skip(self, run: str, row: dict[str, float]) -> None:
        """Count a step whose update was not applied; by so many in a row a run is lost."""
        streak = self.streaks.get(run, 0) + 1
        self.streaks[run] = streak
        name = next((n for n in ("loss", "grad_norm") if not math.isfinite(row[n])), "loss")
        what = f"{run}: {name} is {row[name]}" if run else f"{name} is {row[name]}"
        if run in self.lost:
            return
        self._say(
            f"{what} at step {self.step}: update not applied ({streak} in a row, "
            f"the run ends at {self.patience})"
        )
        if streak >= self.patience:
            self.lost[run] = what

    def _judge(self, before: set[str]) -> None:
        """End if all runs are lost, of which `before` were so earlier; once all have taken the step.

        Of several side by side the others go on, for they share nothing with one that is lost.
        """
        if self.lost.keys() == {*self.runs}:
            self.ended = [*self.lost.values()][-1], self.step
            return
        for run in self.lost:
            if run not in before:
                self._say(f"{run} is lost, the others go on")

    def _spikes(self, run: str, loss: float) -> bool:
        """Return True if a loss is far above those before it."""
        mean, variance, seen = self.spreads.get(run, [0.0, 0.0, 0])
        above = loss - mean
        spike = seen >= MEMORY and above > SPIKE * math.sqrt(variance)
        if spike:
            words = f"{run}: loss" if run else "loss"
            self._say(
                f"{words} {loss:.4g} at step {self.step} is a spike: about {MEMORY} steps before it "
                f"had {mean:.4g} ± {math.sqrt(variance):.4g}"
            )
        weight = 1 / min(seen + 1, MEMORY)
        self.spreads[run] = [
            mean + weight * above,
            (1 - weight) * (variance + weight * above**2),
            seen + 1,
        ]
        return spike

    def _say(self, line: str) -> None:
        if is_first():
            log(line)

    def _write(self) -> None:
        """Write the means since the last line, and how many steps were skipped or spikes."""
        if self.log is not None:
            line = {}
            for key, value in self.sums.items():
                run, _, name = key.rpartition("/")
                steps = self.sums.get(f"{run}/steps" if run else "steps", 0)
                if name in ("skipped", "spikes"):
                    line[key] = value
                elif name != "steps" and steps > 0:
                    line[key] = value / steps
            self.log.write(self.step, line)
        self.sums = {}
