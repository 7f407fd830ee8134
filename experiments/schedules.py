"""Does the noise schedule matter under the bound? Fixed and learned schedules, side by side per seed.

    python experiments/schedules.py [--quick] [--seeds 3] [--steps 2000] [--out=DIR]

The same small MLP on the digits in continuous time, eps and v with unit-variance outputs, trained on the bound
under each schedule: `vdm_jax.compare` once for each. Writes schedules.json (numbers, settings, versions),
table.md and schedules.png. --quick trains for a few steps; its numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import vdm_jax as vdm
from vdm_jax.runtime.devices import enable_compilation_cache

HERE = Path(__file__).resolve().parent
BETAS = {"name": "from_betas", "betas": np.linspace(1e-4, 2e-2, 1000).tolist()}
SCHEDULES: dict[str, Any] = {
    "linear": "linear",
    "cosine": "cosine",
    "sigmoid": "sigmoid",
    "DDPM's betas": BETAS,
    "learned_linear": "learned_linear",
    "learned_monotone": "learned_monotone",
    "learned_monotone, fixed ends": {"name": "learned_monotone", "learn_ends": False},
}
TIMES = np.linspace(0, 1, 101)


def run(spec: Any, options: argparse.Namespace) -> tuple[vdm.Comparison, np.ndarray]:
    """The comparison, and γ(t) of the first variant's seeds [S, 101] at the end."""
    small: dict[str, Any] = {"network": {"name": "mlp", "width": 8, "depth": 1}, "draws": 1}
    # some paths have rare times of a large weight: few draws would measure them, not the model
    many: dict[str, Any] = {"draws": 128}
    result = vdm.compare(
        ("eps", "v"),
        "digits",
        schedule=spec,
        seeds=options.seeds,
        steps=options.steps,
        weightings=("elbo",),
        output_scales=("unit_variance",),
        timesteps=None,
        sampling_steps=(),
        gradient_batches=0,
        progress=False,
        **small if options.quick else many,
    )
    schedule = vdm.build(vdm.schedules.SCHEDULES, spec)
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), result.params["schedule"])
    of_seeds = jax.vmap(lambda params: schedule.gamma(params, TIMES), axis_size=len(result.seeds))
    return result, np.asarray(of_seeds(own))


def table(found: dict[str, tuple[vdm.Comparison, np.ndarray]]) -> str:
    columns = ["schedule", "eps", "v", "reconstruction", "matching", "prior", "γ(0)", "γ(1)"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, (result, gamma) in found.items():
        first = result["eps_unit_variance_elbo"]
        cells = [name, *(str(result.bound(f"{row}_unit_variance_elbo")) for row in ("eps", "v"))]
        cells += [f"{first[part]:.4f}" for part in ("reconstruction", "matching", "prior")]
        cells += [f"{gamma[:, i].mean():.2f}" for i in (0, -1)]
        lines.append(f"| {' | '.join(cells)} |")
    about = next(iter(found.values()))[0].about
    return "\n".join(
        [
            *lines,
            "",
            f"Test bits/dim ± standard error over {len(about['seeds'])} seeds; the parts and γ at the ends "
            f"are those of eps; {about['bound']}, {about['draws']} draws per example; {about['data']}; "
            f"{about['training']}.",
            "",
        ]
    )


def figure(found: dict[str, tuple[vdm.Comparison, np.ndarray]]) -> Figure:
    picture = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    for i, (name, (result, gamma)) in enumerate(found.items()):
        for j, of_seed in enumerate(gamma):
            label = name if j == 0 else None
            left.plot(TIMES, of_seed, color=f"C{i}", linewidth=1.2, label=label)
        at = result.bound("eps_unit_variance_elbo")
        right.errorbar(at.mean, i, xerr=at.standard_error, fmt="o", color=f"C{i}", capsize=3)
        right.plot(result.bits_per_dim[0], [i + 0.2] * len(result.seeds), "|", color=f"C{i}")
    left.set(xlabel="t", ylabel="γ(t) = −log SNR", title="schedules after training, each seed")
    left.legend(frameon=False, fontsize=8)
    right.set_yticks(range(len(found)), [*found])
    right.invert_yaxis()
    right.set(xlabel="test bits/dim, eps (± standard error; | single seeds)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "schedules")
    options = parser.parse_args()
    enable_compilation_cache()
    schedules = SCHEDULES
    if options.quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        options.out, options.steps, options.seeds = Path(tempfile.mkdtemp()), 2, 2
        schedules = {name: SCHEDULES[name] for name in ("linear", "learned_linear")}
    found = {}
    for name, spec in schedules.items():
        found[name] = run(spec, options)
        print(name, found[name][0].bound("eps_unit_variance_elbo"), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = {
        name: result.to_dict() | {"gamma": gamma[:, ::10].tolist()}
        for name, (result, gamma) in found.items()
    }
    for row in rows.values():
        for variant in row["variants"].values():
            del variant["weights"]
    about = {"python": platform.python_version(), "machine": platform.machine()}
    about |= {"device": jax.devices()[0].device_kind, "times": TIMES[::10].tolist()}
    (options.out / "schedules.json").write_text(json.dumps(about | {"schedules": rows}) + "\n")
    (options.out / "table.md").write_text(table(found))
    figure(found).savefig(options.out / "schedules.png", dpi=150)
    print(table(found))


if __name__ == "__main__":
    main()
