"""Paths of the solvers on a mixture of Gaussians in two dimensions, beside the exact probability flow.

    python experiments/solver_paths.py [--quick] [--out DIR]

All solvers use the exact denoiser, start from the same noise and visit noise levels that are equidistant in γ.
Writes paths.png and results.json (distances from the exact flow at its end, settings, versions). --quick draws
two solvers with few steps.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import argument_parser, environment, output_folder, set_up_jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vdm_jax as vdm

COMMAND = "python experiments/solver_paths.py"
LAW = vdm.Mixture.of(
    [0.3, 0.3, 0.2, 0.2],
    [[-1.2, 0.6], [1.2, 0.6], [0.0, -1.0], [0.0, 1.4]],
    [[0.02, 0.02], [0.02, 0.02], [0.05, 0.01], [0.01, 0.01]],
)
SCHEDULE = {"name": "linear", "gamma_min": -8.0, "gamma_max": 6.0}
SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {"name": "ddim"},
    "heun": {"name": "heun"},
    "dpm_solver_pp": {"name": "dpm_solver_pp"},
    "dpm_solver_pp, order 3": {"name": "dpm_solver_pp", "order": 3},
    "ancestral": {"name": "ancestral"},
    "sde_dpm_solver_pp": {"name": "sde_dpm_solver_pp"},
}
DRAW = ("ancestral", "sde_dpm_solver_pp")  # noise in each step, so that there is no exact path
STEPS = 5, 10, 20
EXACT = 2000  # steps of the exact flow, by Heun's method
SHOWN = 24  # paths in a panel
SHOWN_DRAWS = 5  # of the solvers that draw noise, whose paths cross
COUNT = 1000  # paths of a distance


def paths(spec: dict[str, Any], x1: np.ndarray, steps: int) -> np.ndarray:
    """Return the latents of a solver and its prediction of the data at the end, [n, steps + 2, 2]."""
    schedule = vdm.build(vdm.schedules.SCHEDULES, SCHEDULE, "schedule")
    sampler = vdm.build(vdm.samplers.SAMPLERS, spec, "sampler")

    def predict(xt, level):
        return LAW.denoise(xt, level.gamma_t)

    def one(x1, key):
        def step(carry, i):
            xt, state = carry
            level = vdm.interval(schedule, None, i / steps, (i + 1) / steps)
            carry = sampler.step(jax.random.fold_in(key, i), xt, level, predict, state)
            return carry, carry[0]

        (end, _), latents = jax.lax.scan(step, (x1, sampler.init(x1)), jnp.arange(steps)[::-1])
        x0 = LAW.denoise(end, schedule.gamma(None, 0.0))
        return jnp.concatenate([x1[None], latents, x0[None]])

    keys = jax.random.split(jax.random.key(1), len(x1))
    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(x1), keys))


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the median distance between the ends of paths and those of the exact flow."""
    return float(np.median(np.linalg.norm(found[:, -1] - exact[:, -1], axis=-1)))


def draw(panel: Any, found: np.ndarray, exact: np.ndarray | None) -> None:
    """Draw paths from noise to data, and the exact ones below them."""
    if exact is not None:
        for path in exact[:SHOWN]:
            panel.plot(*path.T, color="0.75", linewidth=2.5, solid_capstyle="round")
    for path in found[: SHOWN_DRAWS if exact is None else SHOWN]:
        panel.plot(*path.T, color="tab:blue", linewidth=0.8, marker=".", markersize=2.5)
        panel.plot(*path[-1], color="tab:red", marker="o", markersize=3)
    panel.set(xlim=(-2.6, 2.6), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect="equal")


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    set_up_jax(options.quick)
    solvers, numbers, fine = SOLVERS, STEPS, EXACT
    if options.quick:
        solvers = {name: SOLVERS[name] for name in ("ddim", "ancestral")}
        numbers, fine = (2, 4), 20
    x1 = np.asarray(jax.random.normal(jax.random.key(0), (COUNT, 2)))
    exact = paths(SOLVERS["heun"], x1, fine)
    figure = Figure(figsize=(2.4 * len(numbers), 2.45 * len(solvers)), layout="constrained")
    panels = figure.subplots(len(solvers), len(numbers))
    results: dict[str, dict[int, float]] = {}
    for row, (name, spec) in zip(panels, solvers.items(), strict=True):
        for panel, steps in zip(row, numbers, strict=True):
            found = paths(spec, x1, steps)
            draws = name in DRAW
            draw(panel, found, None if draws else exact)
            title = f"{steps} steps"
            if not draws:
                results.setdefault(name, {})[steps] = distance(found, exact)
                title += f": {results[name][steps]:.3f}"
            panel.set_title(title, fontsize=9)
        row[0].set_ylabel(name, fontsize=9)
    out = output_folder(options, "solver_paths")
    out.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(110)
    FigureCanvasAgg(figure).print_png(out / "paths.png")
    about = {"command": COMMAND, "median_distance": results, "schedule": SCHEDULE}
    about |= {"paths": COUNT, "exact_steps": fine} | environment("versions", "python")
    (out / "results.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
