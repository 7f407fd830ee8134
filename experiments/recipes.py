"""Bounds and sample distances of the objectives of `configs/recipes` on the embedded digits.

    python experiments/recipes.py [--quick] [--seeds 3] [--recipes ddpm edm ...] [--out DIR] [--runs DIR]

Trains each recipe with the same network, batches and number of steps, and draws samples from each model with
the sampler of the recipe and with those of `SOLVERS`. Writes results.json (bounds, distances, relative times of
a training step, configs, versions), table.md, recipes.png, and weights.png with the weights of the losses.
Seeds share their compiled programs by the cache on disk. With --runs, a stopped experiment continues. --quick
trains two recipes for seconds; its numbers mean nothing.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _common import (
    CONFIGS,
    argument_parser,
    cpu_name,
    environment,
    initial_state,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
    write_results,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vdm_jax as vdm
from vdm_jax.comparison.quality import Quality, quality_of
from vdm_jax.config import resolve
from vdm_jax.runs.setup import statistics_of
from vdm_jax.runs.start import initial_schedule_params, load_data
from vdm_jax.runs.sweep import Run
from vdm_jax.specs import label_of
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.evaluation import PARTS, Evaluation, over_seeds

COMMAND = "python experiments/recipes.py"
RECIPES = ("ddpm", "iddpm", "vdm", "v_prediction", "edm", "min_snr", "flow_matching")  # by year
NETWORK = {"name": "unet", "channels": (16, 32), "blocks": 1, "dropout": 0.1}
OWN = "own"
SOLVERS: dict[str, dict[str, Any]] = {
    "ancestral": {"sampler": "ancestral", "grid": "schedule"},
    "heun": {"sampler": "heun", "grid": "karras"},
    "dpm_solver_pp": {"sampler": "dpm_solver_pp", "grid": "uniform"},
    "dpm_solver_pp, order 3": {"sampler": {"name": "dpm_solver_pp", "order": 3}, "grid": "uniform"},
    "sde_dpm_solver_pp": {"sampler": "sde_dpm_solver_pp", "grid": "uniform"},
}
"""Samplers that all recipes are also sampled with."""
CHAINS = ("ancestral",)  # of these, also with many steps
FEW = 5, 10, 20, 50
MANY = 1000
CHOSEN_AT = 20  # steps at which the best sampler is chosen
COUNT = 256  # samples of a distance
LIMIT = 8.0  # bits/dim, of the axis
ROUNDS = 30  # training steps that are timed, in turns

Distances = dict[str, dict[str, float]]
"""Distance by name of the sampler and number of steps, a string as in JSON."""


def config_of(recipe: str, seed: int, quick: bool) -> Any:
    """Return the config of a recipe with the network of the experiment."""
    config = read_config(CONFIGS / "recipes" / f"{recipe}.py")
    config.model.network.update(NETWORK)
    config.seed = seed
    config.sample.count = 4  # the samples of the run are not used
    if quick:
        config.model.network = {"name": "mlp", "width": 16, "depth": 1}
        config.train.steps = 4
        config.evaluate.draws = 1
    return config


def measure(trained: vdm.TrainedModel, quality: Quality, path: Path, quick: bool) -> Distances:
    """Return the distance of samples for each sampler and number of steps, and save them on the way."""
    own = {name: trained.settings.sample[name] for name in ("sampler", "grid")}
    others = {"heun": SOLVERS["heun"]} if quick else SOLVERS
    solvers = {OWN: own} | {name: spec for name, spec in others.items() if spec != own}
    few, many, count = ((2,), 4, 8) if quick else (FEW, MANY, COUNT)
    saved: Distances = json.loads(path.read_text()) if path.exists() else {}

    def distance(name: str, steps: int) -> float:
        of_solver = saved.setdefault(name, {})
        if str(steps) not in of_solver:
            # seeds draw other noise, so that their errors are independent; samplers share it
            key = jax.random.fold_in(jax.random.key(trained.settings.seed), steps)
            x = trained.sample(key, count, steps=steps, **solvers[name])
            of_solver[str(steps)] = quality.distance(np.asarray(x))
            path.write_text(json.dumps(saved))
        return of_solver[str(steps)]

    for name in solvers:
        for steps in few:
            distance(name, steps)
    for name in solvers.keys() & {OWN, *CHAINS}:
        distance(name, many)
    return saved


def relative_times(recipes: list[str], quick: bool) -> dict[str, float]:
    """Return the median time of a training step of each recipe in units of that of the first, in turns."""
    layout, steps = make_layout("jit"), {}
    for recipe in recipes:
        settings = resolve(config_of(recipe, 0, quick))
        dataset = load_data(settings.data)
        job = Run(settings, statistics_of(settings.model, dataset))
        options = {"batch_size": settings.train.batch_size, "start_step": 0, "stop_step": 1}
        batch = next(job.batches(dataset.train, **options, stack=1))
        state = initial_state(job, layout)
        steps[recipe] = [dispatcher(layout, job.step(layout), state, 1), state, batch]
    seconds = np.zeros((2 if quick else ROUNDS + 1, len(recipes)))
    for i in range(len(seconds)):
        for j, turn in enumerate(steps.values()):
            began = time.perf_counter()
            step, state, batch = turn
            turn[1], _ = jax.block_until_ready(step(state, batch))
            seconds[i, j] = time.perf_counter() - began
    ratios = np.median(seconds[1:] / seconds[1:, :1], 0)  # the first round compiles
    return dict(zip(recipes, ratios.tolist(), strict=True))


# ------------------------------------------------------------ table and figure


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean over the seeds and its standard error, NaN for one seed."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def of_recipe(rows: list[dict[str, Any]], recipe: str) -> list[dict[str, Any]]:
    """Return the rows of the seeds of a recipe."""
    return [row for row in rows if row["recipe"] == recipe]


def distance_of(rows: list[dict[str, Any]], solver: str, steps: str) -> tuple[float, float]:
    """Return the mean distance over the rows of the seeds, and its standard error."""
    return mean_and_error([row["distances"][solver][steps] for row in rows])


def best_of(rows: list[dict[str, Any]]) -> str:
    """Return the sampler with the lowest mean distance at `CHOSEN_AT` steps, or at the fewest in quick form."""
    solvers = rows[0]["distances"]
    few = [*solvers[OWN]]
    steps = str(CHOSEN_AT) if str(CHOSEN_AT) in few else few[0]
    return min(solvers, key=lambda name: distance_of(rows, name, steps)[0])


def number(mean: float, error: float, digits: int, unit: float = 1.0) -> str:
    """Return a mean ± its standard error, which is NaN for one seed, in multiples of a unit."""
    mean, error = round(mean / unit, digits) + 0.0, error / unit  # + 0.0: no −0
    beside = "" if np.isnan(error) else f" ± {error:.{digits}f}"
    return f"{mean:.{digits}f}{beside}".replace("-", "−")


def table(results: dict[str, Any]) -> str:
    """Return the tables of bounds and of distances."""
    bounds, distances = [], []
    steps = [*results["rows"][0]["distances"][OWN]]
    for recipe, relative in results["step"].items():
        seeds = of_recipe(results["rows"], recipe)
        tests = [Evaluation.from_json(row["test"]) for row in seeds]
        parts = [f"{np.mean([getattr(test, part) for test in tests]):.3f}" for part in PARTS]
        timesteps = str(seeds[0]["config"]["model"]["timesteps"] or "∞")
        bounds.append(
            [recipe, timesteps, number(*over_seeds(tests), 3), *parts, f"× {relative:.2f}"]
        )
        sample = seeds[0]["config"]["sample"]
        own = f"own: {label_of(sample['sampler'])}, grid {label_of(sample['grid'])}"
        measured = seeds[0]["distances"]
        shown = (OWN, best_of(seeds), *(name for name in CHAINS if name in measured))
        for solver in dict.fromkeys(shown):
            cells = [
                number(*distance_of(seeds, solver, n), 0, unit=1e-3)
                if n in measured[solver]
                else "–"
                for n in steps
            ]
            distances.append([recipe, own if solver == OWN else solver, *cells])
    columns = ["recipe", "T", "test bits/dim", *PARTS, "training step"]
    caption = (
        f"Distances are in units of 0.001: {results['distance']}. As many training images have "
        f"{1e3 * results['real']:.1f}."
    )
    headings = ["recipe", "sampler", *(f"{n} steps" for n in steps)]
    return "\n".join(
        (markdown_table(columns, bounds), markdown_table(headings, distances, caption))
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the parts of the bounds, and the distances by number of steps."""
    rows, recipes = results["rows"], [*results["step"]]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    bounds, own, best = figure.subplots(1, 3)
    own.sharey(best)
    left = np.zeros(len(recipes))
    for part, colour in zip(PARTS, ("0.75", "tab:blue", "0.45"), strict=True):
        widths = [np.mean([r["test"][part] for r in of_recipe(rows, name)]) for name in recipes]
        bounds.barh(recipes, widths, left=left, color=colour, label=part)
        left += widths
    for i, total in enumerate(left):
        beyond = total > LIMIT
        text, side = (f"{total:.0f} → ", "right") if beyond else (f" {total:.2f}", "left")
        bounds.text(min(total, LIMIT), i, text, va="center", ha=side, fontsize=8)
    bounds.invert_yaxis()
    bounds.set(title="bound on the test split", xlabel="bits/dim", xlim=(0, LIMIT))
    bounds.legend(fontsize=8, loc="upper right")
    for axes, title in ((own, "sampler of the recipe"), (best, "best sampler")):
        for recipe in recipes:
            seeds = of_recipe(rows, recipe)
            solver = OWN if axes is own else best_of(seeds)
            steps = [*seeds[0]["distances"][solver]]
            means, errors = zip(*(distance_of(seeds, solver, n) for n in steps), strict=True)
            label = recipe if axes is own else f"{recipe}: {solver}"
            axes.errorbar([*map(int, steps)], means, errors, label=label, capsize=2, marker=".")
        axes.axhline(results["real"], color="0.6", linestyle=":", label="training images")
        axes.set(xscale="log", xlabel="steps", title=title)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.legend(fontsize=7)
    own.set_ylabel("distance of the samples")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def draw_weights(recipes: list[str], path: Path) -> None:
    """Draw the weight of each recipe's loss in units of the bound's, relative to that at log-SNR 0."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, recipe in enumerate(recipes):
        model = resolve(config_of(recipe, 0, quick=False)).model
        schedule = vdm.build(vdm.schedules.SCHEDULES, model["schedule"], "schedule")
        found = vdm.effective_weights(
            model["parameterization"],
            model["weighting"],
            schedule=schedule,
            schedule_params=initial_schedule_params(0, schedule),
            timesteps=model["timesteps"],
        )
        log_snr, relative = np.asarray(found.log_snr)[::-1], np.asarray(found.relative)[::-1]
        # curves that agree stay visible: dashes above lines
        dashes = (i, (6, 2)) if i % 2 else "-"
        relative = relative / np.interp(0.0, log_snr, relative)
        axes.plot(log_snr, relative, label=recipe, linestyle=dashes, zorder=3 - 0.1 * i)
    axes.set(
        yscale="log", ylim=(1e-5, 1e2), xlabel="log-SNR", ylabel="weight / weight of the bound"
    )
    axes.set_title("weights of the training losses, 1 at log-SNR 0")
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs, to continue; a temporary one by default"
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    if options.quick:
        options.seeds, options.recipes = 1, ["ddpm", "edm"]
    out = output_folder(options, "recipes")
    folder = options.runs or Path(tempfile.mkdtemp())
    rows, quality = [], None
    for recipe in options.recipes:
        for seed in range(options.seeds):
            workdir = folder / f"{recipe}_seed{seed}"
            config = config_of(recipe, seed, options.quick)
            trained = vdm.train(config, workdir, log=lambda _: None)
            test = json.loads((workdir / "evaluation.json").read_text())["test"]
            quality = quality or quality_of(trained.dataset, None, None, COUNT)
            distances = measure(trained, quality, workdir / "distances.json", options.quick)
            row = {"recipe": recipe, "seed": seed, "test": test, "distances": distances}
            rows.append(row | {"config": trained.config})
            print(f"{recipe}, seed {seed}: {test['bits_per_dim']:.3f} bits/dim", flush=True)
    assert quality is not None
    results = {"command": COMMAND} | environment("versions", "python", "cores")
    results |= {"machine": cpu_name(), "step": relative_times(options.recipes, options.quick)}
    results |= {"distance": f"{quality.name}, {COUNT} samples", "real": quality.real(COUNT)}
    results["rows"] = rows
    draw(results, out / "recipes.png")
    draw_weights(options.recipes, out / "weights.png")
    write_results(out, results, table(results))


if __name__ == "__main__":
    main()
