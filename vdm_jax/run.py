"""A run from its config: train it, load it, evaluate it, draw from it. One folder holds all of it.

config.json        the resolved config
statistics.npz     what the model knows of the training split
checkpoints/       states, by step
metrics.jsonl      training metrics, also in tensorboard/
evaluation.json    the last evaluation, written when the pictures are
samples.png  loss.png
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.config import difference, to_dict
from vdm_jax.data import Dataset, eval_batches, level_counts, load_dataset, train_batches
from vdm_jax.models import Model, Statistics, build_model
from vdm_jax.models.statistics import fit_statistics, load_statistics, save_statistics
from vdm_jax.specs import choose
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.evaluate import Evaluation, evaluate, make_evaluator
from vdm_jax.training.logs import MetricsLog, read_metrics
from vdm_jax.training.loop import fit
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.pictures import loss_curve, sample_grid
from vdm_jax.training.state import TrainState, init_state
from vdm_jax.training.step import make_step
from vdm_jax.typing import Array, Key

STREAMS = {"params": 0, "train": 1, "evaluate": 2, "sample": 3}
"""Independent randomness of a run's parts, each folded into its seed."""


@dataclass(frozen=True)
class Trained:
    """A trained model and its run.

    Attributes:
      config: resolved, plain dictionaries.
      model: the pure functions.
      statistics: of the training split.
      state: the last one; `state.ema_params` are what is evaluated and sampled from.
      workdir: the run's folder.
    """

    config: dict[str, Any]
    model: Model
    statistics: Statistics
    state: TrainState
    workdir: Path
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def dataset(self) -> Dataset:
        """The data, loaded when first needed."""
        return load_dataset(**self.config["data"])

    def sample(self, key: Key, n: int, **options: Any) -> Array:
        """Draw n examples [n, *d], as stored (integers for K-level data).

        Args:
          key: randomness.
          n: how many.
          **options: sampler, steps; the config's by default.
        """
        chosen = {k: v for k, v in self.config["sample"].items() if k != "count"} | options
        draw = jax.jit(partial(self.model.sample, n=n, **chosen))
        draw = self._compiled.setdefault(repr((n, chosen)), draw)
        return draw(self.state.ema_params, key)

    def bits_per_dim(self, split: str = "test") -> float:
        """The bound of "train" or "test" in bits per dimension; `evaluate` has the error and the parts."""
        return self.evaluate(split).bits_per_dim

    def evaluate(
        self, split: str = "test", *, draws: int | None = None, batch_size: int | None = None
    ) -> Evaluation:
        """Evaluate the EMA weights on a whole split, each example once.

        Args:
          split: "train" or "test".
          draws: latents per example; the config's by default.
          batch_size: the config's by default; the result does not depend on it.

        Raises:
          ValueError: another split, draws or batch_size below 1.
        """
        data, settings = self.dataset, self.config["evaluate"]
        chosen = choose({"train": data.train, "test": data.test}, split, "split")
        n: int = settings["draws"] if draws is None else draws
        size: int = settings["batch_size"] if batch_size is None else batch_size
        if n < 1:
            raise ValueError(f"draws is {n}, expected at least 1")
        evaluator = self._compiled.setdefault(n, make_evaluator(self.model, n))
        return evaluate(
            evaluator,
            self.state.ema_params,
            stream(self.config["seed"], "evaluate"),
            eval_batches(chosen, batch_size=min(size, len(chosen.images))),
            dim=int(np.prod(data.shape)),
            estimator=f"{self.model.bound}, {n} draws per example; {self.model.components}",
            data=f"{data.name} {data.version}, split {chosen.name}",
            step=int(self.state.step),
        )


def train(config: Any, workdir: str | Path, *, say: Callable[[str], None] = print) -> Trained:
    """Train the model of a config in a folder, or continue the run that is there.

    Args:
      config: of `vdm_jax.config.default`, as a ConfigDict or nested mapping.
      workdir: the run's folder; made if missing.
      say: gets one line for each thing that is done and where it was put.

    Returns:
      The trained run, evaluated on the test split, with its pictures written.

    Raises:
      ValueError, TypeError, OSError: a mistake in the config, the data or the folder; before compilation.
      FloatingPointError: the loss is not finite.
    """
    plain, workdir = to_dict(config), Path(workdir)
    dataset = load_dataset(**plain["data"])
    batch_size, steps = plain["train"]["batch_size"], plain["train"]["steps"]
    if batch_size > len(dataset.train.images):
        raise ValueError(
            f"config.train.batch_size: {dataset.train.name!r} has {len(dataset.train.images)} examples, "
            f"less than one batch of {batch_size}"
        )
    # everything is built and tried before the folder is touched, so that a mistake leaves nothing behind
    counts = level_counts(dataset.train.images, dataset.levels)
    optimizer, _ = make_optimizer(**plain["optimizer"])
    _rehearse(plain, build_model(plain["model"], fit_statistics(counts)), dataset)
    _claim(workdir, plain)

    path = workdir / "statistics.npz"
    if not path.exists():
        sample = dataset.train.images[np.arange(min(1024, len(dataset.train.images)))]
        save_statistics(path, fit_statistics(counts, sample, base=plain["model"].get("base")))
    statistics = load_statistics(path)
    model = build_model(plain["model"], statistics)

    settings = dict(plain["train"])
    for used in ("batch_size", "steps"):
        del settings[used]
    stack = settings.pop("steps_per_dispatch")
    ema = {name: settings.pop(name) for name in ("ema_decay", "ema_warmup")}
    with CheckpointStore(workdir / "checkpoints") as store:
        state = _start(plain, model, optimizer, store)
        start = int(state.step)
        if start >= steps:
            say(f"already trained: {workdir} is at step {start}, {steps} asked for")
        else:
            if start > 0:
                say(f"continuing from step {start} in {workdir}")
            with MetricsLog(workdir, start) as log:
                state = fit(
                    state,
                    make_step(model.loss, optimizer, **ema),
                    train_batches(
                        dataset.train,
                        batch_size=batch_size,
                        seed=plain["seed"],
                        start_step=start,
                        stop_step=steps,
                        stack=stack,
                    ),
                    steps=steps,
                    store=store,
                    log=log,
                    about={"config": plain, "seed": plain["seed"], "data": dataset.name},
                    **settings,
                )
    trained = Trained(plain, model, statistics, state, workdir)
    trained.__dict__["dataset"] = dataset
    report(trained, say)
    return trained


