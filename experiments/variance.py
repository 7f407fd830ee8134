"""Variance of the training loss and of its gradient under each time sampler, and the bounds after training.

    python experiments/variance.py [--quick] [--batches 512] [--seeds 3] [--steps 2000] [--out=DIR]

Uses the digits in continuous time and a small MLP. The first table has the standard deviation of the loss of a
batch and of its gradient, at the same weights for all time samplers, before and after a short training. The
second table has the test bounds of `vdm_jax.compare`, run once for each time sampler and for each way of
training the learned schedule. Writes results.json (numbers, settings, versions) and table.md. --quick takes
seconds; its numbers mean nothing.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import (
    all_images,
    argument_parser,
    environment,
    markdown_row,
    markdown_table,
    output_folder,
    set_up_jax,
    write_results,
)

import vdm_jax as vdm
from vdm_jax.config import default, to_dict
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.models import with_model_state
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.training.optimizer import make_optimizer

BATCH = 64
WARM = 300  # steps of training before the second measurement
PARTS = 8  # groups of batches, for standard errors
NETWORK = {"name": "mlp", "width": 128, "depth": 2}
# With unit-variance outputs, all parameterizations are one model; with base `zero`, it is unscaled eps.
MODELS = [
    {"parameterization": parameterization, "output_scale": output_scale, "base": base}
    for base, output_scale, parameterization in (
        ("zero", "none", "eps"),
        ("zero", "none", "v"),
        ("zero", "unit_variance", "v"),
        ("histogram", "none", "eps"),
        ("histogram", "none", "v"),
        ("histogram", "unit_variance", "v"),
    )
]
DRAWS = {  # name in the tables -> time sampler
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
    model: vdm.Model,
    params: Any,
    images: np.ndarray,
    options: argparse.Namespace,
    independent: bool,
) -> dict[str, float]:
    """Return the mean and variance of a batch's loss and gradient, with standard errors."""
    rng = np.random.default_rng(0)  # the same batches and keys for all time samplers
    indices = np.stack([rng.permutation(len(images))[:BATCH] for _ in range(options.batches)])
    phase = np.arange(BATCH, dtype=np.float32) / BATCH
    phases = np.broadcast_to(phase, indices.shape)
    if independent:
        phases = rng.uniform(size=indices.shape).astype(np.float32)
    places = jnp.arange(BATCH, dtype=jnp.int32)

    def loss_and_gradient(batch):
        i, x, phase = batch
        key = jax.random.fold_in(jax.random.key(1), i)

        def loss(network):
            return model.loss(params | {"network": network}, key, vdm.Batch(x, places, phase))[0]

        value, gradient = jax.value_and_grad(loss)(params["network"])
        return value, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    def add(total, batch):
        value, gradient = loss_and_gradient(batch)
        mean, square = total
        return (mean + gradient, square + jnp.sum(jnp.square(gradient))), value

    @jax.jit
    def moments(numbers, images, phases):
        size = sum(leaf.size for leaf in jax.tree.leaves(params["network"]))
        zero = jnp.zeros(size), jnp.zeros(())
        (mean, square), values = jax.lax.scan(add, zero, (numbers, images, phases))
        return mean / len(numbers), square / len(numbers), values

    n = options.batches // PARTS
    numbers = np.arange(options.batches)
    split = [np.split(leaf, PARTS) for leaf in (numbers, images[indices], phases)]
    parts = [moments(*part) for part in zip(*split, strict=True)]
    means, squares, values = (
        np.asarray(jnp.stack(leaves), np.float64) for leaves in zip(*parts, strict=True)
    )
    mean = means.mean(0)
    variances = (squares - np.sum(means**2, 1)) * n / (n - 1)
    # an unbiased estimate of the squared norm of the mean gradient: subtract the noise of the batches
    signal = float(np.sum(mean**2) - variances.mean() / options.batches)
    loss_variances = values.var(1, ddof=1)
    return {
        "loss": float(values.mean()),
        "loss_error": float(values.std(ddof=1) / np.sqrt(values.size)),
        "loss_variance": float(values.var(ddof=1)),
        "loss_variance_error": float(loss_variances.std(ddof=1) / np.sqrt(PARTS)),
        "gradient_norm": float(np.sqrt(max(signal, 0))),
        "gradient_variance": float(variances.mean()),
        "gradient_variance_error": float(variances.std(ddof=1) / np.sqrt(PARTS)),
    }


