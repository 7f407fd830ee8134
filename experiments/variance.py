"""How much less do the loss and its gradient vary if times are drawn where the loss is? And does training gain?

    python experiments/variance.py [--quick] [--batches 512] [--seeds 3] [--steps 2000] [--out=DIR]

The digits in continuous time with a small MLP. First the standard deviation of the training loss of a batch and
of its gradient, at the same weights under every way of drawing the times, before and after a short training.
Then training itself, `vdm_jax.compare` once for each way of drawing the times and each way of training the
learned schedule. Writes results.json (numbers, settings, versions) and table.md. --quick takes seconds; its
numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vdm_jax as vdm
from vdm_jax.config import default, to_dict
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.models import with_model_state
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.optimizer import make_optimizer

HERE = Path(__file__).resolve().parent
BATCH = 64
WARM = 300  # steps of training before the second measurement
PARTS = 8  # of the batches, for standard errors
NETWORK = {"name": "mlp", "width": 128, "depth": 2}
MODELS = [  # unit variance with base zero is eps unscaled; with another base it is one model
    {"parameterization": row, "output_scale": output_scale, "base": base}
    for base, output_scale, row in (
        ("zero", "none", "eps"),
        ("zero", "none", "v"),
        ("zero", "unit_variance", "v"),
        ("histogram", "none", "eps"),
        ("histogram", "none", "v"),
        ("histogram", "unit_variance", "v"),
    )
]
DRAWS = {
    "independent": "uniform",
    "stratified": "uniform",
    "analytic": "analytic",
    "learned": "learned",
}
MONOTONE = {"name": "learned_monotone"}
TRAINED: dict[str, dict[str, Any]] = {
    "linear, uniform times": {},
    "linear, analytic times": {"time_sampler": "analytic"},
    "linear, learned times": {"time_sampler": "learned"},
    "linear, uniform times, half the steps": {"part": 0.5},
    "linear, analytic times, half the steps": {"time_sampler": "analytic", "part": 0.5},
    "learned_monotone on the bound": {"schedule": MONOTONE | {"trained_on": "bound"}},
    "learned_monotone on the variance": {"schedule": MONOTONE | {"trained_on": "variance"}},
    "the same, learned times": {
        "schedule": MONOTONE | {"trained_on": "variance"},
        "time_sampler": "learned",
    },
}
OUTPUT_SCALES = ("none", "unit_variance")


def measure(
    model: vdm.Model, params: Any, images: np.ndarray, options: Any, independent: bool
) -> Any:
    """Of the loss of one batch and of its gradient: mean and variance, with standard errors."""
    rng = np.random.default_rng(0)
    # the same batches and keys for every way to draw
    chosen = np.stack([rng.permutation(len(images))[:BATCH] for _ in range(options.batches)])
    phase = np.arange(BATCH, dtype=np.float32) / BATCH
    phases = np.broadcast_to(phase, chosen.shape)
    if independent:
        phases = rng.uniform(size=chosen.shape).astype(np.float32)
    index = jnp.arange(BATCH, dtype=jnp.int32)

    def one(batch):
        i, x, phase = batch
        key = jax.random.fold_in(jax.random.key(1), i)

        def of(network):
            return model.loss(params | {"network": network}, key, vdm.Batch(x, index, phase))[0]

        value, gradient = jax.value_and_grad(of)(params["network"])
        return value, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    def add(total, batch):
        value, gradient = one(batch)
        mean, square = total
        return (mean + gradient, square + jnp.sum(jnp.square(gradient))), value

    @jax.jit
    def part(numbers, images, phases):
        size = sum(leaf.size for leaf in jax.tree.leaves(params["network"]))
        nothing = jnp.zeros(size), jnp.zeros(())
        (mean, square), values = jax.lax.scan(add, nothing, (numbers, images, phases))
        return mean / len(numbers), square / len(numbers), values

    n = options.batches // PARTS
    numbers = np.arange(options.batches)
    pieces = [np.split(leaf, PARTS) for leaf in (numbers, images[chosen], phases)]
    means, squares, values = (
        np.asarray(jnp.stack(leaves), np.float64)
        for leaves in zip(*(part(*piece) for piece in zip(*pieces, strict=True)), strict=True)
    )
    mean = means.mean(0)
    variances = (squares - np.sum(means**2, 1)) * n / (n - 1)
    # of the square of the mean gradient, without what the batches' noise adds to it
    signal = float(np.sum(mean**2) - variances.mean() / options.batches)
    of_loss = values.var(1, ddof=1)
    return {
        "loss": float(values.mean()),
        "loss_error": float(values.std(ddof=1) / np.sqrt(values.size)),
        "loss_variance": float(values.var(ddof=1)),
        "loss_variance_error": float(of_loss.std(ddof=1) / np.sqrt(PARTS)),
        "gradient_norm": float(np.sqrt(max(signal, 0))),
        "gradient_variance": float(variances.mean()),
        "gradient_variance_error": float(variances.std(ddof=1) / np.sqrt(PARTS)),
    }


def variances(options: Any) -> list[dict[str, Any]]:
    """Of every model, before and after training, under every way to draw."""
    data, rows = load_dataset("digits"), []
    images = data.train.images[np.arange(len(data.train.images))]
    counts = level_counts(data.train.images, 17)
    optimizer, _ = make_optimizer(**dict(default().optimizer))
    for spec in MODELS[: 1 if options.quick else None]:
        statistics = fit_statistics(counts, base=spec["base"])
        build = partial(vdm.models.MODELS["vdm"], statistics, network=NETWORK, **spec)
        models = {times: build(time_sampler=times) for times in vdm.time_samplers.TIME_SAMPLERS}
        params = jax.jit(models["learned"].init)(jax.random.key(0))
        start = vdm.init_state(
            params,
            optimizer,
            jax.random.key(1),
            model_state=models["learned"].init_model_state(params),
        )
        step, state = jax.jit(vdm.make_step(models["learned"].loss, optimizer)), start
        for stack in train_batches(
            data.train, batch_size=BATCH, seed=0, start_step=0, stop_step=options.warm, stack=1
        ):
            state, _ = step(state, jax.tree.map(lambda leaf: leaf[0], stack))
        for when, now in (("before", start), ("after", state)):
            drawn = models | {"learned": with_model_state(models["learned"], now.model_state)}
            found = {
                name: measure(drawn[times], now.params, images, options, name == "independent")
                for name, times in DRAWS.items()
            }
            rows.append(spec | {"when": when, "draws": found})
            print(variance_line(rows[-1]), flush=True)
    return rows


def ratio(row: dict[str, Any], name: str, what: str) -> str:
    """A standard deviation in units of that of the stratified draws, ± its standard error."""
    own, base = row["draws"][name], row["draws"]["stratified"]
    value = np.sqrt(own[what] / base[what])
    relative = [draw[f"{what}_error"] / draw[what] for draw in (own, base)]
    return f"{value:.2f} ± {0.5 * value * np.hypot(*relative):.2f}"


def variance_line(row: dict[str, Any]) -> str:
    base = row["draws"]["stratified"]
    noise = np.sqrt(base["gradient_variance"]) / max(base["gradient_norm"], 1e-30)
    cells = [f"{row['parameterization']}, {row['output_scale']}, {row['base']}", row["when"]]
    cells += [f"{np.sqrt(base['loss_variance']):.3g}"]
    others = [name for name in DRAWS if name != "stratified"]
    cells += [ratio(row, name, "loss_variance") for name in others]
    cells += [f"{noise:.3g}"]
    cells += [ratio(row, name, "gradient_variance") for name in others]
    return f"| {' | '.join(cells)} |"


def trained(name: str, options: Any) -> dict[str, Any]:
    """Test bounds of eps after training one way, and how much the training loss then varies."""
    asked = {"schedule": "linear", "time_sampler": "uniform", "part": 1.0} | TRAINED[name]
    config = to_dict(default())
    config["model"]["time_sampler"] = asked["time_sampler"]
    network = NETWORK | ({"width": 8} if options.quick else {})
    result = vdm.compare(
        ["eps"],
        config=config,
        network=network,
        schedule=asked["schedule"],
        base="histogram",
        seeds=options.seeds,
        steps=max(1, int(asked["part"] * options.steps)),
        weightings=["elbo"],
        output_scales=OUTPUT_SCALES,
        timesteps=None,
        draws=1 if options.quick else 64,
        sampling_steps=(),
        gradient_batches=0,
        progress=False,
    )
    data = load_dataset("digits")
    images = data.train.images[np.arange(len(data.train.images))]
    found = {}
    for v, output_scale in enumerate(OUTPUT_SCALES):
        own, model_state = jax.tree.map(
            lambda leaf, v=v: jnp.asarray(leaf[v, 0]), (result.params, result.model_state)
        )
        model = vdm.models.vdm(
            result.statistics,
            network=network,
            schedule=asked["schedule"],
            time_sampler=asked["time_sampler"],
            base="histogram",
            output_scale=output_scale,
        )
        found[output_scale] = result.bound(f"eps_{output_scale}_elbo")._asdict() | {
            "each": np.asarray(result.bits_per_dim[v]).tolist(),
            "spread": measure(
                with_model_state(model, model_state), own, images, options, independent=False
            ),
            "milliseconds": float(np.asarray(result.milliseconds)[v]),
        }
    return found


def training_line(name: str, row: dict[str, Any]) -> str:
    cells = [name]
    for of in OUTPUT_SCALES:
        found, spread = row[of], row[of]["spread"]
        cells += [f"{found['mean']:.4f} ± {found['standard_error']:.4f}"]
        cells += [f"{np.sqrt(spread['loss_variance']):.3f}"]
        cells += [f"{np.sqrt(spread['gradient_variance']):.3g}"]
    return f"| {' | '.join(cells)} |"


def table(rows: list[dict[str, Any]], runs: dict[str, Any], options: Any) -> str:
    others = [name for name in DRAWS if name != "stratified"]
    columns = ["model", "training", "σ of the loss", *others, "σ/norm of the gradient", *others]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [variance_line(row) for row in rows]
    lines += [
        "",
        f"Standard deviations over {options.batches} batches of {BATCH} of the digits: of the loss in "
        "bits/dim, of the gradient as the root of its covariance's trace over the norm of its mean, both of "
        "uniform times stratified over the batch. The columns after each are those of other ways to draw, in "
        f"units of it, ± standard error ({PARTS} parts of the batches). Continuous time, linear schedule, MLP; "
        f"the weights of a row are the same, at the start or after {options.warm} steps.",
        "",
    ]
    columns = ["training"]
    columns += [
        f"{of}, {what}" for of in OUTPUT_SCALES for what in ("bits/dim", "σ loss", "σ gradient")
    ]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [training_line(name, row) for name, row in runs.items()]
    lines += [
        "",
        f"Test bits/dim ± standard error over {options.seeds} seeds after {options.steps} steps; eps, base "
        "histogram, unscaled and unit-variance outputs. The standard deviations are those of one batch at the "
        "first seed's averaged weights, drawn as in its training.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--batches", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "variance")
    options = parser.parse_args()
    options.warm = WARM
    enable_compilation_cache()
    names = [*TRAINED]
    if options.quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        options.out = Path(tempfile.mkdtemp())
        options.batches, options.warm, options.steps, options.seeds = 2 * PARTS, 2, 2, 2
        names = names[-1:]
    rows = variances(options)
    runs = {}
    for name in names:
        runs[name] = trained(name, options)
        print(training_line(name, runs[name]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"python": platform.python_version(), "machine": platform.machine()}
    about |= {"device": jax.devices()[0].device_kind, "versions": library_versions()}
    about |= {"batches": options.batches, "batch_size": BATCH, "warm": options.warm}
    about |= {"steps": options.steps, "seeds": options.seeds, "network": NETWORK}
    found = about | {"variances": rows, "training": runs}
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "table.md").write_text(table(rows, runs, options))
    print(table(rows, runs, options))


if __name__ == "__main__":
    main()
