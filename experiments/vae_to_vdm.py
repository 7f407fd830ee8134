"""Test bounds from the autoencoder to the diffusion model on the embedded digits, at equal size and budget.

    python experiments/vae_to_vdm.py [--quick] [--seeds 3] [--steps 3000] [--out DIR]

Trains an autoencoder, a VAE, hierarchical VAEs with 2, 4 and 8 latents (MLPs) and variational diffusion models
with 10, 100, 1000 and infinitely many steps (a small U-Net), each with half a million parameters, all on the
same batches and with the same optimizer. The seeds (of the weights and of all noise) are trained side by side
under `vmap`. Every model starts from the per-position histogram: a VAE has it in its likelihood, a VDM in its
base. Writes results.json (numbers, configs, library versions), table.md, parts.png and samples.png. --quick
trains each model for seconds; its numbers mean nothing.
"""

import json
import math
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import (
    all_images,
    argument_parser,
    cpu_name,
    environment,
    markdown_table,
    output_folder,
    set_up_jax,
    write_results,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vdm_jax
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.models import Model, build_model
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runs.plots import tile
from vdm_jax.training.optimizer import make_optimizer

LATENT = 16
OPTIMIZER = {
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "decay_to": 0.02,
    "weight_decay": 0.01,
    "b1": 0.9,
    "b2": 0.99,
    "clip_norm": 1.0,
    "accumulate": 1,
}
PARTS = ("reconstruction", "matching", "prior")
STRIP = 12  # samples of each model in samples.png


def autoencoder(width: int, prior_weight: float = 0.0) -> dict:
    """Return the config of an autoencoder; with a prior weight of 1, it is a VAE."""
    net = {"name": "mlp", "width": width, "depth": 2, "dropout": 0.5}
    return {
        "name": "vae",
        "latent": LATENT,
        "encoder": net,
        "decoder": net,
        "likelihood": "histogram",
        "prior_weight": prior_weight,
    }


def hierarchy(width: int, latents: int) -> dict:
    """Return the config of a hierarchical VAE."""
    net = {"name": "mlp", "width": width, "depth": 2, "dropout": 0.5}
    chain = {"name": "gaussian", "latents": [LATENT] * latents, "encoder": net, "decoder": net}
    chain["level"] = {"name": "mlp", "width": max(8, 256 // latents), "depth": 1}
    return {"name": "mhvae", "chain": chain, "likelihood": "histogram"}


def diffusion(width: int, timesteps: int | None) -> dict:
    """Return the config of a diffusion model."""
    del width  # the U-Net has a fixed size of 516,497 parameters
    return {
        "name": "vdm",
        "network": {"name": "unet", "channels": (16, 64), "blocks": 1, "dropout": 0.1},
        "schedule": "linear",
        "parameterization": "eps",
        "base": "histogram",
        "output_scale": "unit_variance",
        "likelihood": "softmax",
        "timesteps": timesteps,
    }


SYSTEMS = {
    "AE": autoencoder,
    "VAE": partial(autoencoder, prior_weight=1.0),
    "MHVAE, T = 2": partial(hierarchy, latents=2),
    "MHVAE, T = 4": partial(hierarchy, latents=4),
    "MHVAE, T = 8": partial(hierarchy, latents=8),
    "VDM, T = 10": partial(diffusion, timesteps=10),
    "VDM, T = 100": partial(diffusion, timesteps=100),
    "VDM, T = 1000": partial(diffusion, timesteps=1000),
    "VDM, T = ∞": partial(diffusion, timesteps=None),
}


def without_dropout(spec):
    """Return the config of the same model without dropout, also in its loss."""
    if not isinstance(spec, dict):
        return spec
    return {k: 0.0 if k == "dropout" else without_dropout(v) for k, v in spec.items()}


def size(model: Model) -> int:
    """Return the number of parameters of a model."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def fitted(spec, statistics, target: int) -> tuple[dict, Model]:
    """Return the widest model of a system with at most `target` parameters, else the narrowest.

    Widths are multiples of 8.
    """
    low, high = 1, 256
    while low < high:
        middle = (low + high + 1) // 2
        fits = size(build_model(spec(8 * middle), statistics)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    return spec(8 * low), build_model(spec(8 * low), statistics)


def train(model: Model, dataset, *, seeds: int, steps: int, batch_size: int, convolutions: bool):
    """Train all seeds side by side on the same batches; return their EMA weights [seeds, ...]."""
    optimizer, _ = make_optimizer(decay_steps=max(steps, 101), **OPTIMIZER)
    step = vdm_jax.make_step(model.loss, optimizer, ema_decay=0.999, ema_warmup=True)

    @jax.jit
    @jax.vmap
    def start(seed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
        return vdm_jax.init_state(model.init(keys[0]), optimizer, keys[1])

    step_all = jax.vmap(step, (0, None))

    @partial(jax.jit, donate_argnums=0)
    def run(states, stack):
        if convolutions:  # XLA's gradients of convolutions are slow in loops on CPUs
            return step_all(states, jax.tree.map(lambda leaf: leaf[0], stack))
        return jax.lax.scan(step_all, states, stack)

    states = start(jnp.arange(seeds))
    batches = train_batches(
        dataset.train,
        batch_size=batch_size,
        seed=0,
        start_step=0,
        stop_step=steps,
        stack=1 if convolutions else math.gcd(steps, 50),
    )
    for stack in batches:
        states, _ = run(states, stack)
    return states.ema_params


def evaluate(model: Model, params, x, draws: int, importance_samples: int) -> dict:
    """Return the test bits/dim of each seed: the ELBO, its parts, and the importance-weighted bound, if any."""
    bits = 1 / (math.prod(x.shape[1:]) * math.log(2))
    key = jax.random.key(1)
    if model.unsupported is not None:  # an autoencoder has no bound, only a reconstruction loss
        loss = jax.jit(jax.vmap(lambda p: model.loss(p, key, x)[1]["reconstruction"]))(params)
        return {"reconstruction": loss.tolist()}
    elbo = jax.jit(jax.vmap(lambda p: model.elbo(p, key, x, draws=draws)))(params)
    results = {name: (bits * jnp.mean(getattr(elbo, name), -1)).tolist() for name in PARTS}
    results["bits_per_dim"] = (bits * jnp.mean(elbo.total, -1)).tolist()
    if model.importance is not None:
        importance = model.importance
        bounds = jax.jit(jax.vmap(lambda p: importance(p, key, x, importance_samples)))(params)
        results["importance"] = (bits * jnp.mean(bounds, -1)).tolist()
    return results


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is NaN for a single value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def table(rows: list[dict], importance_samples: int) -> str:
    """Return the table: a row per model."""
    columns = ["model", "parameters", "test bits/dim", *PARTS]
    columns += [f"importance-weighted, K = {importance_samples}"]
    lines = []
    for row in rows:
        test = row["test"]
        cells = [row["system"], f"{row['parameters']:,}"]
        for name in ("bits_per_dim", *PARTS, "importance"):
            if name not in test:
                cells.append("–")
                continue
            mean, error = mean_and_error(test[name])
            cells.append(f"{mean:.3f}" if name in PARTS else f"{mean:.3f} ± {error:.3f}")
        lines.append(cells)
    return markdown_table(columns, lines)


def figure(path: Path, rows: list[dict], seeds: int) -> None:
    """Draw the bits/dim of each model by part, with the standard error of the sum."""
    drawing = Figure(figsize=(9, 4.6), layout="constrained")
    axes = drawing.subplots()
    rows = [row for row in rows if "bits_per_dim" in row["test"]]
    names, bottom = [row["system"] for row in rows], np.zeros(len(rows))
    for part, colour in zip(PARTS, ("#4c72b0", "#dd8452", "#55a868"), strict=True):
        height = np.asarray([mean_and_error(row["test"][part])[0] for row in rows])
        axes.bar(names, height, bottom=bottom, color=colour, label=part, width=0.65)
        bottom += height
    errors = [mean_and_error(row["test"]["bits_per_dim"])[1] for row in rows]
    top = 1.25 * float(np.median(bottom))  # much higher bars are cut off and labelled
    axes.errorbar(names, bottom, errors, fmt="none", ecolor="black", capsize=4)
    for name, total in zip(names, bottom, strict=True):
        cut = total > top
        text = f"{total:.3f} ↑" if cut else f"{total:.3f}"
        axes.text(name, 0.96 * top if cut else total + 0.02 * top, text, ha="center", fontsize=9)
    axes.set_ylabel("−ELBO on the test split, bits/dim")
    axes.set_title(f"digits (8×8, 17 levels): mean of {seeds} seeds, bars ± standard error")
    axes.tick_params(axis="x", labelrotation=25)
    axes.set_ylim(0, top)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    FigureCanvasAgg(drawing).print_png(str(path))


def strips(path: Path, strips_: dict[str, np.ndarray], levels: int) -> None:
    """Draw a row of samples for each model; the autoencoder cannot sample and decodes the codes of data."""
    drawing = Figure(figsize=(9, 0.72 * len(strips_)))
    margins = {"left": 0.14, "right": 0.99, "top": 0.99, "bottom": 0.01}
    grid = drawing.subplots(len(strips_), 1, gridspec_kw=margins)
    for axes, (name, images) in zip(grid, strips_.items(), strict=True):
        axes.imshow(tile(images, levels, STRIP), interpolation="nearest", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
        for side in axes.spines.values():
            side.set_visible(False)
    FigureCanvasAgg(drawing).print_png(str(path))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--parameters", type=int, default=550_000)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--importance_samples", type=int, default=200)
    parser.add_argument(
        "--systems",
        nargs="+",
        default=list(SYSTEMS),
        choices=list(SYSTEMS),
        help="run only these; keep the other rows in DIR, and its samples",
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "vae_to_vdm")
    if options.quick:
        options.systems = ["AE", "MHVAE, T = 2", "VDM, T = ∞"]
        options.seeds, options.steps, options.batch_size = 2, 4, 16
        options.parameters, options.draws, options.importance_samples = 40_000, 1, 3

    dataset = load_dataset("digits")
    counts = level_counts(dataset.train.images, dataset.levels)
    statistics = fit_statistics(counts, base="histogram")
    test = jnp.asarray(all_images(dataset.test))
    rows, pictures = [], {"data": np.asarray(test[:STRIP])}
    for name in options.systems:
        start = time.time()
        spec, model = fitted(SYSTEMS[name], statistics, options.parameters)
        params = train(
            model,
            dataset,
            seeds=options.seeds,
            steps=options.steps,
            batch_size=options.batch_size,
            convolutions=spec["name"] == "vdm",
        )
        # an autoencoder is evaluated by its training loss, which would apply dropout
        deterministic = build_model(without_dropout(spec), statistics)
        results = evaluate(deterministic, params, test, options.draws, options.importance_samples)
        first = jax.tree.map(lambda leaf: leaf[0], params)
        if model.unsupported is not None:
            decoded = model.plots["reconstructions"](first, test[:STRIP])[:, 1]
            pictures[f"{name}, decoded"] = np.asarray(decoded)
        else:
            steps = {"steps": spec["timesteps"] or 1000} if spec["name"] == "vdm" else {}
            samples = jax.jit(partial(model.sample, n=STRIP, **steps))(first, jax.random.key(3))
            pictures[name] = np.asarray(samples)
        rows.append(
            {
                "system": name,
                "parameters": size(model),
                "seconds": round(time.time() - start),
                "test": results,
                "model": spec,
            }
        )
        shown = {k: "{:.3f} ± {:.3f}".format(*mean_and_error(v)) for k, v in results.items()}
        print(f"{name}: {shown}, {rows[-1]['seconds']} s", flush=True)

    settings = {k: v for k, v in vars(options).items() if k not in ("out", "quick", "systems")}
    about = environment("versions", "python") | {"machine": cpu_name()}
    about |= {"optimizer": OPTIMIZER, "settings": settings}
    path = out / "results.json"
    all_systems = set(options.systems) == set(SYSTEMS)
    if not (all_systems or options.quick):
        saved = json.loads(path.read_text())
        others = [row for row in saved.pop("rows") if row["system"] not in options.systems]
        if saved != about:
            raise SystemExit(f"error: {path} is of other settings or versions; run all systems")
        rows = sorted(others + rows, key=lambda row: list(SYSTEMS).index(row["system"]))
    write_results(out, about | {"rows": rows}, table(rows, options.importance_samples))
    figure(out / "parts.png", rows, options.seeds)
    if all_systems or options.quick:
        strips(out / "samples.png", pictures, dataset.levels)


if __name__ == "__main__":
    main()