def variances(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every model, before and after training, under every time sampler."""
    data, rows = load_dataset("digits"), []
    images = all_images(data.train)
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
        step, trained = jax.jit(vdm.make_step(models["learned"].loss, optimizer)), start
        for stack in train_batches(
            data.train, batch_size=BATCH, seed=0, start_step=0, stop_step=options.warm, stack=1
        ):
            trained, _ = step(trained, jax.tree.map(lambda leaf: leaf[0], stack))
        for when, state in (("before", start), ("after", trained)):
            learned = with_model_state(models["learned"], state.model_state)
            models_now = models | {"learned": learned}
            draws = {
                name: measure(
                    models_now[times], state.params, images, options, name == "independent"
                )
                for name, times in DRAWS.items()
            }
            rows.append(spec | {"when": when, "draws": draws})
            print(markdown_row(variance_cells(rows[-1])), flush=True)
    return rows


def ratio(row: dict[str, Any], name: str, variance: str) -> str:
    """Return a standard deviation in units of that of stratified times, ± its standard error."""
    draws = row["draws"][name], row["draws"]["stratified"]
    value = np.sqrt(draws[0][variance] / draws[1][variance])
    relative = [draw[f"{variance}_error"] / draw[variance] for draw in draws]
    return f"{value:.2f} ± {0.5 * value * np.hypot(*relative):.2f}"


def variance_cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the first table."""
    base = row["draws"]["stratified"]
    noise = np.sqrt(base["gradient_variance"]) / max(base["gradient_norm"], 1e-30)
    cells = [f"{row['parameterization']}, {row['output_scale']}, {row['base']}", row["when"]]
    cells += [f"{np.sqrt(base['loss_variance']):.3g}"]
    others = [name for name in DRAWS if name != "stratified"]
    cells += [ratio(row, name, "loss_variance") for name in others]
    cells += [f"{noise:.3g}"]
    cells += [ratio(row, name, "gradient_variance") for name in others]
    return cells


def train(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train eps in one of the ways of `TRAINED`; return its test bounds and the variance of its loss."""
    settings = {"schedule": "linear", "time_sampler": "uniform", "part": 1.0} | TRAINED[name]
    config = to_dict(default())
    config["model"]["time_sampler"] = settings["time_sampler"]
    network = NETWORK | ({"width": 8} if options.quick else {})
    result = vdm.compare(
        ["eps"],
        config=config,
        network=network,
        schedule=settings["schedule"],
        base="histogram",
        seeds=options.seeds,
        steps=max(1, int(settings["part"] * options.steps)),
        weightings=["elbo"],
        output_scales=OUTPUT_SCALES,
        timesteps=None,
        draws=1 if options.quick else 64,
        sampling_steps=(),
        gradient_batches=0,
        progress=False,
    )
    images = all_images(load_dataset("digits").train)
    rows = {}
    for v, output_scale in enumerate(OUTPUT_SCALES):
        params, model_state = jax.tree.map(
            lambda leaf, v=v: jnp.asarray(leaf[v, 0]), (result.params, result.model_state)
        )
        model = vdm.models.vdm(
            result.statistics,
            network=network,
            schedule=settings["schedule"],
            time_sampler=settings["time_sampler"],
            base="histogram",
            output_scale=output_scale,
        )
        rows[output_scale] = result.bound(f"eps_{output_scale}_elbo")._asdict() | {
            "each": np.asarray(result.bits_per_dim[v]).tolist(),
            "spread": measure(
                with_model_state(model, model_state), params, images, options, independent=False
            ),
            "milliseconds": float(np.asarray(result.milliseconds)[v]),
        }
    return rows


def training_cells(name: str, row: dict[str, Any]) -> list[str]:
    """Return a row of the second table."""
    cells = [name]
    for output_scale in OUTPUT_SCALES:
        bound, spread = row[output_scale], row[output_scale]["spread"]
        cells += [f"{bound['mean']:.4f} ± {bound['standard_error']:.4f}"]
        cells += [f"{np.sqrt(spread['loss_variance']):.3f}"]
        cells += [f"{np.sqrt(spread['gradient_variance']):.3g}"]
    return cells


def table(rows: list[dict[str, Any]], runs: dict[str, Any], options: argparse.Namespace) -> str:
    """Return both tables."""
    others = [name for name in DRAWS if name != "stratified"]
    columns = ["model", "training", "σ of the loss", *others, "σ/norm of the gradient", *others]
    variance_table = markdown_table(
        columns,
        [variance_cells(row) for row in rows],
        f"Standard deviations over {options.batches} batches of {BATCH} of the digits: of the loss in "
        "bits/dim, of the gradient as the root of its covariance's trace over the norm of its mean, both of "
        "uniform times stratified over the batch. The columns after each are those of other ways to draw, in "
        f"units of it, ± standard error ({PARTS} parts of the batches). Continuous time, linear schedule, MLP; "
        f"the weights of a row are the same, at the start or after {options.warm} steps.",
    )
    columns = ["training"]
    for output_scale in OUTPUT_SCALES:
        columns += [f"{output_scale}, {name}" for name in ("bits/dim", "σ loss", "σ gradient")]
    training_table = markdown_table(
        columns,
        [training_cells(name, row) for name, row in runs.items()],
        f"Test bits/dim ± standard error over {options.seeds} seeds after {options.steps} steps; eps, base "
        "histogram, unscaled and unit-variance outputs. The standard deviations are those of one batch at the "
        "first seed's averaged weights, drawn as in its training.",
    )
    return f"{variance_table}\n{training_table}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--batches", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "variance")
    options.warm = WARM
    names = [*TRAINED]
    if options.quick:
        options.batches, options.warm, options.steps, options.seeds = 2 * PARTS, 2, 2, 2
        names = names[-1:]
    rows = variances(options)
    runs = {}
    for name in names:
        runs[name] = train(name, options)
        print(markdown_row(training_cells(name, runs[name])), flush=True)
    about = environment("python", "machine", "device", "versions")
    about |= {"batches": options.batches, "batch_size": BATCH, "warm": options.warm}
    about |= {"steps": options.steps, "seeds": options.seeds, "network": NETWORK}
    results = about | {"variances": rows, "training": runs}
    write_results(out, results, table(rows, runs, options), indent=1)


if __name__ == "__main__":
    main()
