"""From the VAE to the diffusion model: several likelihoods of each checkpoint on the embedded digits.

    python experiments/likelihood.py [--quick] [--seeds 3] [--models VAE eps ...] [--out DIR] [--runs DIR]

Trains each model with each seed and evaluates each checkpoint on the test split with the estimators below.
Writes results.json (settings, numbers and seconds of all evaluations, library versions) and table.md, which has
means over the seeds ± the standard error over the seeds; for one seed, over the examples. With --models, the
other models keep their rows in DIR. --quick trains for seconds; its numbers mean nothing.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from _common import (
    CONFIGS,
    argument_parser,
    cpu_name,
    environment,
    markdown_table,
    output_folder,
    read_config,
    set_up_jax,
    shrink,
    write_results,
)

import vdm_jax as vdm
from vdm_jax.runs.estimates import estimate
from vdm_jax.training.evaluation import Evaluation, over_seeds

COMMAND = "python experiments/likelihood.py"

LATENT_VARIABLE: list[dict[str, Any]] = [
    {"name": "elbo", "draws": 16},
    {"name": "importance", "samples": 10},
    {"name": "importance", "samples": 100},
]
DIFFUSION: list[dict[str, Any]] = [
    {"name": "elbo", "timesteps": None},
    {"name": "elbo", "timesteps": 1000},
    {"name": "elbo", "timesteps": 100},
    {"name": "tuned", "timesteps": 100},
    {"name": "importance", "timesteps": 100, "samples": 1},
    {"name": "importance", "timesteps": 100, "samples": 10},
    {"name": "importance", "timesteps": 100, "samples": 10, "variance": "fitted"},
    {"name": "elbo", "timesteps": 10},
    {"name": "tuned", "timesteps": 10},
    {"name": "importance", "timesteps": 10, "samples": 10, "variance": "fitted"},
    {"name": "ode", "steps": 64, "check_steps": True},
    {"name": "ode", "steps": 64, "samples": 4},
    {"name": "ode", "steps": 64, "dequantization": "truncated_normal"},
    {"name": "ode", "steps": 64, "dequantization": "uniform"},
]
QUICK = [
    {"name": "tuned", "timesteps": 4},
    {"name": "importance", "timesteps": 2, "samples": 2},
    {"name": "ode", "steps": 2, "check_steps": True},
]


class Case(NamedTuple):
    """A model of the ladder: its config, changed fields of `config.model.chain`, and its estimators."""

    config: str
    chain: dict[str, Any]
    estimators: list[dict[str, Any]]


MODELS = {
    "VAE": Case("vae", {}, LATENT_VARIABLE),
    **{
        f"MHVAE, T = {n}": Case("mhvae", {"latents": (16,) * n}, LATENT_VARIABLE) for n in (2, 4, 8)
    },
    "eps": Case("eps", {}, DIFFUSION),
    "v": Case("v", {}, DIFFUSION),
}


def words(spec: dict[str, Any]) -> str:
    """Return a spec in words, for the table."""
    shown = [spec.get("dequantization", "decoder")] if spec["name"] == "ode" else []
    if "timesteps" in spec:
        shown.append(f"T = {'∞' if spec['timesteps'] is None else spec['timesteps']}")
    if "samples" in spec:
        shown.append(f"M = {spec['samples']}")
    if spec.get("variance") == "fitted":
        shown.append("tuned variance")
    return ", ".join([spec["name"], *shown])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means of all estimators of each model."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        of_model = [row["estimates"] for row in rows if row["model"] == name]
        for results in zip(*of_model, strict=True):
            bounds = [Evaluation.from_json(result["evaluation"]) for result in results]
            mean, error = over_seeds(bounds)
            calls = "–" if bounds[0].calls is None else str(bounds[0].calls)
            seconds = f"{results[0]['seconds']:.0f}"
            lines.append(
                [name, words(results[0]["spec"]), f"{mean:.3f} ± {error:.3f}", calls, seconds]
            )
    return markdown_table(
        ["model", "estimator", "test bits/dim", "calls per example", "seconds"], lines
    )


def run(name: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    """Train a model with a seed and evaluate it with its estimators."""
    case = MODELS[name]
    config, specs = read_config(CONFIGS / f"{case.config}.py"), case.estimators
    if case.chain:
        config.model.chain.update(case.chain)
    if quick and case.estimators is DIFFUSION:
        shrink(config)
        specs = QUICK
    elif quick:
        config.train.steps, config.evaluate.draws, specs = 3, 1, specs[:2]
    config.seed = seed
    config.evaluate.estimators = tuple(specs)
    config.sample.count = 4  # the samples of the run are not used
    workdir = folder / f"{name}_seed{seed}".replace(", T = ", "_")
    # the run itself is evaluated by the first estimator only
    trained = vdm.train(config, workdir, log=lambda _: None)
    rows = estimate(trained, lambda line: print(line.split("\n")[0], flush=True))
    estimates = [
        {"spec": spec, "seconds": row.pop("seconds"), "evaluation": row}
        for spec, row in zip(specs, rows, strict=True)
    ]
    about = environment("versions", "python") | {"machine": cpu_name()}
    return {"model": name, "seed": seed, "estimates": estimates} | about


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs, to resume them; a temporary one by default"
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "likelihood")
    if options.quick:
        options.seeds, options.models = 1, ["VAE", "eps"]
    folder = options.runs or Path(tempfile.mkdtemp())

    rows, path = [], out / "results.json"
    if path.exists() and not options.quick:
        saved = json.loads(path.read_text())
        rows = [row for row in saved["rows"] if row["model"] not in options.models]
    for name in options.models:
        for seed in range(options.seeds):
            rows.append(run(name, seed, folder, options.quick))
            rows.sort(key=lambda row: list(MODELS).index(row["model"]))
            write_results(out, {"command": COMMAND, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