def load(workdir: str | Path) -> Trained:
    """Load the newest checkpoint of a run.

    Raises:
      FileNotFoundError: there is no run, or none with a checkpoint.
    """
    workdir = Path(workdir)
    for name in ("config.json", "statistics.npz", "checkpoints"):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"no run to load in {workdir}: {name} is missing")
    plain = to_dict(_read_json(workdir / "config.json"))
    statistics = load_statistics(workdir / "statistics.npz")
    model = build_model(plain["model"], statistics)
    optimizer, _ = make_optimizer(**plain["optimizer"])
    with CheckpointStore(workdir / "checkpoints") as store:
        state = store.restore(jax.eval_shape(partial(_fresh, plain, model, optimizer)))
    return Trained(plain, model, statistics, state, workdir)


def report(trained: Trained, say: Callable[[str], None] = print) -> None:
    """Evaluate on the test split, draw the pictures and say where everything is.

    What was done for the same step and settings is not done again.
    """
    workdir, step = trained.workdir, int(trained.state.step)
    path, picture, curve = (workdir / n for n in ("evaluation.json", "samples.png", "loss.png"))
    wanted = {
        "step": step,
        "evaluate": trained.config["evaluate"],
        "sample": trained.config["sample"],
    }
    saved = _read_json(path) if path.exists() else {}
    same = {name for name, value in wanted.items() if saved.get(name) == value}
    evaluated = {"step", "evaluate"} <= same
    result = Evaluation(**saved["test"]) if evaluated else trained.evaluate("test")
    say(f"test: {result}")
    if not ({"step", "sample"} <= same and picture.exists()):
        draw_samples(trained, picture)
    if not (evaluated and curve.exists()):
        rows, title = read_metrics(workdir / "metrics.jsonl"), trained.model.components
        loss_curve(curve, rows, test=result, title=title)
    if len(same) < len(wanted):
        _write_json(path, wanted | {"test": result._asdict()})
    say(f"  evaluation   {path}")
    say(f"  samples      {picture}")
    say(f"  loss curve   {curve}")
    say(f"  config       {workdir / 'config.json'}")
    say(f"  checkpoint   {workdir / 'checkpoints' / str(step)}")


def draw_samples(trained: Trained, path: Path) -> None:
    """Save samples of the config's number and sampler beside real test images."""
    data, settings = trained.dataset, trained.config["sample"]
    count = settings["count"]
    samples = trained.sample(stream(trained.config["seed"], "sample"), count)
    real = data.test.images[np.arange(min(count, len(data.test.images)))]
    sample_grid(
        path,
        np.asarray(samples),
        np.asarray(real),
        levels=data.levels,
        samples_title=f"samples ({settings['sampler']}, {settings['steps']} steps, "
        f"training step {int(trained.state.step)})",
        real_title=f"{data.name}, {data.test.name}",
    )


def stream(seed: int, name: str) -> Key:
    """The key of one part of a run."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def _fresh(config, model, optimizer) -> TrainState:
    params = model.init(stream(config["seed"], "params"))
    return init_state(params, optimizer, stream(config["seed"], "train"))


def _start(config, model, optimizer, store: CheckpointStore) -> TrainState:
    fresh = partial(_fresh, config, model, optimizer)
    return jax.jit(fresh)() if store.latest() is None else store.restore(jax.eval_shape(fresh))


def _rehearse(config: dict[str, Any], model: Model, dataset: Dataset) -> None:
    """Trace what will be run, on shapes alone: what does not fit together shows here, not after hours."""
    key = stream(config["seed"], "params")
    batch = jax.ShapeDtypeStruct((2, *dataset.shape), np.uint8)
    try:
        params = jax.eval_shape(model.init, key)
        jax.eval_shape(model.loss, params, key, batch)
    except Exception as error:  # of any network library
        data = f"{dataset.name!r} of shape {dataset.shape}"
        line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"config.model: cannot be computed on {data}: {type(error).__name__}: {line}"
        ) from error
    settings = {name: value for name, value in config["sample"].items() if name != "count"}
    jax.eval_shape(partial(model.sample, n=1, **settings), params, key)


def _claim(workdir: Path, config: dict[str, Any]) -> None:
    """Make the folder this config's own, or find that it is."""
    path = workdir / "config.json"
    if path.exists():
        lines = difference(_read_json(path), config)
        if lines:
            raise ValueError(
                f"{workdir} holds a run of another config; give another --workdir, or undo: "
                + "; ".join(lines)
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(path, config)
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all, for a run may be killed at any time."""
    whole = path.with_suffix(".json.new")
    whole.write_text(json.dumps(value, indent=2) + "\n")
    whole.replace(path)
