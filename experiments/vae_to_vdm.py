"""From the autoencoder to the diffusion model on the embedded digits: one axis, one data order, one budget.

    python experiments/vae_to_vdm.py [--quick] [--seeds 3] [--steps 3000] [--out DIR]

An autoencoder, a VAE, hierarchical VAEs of 2, 4 and 8 latents (MLPs) and variational diffusion models of 10,
100, 1000 and infinitely many steps (a small U-Net), each of half a million parameters, all on the same batches
and with the same optimizer. The seeds (of the weights and of all noise) are trained side by side under
`vmap`. Every model starts from the per-position histogram: a VAE has it in its likelihood, a VDM in its base.
Writes results.json (numbers, configs, library versions), table.md, parts.png and samples.png. --quick trains
each for seconds; its numbers mean nothing.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vdm_jax
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.models import Model, build_model
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.runs.plots import tile
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.optimizer import make_optimizer

HERE = Path(__file__).resolve().parent
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
STRIP = 12  # samples shown of each model


def autoencoder(width: int, prior_weight: float = 0.0) -> dict:
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
    net = {"name": "mlp", "width": width, "depth": 2, "dropout": 0.5}
    chain = {"name": "gaussian", "latents": [LATENT] * latents, "encoder": net, "decoder": net}
    chain["level"] = {"name": "mlp", "width": max(8, 256 // latents), "depth": 1}
    return {"name": "mhvae", "chain": chain, "likelihood": "histogram"}


def diffusion(width: int, timesteps: int | None) -> dict:
    del width  # a U-Net is as wide as it is: 516,497 parameters
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
    """The same model, whose loss is then free of dropout too."""
    if not isinstance(spec, dict):
        return spec
    return {k: 0.0 if k == "dropout" else without_dropout(v) for k, v in spec.items()}


def size(model: Model) -> int:
    """Parameters of a model."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def fitted(spec, statistics, target: int) -> tuple[dict, Model]:
    """The widest of a system's models with at most `target` parameters, or the narrowest; in steps of 8."""
    low, high = 1, 256
    while low < high:
        middle = (low + high + 1) // 2
        fits = size(build_model(spec(8 * middle), statistics)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    return spec(8 * low), build_model(spec(8 * low), statistics)


def train(model: Model, dataset, *, seeds: int, steps: int, batch_size: int, convolutions: bool):
    """Train all seeds side by side on the same batches; EMA weights [seeds, ...]."""
    optimizer, _ = make_optimizer(decay_steps=max(steps, 101), **OPTIMIZER)
    step = vdm_jax.make_step(model.loss, optimizer, ema_decay=0.999, ema_warmup=True)

    @jax.jit
    @jax.vmap
    def start(seed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
        return vdm_jax.init_state(model.init(keys[0]), optimizer, keys[1])

    many = jax.vmap(step, (0, None))

    @partial(jax.jit, donate_argnums=0)
    def run(states, stack):
        if convolutions:  # their gradients are slow in any loop on CPUs
            return many(states, jax.tree.map(lambda leaf: leaf[0], stack))
        return jax.lax.scan(many, states, stack)

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
    """Test bits/dim of each seed: the ELBO with its parts, and the importance-weighted bound, if any."""
    bits = 1 / (math.prod(x.shape[1:]) * math.log(2))
    key = jax.random.key(1)
    if model.unsupported is not None:  # no bound: what its decoder makes of the codes
        loss = jax.jit(jax.vmap(lambda p: model.loss(p, key, x)[1]["reconstruction"]))(params)
        return {"reconstruction": loss.tolist()}
    elbo = jax.jit(jax.vmap(lambda p: model.elbo(p, key, x, draws=draws)))(params)
    found = {name: (bits * jnp.mean(getattr(elbo, name), -1)).tolist() for name in PARTS}
    found["bits_per_dim"] = (bits * jnp.mean(elbo.total, -1)).tolist()
    if model.importance is not None:
        importance = model.importance
        tight = jax.jit(jax.vmap(lambda p: importance(p, key, x, importance_samples)))(params)
        found["importance"] = (bits * jnp.mean(tight, -1)).tolist()
    return found


def mean_and_error(values: list[float]) -> tuple[float, float]:
    values_ = np.asarray(values)
    error = values_.std(ddof=1) / math.sqrt(len(values_)) if len(values_) > 1 else math.nan
    return float(values_.mean()), float(error)


def table(rows: list[dict], importance_samples: int) -> str:
    lines = [
        "| model | parameters | test bits/dim | reconstruction | matching | prior "
        f"| importance-weighted, K = {importance_samples} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        test = row["test"]
        cells = [row["system"], f"{row['parameters']:,}"]
        for name in ("bits_per_dim", *PARTS, "importance"):
            known = name in test
            both = "{:.3f} ± {:.3f}".format(*mean_and_error(test[name])) if known else "–"
            cells.append(both if name in ("bits_per_dim", "importance") else both.split(" ±")[0])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(path: Path, rows: list[dict], seeds: int) -> None:
    """Bits/dim by part, with the standard error of the sum."""
    drawing = Figure(figsize=(9, 4.6), layout="constrained")
    axes = drawing.subplots()
    rows = [row for row in rows if "bits_per_dim" in row["test"]]
    names, bottom = [row["system"] for row in rows], np.zeros(len(rows))
    for part, colour in zip(PARTS, ("#4c72b0", "#dd8452", "#55a868"), strict=True):
        height = np.asarray([mean_and_error(row["test"][part])[0] for row in rows])
        axes.bar(names, height, bottom=bottom, color=colour, label=part, width=0.65)
        bottom += height
    errors = [mean_and_error(row["test"]["bits_per_dim"])[1] for row in rows]
    top = 1.25 * float(np.median(bottom))  # a bar that is far higher is cut off, with its number
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
    """A row of samples for each model; the autoencoder, which has none, decodes the codes of the data."""
    drawing = Figure(figsize=(9, 0.72 * len(strips_)))
    room = {"left": 0.14, "right": 0.99, "top": 0.99, "bottom": 0.01}
    grid = drawing.subplots(len(strips_), 1, gridspec_kw=room)
    for axes, (name, images) in zip(grid, strips_.items(), strict=True):
        axes.imshow(tile(images, levels, STRIP), interpolation="nearest", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
        for side in axes.spines.values():
            side.set_visible(False)
    FigureCanvasAgg(drawing).print_png(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
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
        help="only these; the rows of the others stay as they are in DIR, and so do its samples",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vae_to_vdm")
    options = parser.parse_args()
    if options.quick:
        options.out = Path(tempfile.mkdtemp())
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        options.systems = ["AE", "MHVAE, T = 2", "VDM, T = ∞"]
        options.seeds, options.steps, options.batch_size = 2, 4, 16
        options.parameters, options.draws, options.importance_samples = 40_000, 1, 3
    enable_compilation_cache()

    dataset = load_dataset("digits")
    counts = level_counts(dataset.train.images, dataset.levels)
    statistics = fit_statistics(counts, base="histogram")
    test = jnp.asarray(dataset.test.images[np.arange(len(dataset.test.images))])
    rows, pictures = [], {"data": np.asarray(test[:STRIP])}
    for name in options.systems:
        began = time.time()
        spec, model = fitted(SYSTEMS[name], statistics, options.parameters)
        params = train(
            model,
            dataset,
            seeds=options.seeds,
            steps=options.steps,
            batch_size=options.batch_size,
            convolutions=spec["name"] == "vdm",
        )
        still = build_model(without_dropout(spec), statistics)  # as an autoencoder's loss has it
        found = evaluate(still, params, test, options.draws, options.importance_samples)
        first = jax.tree.map(lambda leaf: leaf[0], params)
        if model.unsupported is not None:
            drawn = model.plots["reconstructions"](first, test[:STRIP])[:, 1]
            pictures[f"{name}, decoded"] = np.asarray(drawn)
        else:
            chain = {"steps": spec["timesteps"] or 1000} if spec["name"] == "vdm" else {}
            drawn = jax.jit(partial(model.sample, n=STRIP, **chain))(first, jax.random.key(3))
            pictures[name] = np.asarray(drawn)
        rows.append(
            {
                "system": name,
                "parameters": size(model),
                "seconds": round(time.time() - began),
                "test": found,
                "model": spec,
            }
        )
        shown = {k: "{:.3f} ± {:.3f}".format(*mean_and_error(v)) for k, v in found.items()}
        print(f"{name}: {shown}, {rows[-1]['seconds']} s", flush=True)

    settings = {k: v for k, v in vars(options).items() if k not in ("out", "quick", "systems")}
    about = {"versions": library_versions(), "python": platform.python_version()}
    about |= {"machine": f"{platform.machine()} CPU", "optimizer": OPTIMIZER, "settings": settings}
    path = options.out / "results.json"
    whole = set(options.systems) == set(SYSTEMS)
    if not (whole or options.quick):
        saved = json.loads(path.read_text())
        others = [row for row in saved.pop("rows") if row["system"] not in options.systems]
        if saved != about:
            raise SystemExit(f"error: {path} is of other settings or versions; run all systems")
        rows = sorted(others + rows, key=lambda row: list(SYSTEMS).index(row["system"]))
    print(table(rows, options.importance_samples))
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
    (options.out / "table.md").write_text(table(rows, options.importance_samples))
    figure(options.out / "parts.png", rows, options.seeds)
    if whole or options.quick:
        strips(options.out / "samples.png", pictures, dataset.levels)


if __name__ == "__main__":
    main()
