"""Step metrics: means for the log, skipped updates, loss spikes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from vdm_jax.runtime.console import log
from vdm_jax.runtime.processes import is_first
from vdm_jax.training.logs import MetricsLog

SPIKE = 10.0
"""Number of standard deviations above the mean of the recent losses from which a loss is a spike."""

MEMORY = 100
"""Time constant, in steps, of the exponential moving mean and variance of the losses."""


class Meter:
    """Aggregator of step metrics, which writes their means and detects divergence.

    Args:
      metrics_log: where the means are written; None to write nothing.
      every: steps between two lines.
      step: the step from which the run continues.
      begun: `carried` of the checkpoint of that step, or {}.
      patience: number of consecutive skipped updates after which a run counts as diverged.
      names: names of the runs of a sweep; empty for a single run.

    Attributes:
      step: the last step that was added.
      lost: runs that have diverged, with the reason.
      ended: the reason and the step at which all runs had diverged, or None.
    """

    def __init__(
        self,
        metrics_log: MetricsLog | None,
        *,
        every: int,
        step: int,
        begun: dict[str, Any],
        patience: int,
        names: Sequence[str] = (),
    ):
        self.metrics_log, self.every = metrics_log, every
        self.step, self.patience = step, patience
        self.runs = names or ("",)
        self.sums: dict[str, float] = dict(begun.get("sums", {}))
        self.streaks: dict[str, int] = dict(begun.get("streaks", {}))
        self.spreads: dict[str, list[float]] = dict(begun.get("spreads", {}))
        self.lost: dict[str, str] = {}
        self.ended: tuple[str, int] | None = None

    @property
    def carried(self) -> dict[str, Any]:
        """State to store in a checkpoint, so that a resumed run writes the lines of an uninterrupted one.

        The sums since the last line; of each run, the streak of skipped updates and the mean, variance and
        number of the losses; the number of lines of the log.
        """
        return {
            "sums": dict(self.sums),
            "streaks": dict(self.streaks),
            "spreads": dict(self.spreads),
            "lines": 0 if self.metrics_log is None else self.metrics_log.lines,
        }

    def add(self, metrics: Mapping[str, ArrayLike]) -> str:
        """Add the metrics of the steps of a dispatch: arrays [n], or [n, R] for the R runs of a sweep.

        Returns:
          A short summary for the progress bar.
        """
        arrays = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        metric = "bits_per_dim" if "bits_per_dim" in arrays else "loss"
        summary = f"{metric.replace('_per_', '/')} {np.mean(arrays[metric]):.3f}"
        # nested lists [n][R]: Python floats are faster to add one by one than NumPy scalars
        columns = {name: array.reshape(len(array), -1).tolist() for name, array in arrays.items()}
        for step_values in zip(*columns.values(), strict=True):
            self.step += 1
            lost_before = {*self.lost}
            for i, run in enumerate(self.runs):
                row = {name: v[i] for name, v in zip(columns, step_values, strict=True)}
                self._add_run(run, row)
            self._check_lost(lost_before)
            if self.ended is not None:
                break
            if self.step % self.every == 0:
                self._write_means()
        return summary

    def write(self, metrics: dict[str, float]) -> None:
        """Write metrics of the current step as a separate line."""
        if self.metrics_log is not None:
            self.metrics_log.write(self.step, metrics)

    def _add_run(self, run: str, row: dict[str, float]) -> None:
        """Add the metrics of one run at the current step."""
        skipped = row.pop("skipped") > 0
        self._add_to_sum(run, "skipped", float(skipped))
        if skipped:
            self._count_skipped(run, row)
            return
        self.streaks.pop(run, None)
        # skipped updates leave the parameters unchanged, so that a lost run can recover
        if self.lost.pop(run, None):
            self._report(f"{run} continues: the update of step {self.step} was applied")
        self._add_to_sum(run, "steps", 1.0)
        for name, value in row.items():
            self._add_to_sum(run, name, value)
        if self._is_spike(run, row["loss"]):
            self._add_to_sum(run, "spikes", 1.0)

    def _add_to_sum(self, run: str, name: str, value: float) -> None:
        key = f"{run}/{name}" if run else name
        self.sums[key] = self.sums.get(key, 0.0) + value

    def _count_skipped(self, run: str, row: dict[str, float]) -> None:
        """Count and report a skipped update; after `patience` consecutive ones the run is lost."""
        streak = self.streaks.get(run, 0) + 1
        self.streaks[run] = streak
        name = next((n for n in ("loss", "grad_norm") if not math.isfinite(row[n])), "loss")
        reason = f"{run}: {name} is {row[name]}" if run else f"{name} is {row[name]}"
        if run in self.lost:
            return
        self._report(
            f"{reason} at step {self.step}: update not applied ({streak} in a row, "
            f"the run ends at {self.patience})"
        )
        if streak >= self.patience:
            self.lost[run] = reason

    def _check_lost(self, lost_before: set[str]) -> None:
        """End if all runs are lost; report those that were not lost before this step.

        Called after all runs have been added, because a lost run may recover at the step at which another one
        is lost. The runs of a sweep share nothing, so that the others continue.
        """
        if self.lost.keys() == {*self.runs}:
            self.ended = [*self.lost.values()][-1], self.step
            return
        for run in self.lost:
            if run not in lost_before:
                self._report(f"{run} is lost, the others continue")

    def _is_spike(self, run: str, loss: float) -> bool:
        """Return True if a loss is far above the recent ones, and add it to their mean and variance."""
        mean, variance, count = self.spreads.get(run, [0.0, 0.0, 0])
        deviation = loss - mean
        # the first losses fall from far above, and their spread is not known yet
        spike = count >= MEMORY and deviation > SPIKE * math.sqrt(variance)
        if spike:
            label = f"{run}: loss" if run else "loss"
            self._report(
                f"{label} {loss:.4g} at step {self.step} is a spike: about {MEMORY} steps before it "
                f"had {mean:.4g} ± {math.sqrt(variance):.4g}"
            )
        # plain averages of the first MEMORY losses, exponential ones from there on
        weight = 1 / min(count + 1, MEMORY)
        self.spreads[run] = [
            mean + weight * deviation,
            (1 - weight) * (variance + weight * deviation**2),
            count + 1,
        ]
        return spike

    def _report(self, line: str) -> None:
        if is_first():
            log(line)

    def _write_means(self) -> None:
        """Write the means since the last line, and the numbers of skipped steps and of spikes."""
        if self.metrics_log is not None:
            line = {}
            for key, value in self.sums.items():
                run, _, name = key.rpartition("/")
                steps = self.sums.get(f"{run}/steps" if run else "steps", 0)
                if name in ("skipped", "spikes"):
                    line[key] = value
                elif name != "steps" and steps > 0:
                    line[key] = value / steps
            self.metrics_log.write(self.step, line)
        self.sums = {}
