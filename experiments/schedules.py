"""Test bounds under fixed and learned noise schedules, all trained on the bound.

    python experiments/schedules.py [--quick] [--seeds 3] [--steps 2000] [--out=DIR]

Runs `vdm_jax.compare` once for each schedule, with the same small MLP on the digits in continuous time: eps and
v with unit-variance outputs, all seeds side by side. Writes schedules.json (numbers, settings, versions),
table.md and schedules.png. --quick trains for a few steps; its numbers mean nothing.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import argument_parser, environment, markdown_table, output_folder, set_up_jax
from matplotlib.figure import Figure

import vdm_jax as vdm

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
    """Return the comparison, and γ(t) after training for each seed of the first variant, [S, 101]."""
    # some schedules give a few times a large weight; with few draws, these times dominate the error
    settings: dict[str, Any] = {"draws": 128}
    if options.quick:
        settings = {"network": {"name": "mlp", "width": 8, "depth": 1}, "draws": 1}
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
        **settings,
    )
    schedule = vdm.build(vdm.schedules.SCHEDULES, spec)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), result.params["schedule"])
    gamma = jax.vmap(
        lambda params: schedule.gamma(params, jnp.asarray(TIMES)), axis_size=len(result.seeds)
    )
    return result, np.asarray(gamma(params))


def table(results: dict[str, tuple[vdm.Comparison, np.ndarray]]) -> str:
    """Return the table: a row per schedule."""
    columns = ["schedule", "eps", "v", "reconstruction", "matching", "prior", "γ(0)", "γ(1)"]
    rows = []
    for name, (result, gamma) in results.items():
        first = result["eps_unit_variance_elbo"]
        cells = [name, *(str(result.bound(f"{row}_unit_variance_elbo")) for row in ("eps", "v"))]
        cells += [f"{first[part]:.4f}" for part in ("reconstruction", "matching", "prior")]
        cells += [f"{gamma[:, i].mean():.2f}" for i in (0, -1)]
        rows.append(cells)
    about = next(iter(results.values()))[0].about
    caption = (
        f"Test bits/dim ± standard error over {len(about['seeds'])} seeds; the parts and γ at the ends "
        f"are those of eps; {about['bound']}, {about['draws']} draws per example; {about['data']}; "
        f"{about['training']}."
    )
    return markdown_table(columns, rows, caption)


def figure(results: dict[str, tuple[vdm.Comparison, np.ndarray]]) -> Figure:
    """Draw the schedules after training, and their bounds."""
    drawing = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for i, (name, (result, gamma)) in enumerate(results.items()):
        for j, gamma_of_seed in enumerate(gamma):
            label = name if j == 0 else None
            left.plot(TIMES, gamma_of_seed, color=f"C{i}", linewidth=1.2, label=label)
        bound = result.bound("eps_unit_variance_elbo")
        right.errorbar(bound.mean, i, xerr=bound.standard_error, fmt="o", color=f"C{i}", capsize=3)
        right.plot(result.bits_per_dim[0], [i + 0.2] * len(result.seeds), "|", color=f"C{i}")
    left.set(xlabel="t", ylabel="γ(t) = −log SNR", title="schedules after training, each seed")
    left.legend(frameon=False, fontsize=8)
    right.set_yticks(range(len(results)), [*results])
    right.invert_yaxis()
    right.set(xlabel="test bits/dim, eps (± standard error; | single seeds)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return drawing


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    set_up_jax(options.quick)
    schedules = SCHEDULES
    if options.quick:
        options.steps, options.seeds = 2, 2
        schedules = {name: SCHEDULES[name] for name in ("linear", "learned_linear")}
    out = output_folder(options, "schedules")
    results = {}
    for name, spec in schedules.items():
        results[name] = run(spec, options)
        print(name, results[name][0].bound("eps_unit_variance_elbo"), flush=True)
    rows = {
        name: result.to_dict() | {"gamma": gamma[:, ::10].tolist()}
        for name, (result, gamma) in results.items()
    }
    for row in rows.values():
        for variant in row["variants"].values():
            del variant["weights"]  # keeps the file small
    about = environment("python", "machine", "device") | {"times": TIMES[::10].tolist()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "schedules.json").write_text(json.dumps(about | {"schedules": rows}) + "\n")
    (out / "table.md").write_text(table(results))
    figure(results).savefig(out / "schedules.png", dpi=150)
    print(table(results))


if __name__ == "__main__":
    main()
