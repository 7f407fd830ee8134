"""Digits that are completed from their left half, and from 4×4 means, by conditional samplers.

    python experiments/inverse_problems.py [--quick] [--out DIR] [--runs DIR]

Trains the noise predictor of the gallery in continuous time. Writes digits.png and results.json (squared errors
of the known and the hidden elements, config, versions). Images and samples are the first of their order.
--quick trains for seconds; its picture shows nothing.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _common import argument_parser, cpu_name, environment, output_folder, set_up_jax
from gallery import NETWORK, grid, save, show
from matplotlib.figure import Figure

import vdm_jax as vdm
from vdm_jax.config import default

COMMAND = "python experiments/inverse_problems.py"
SHOWN = 10  # digits
STEPS = 250
HIDDEN = -0.2  # grey of hidden elements in the picture
LABEL_INCHES = 1.7


def config_of(quick: bool) -> Any:
    """Return the config of the noise predictor."""
    config = default()
    config.model.network = dict(NETWORK)
    config.sample.count = 4  # the samples of the run are not used
    if quick:
        config.model.network = {"name": "mlp", "width": 16, "depth": 1}
        config.train.steps, config.evaluate.draws = 4, 1
    return config


def means(x0: Any) -> Any:
    """Return the means of 2×2 pixels [16] of an image [8, 8, 1], times 2: the rows of A are orthonormal."""
    return 2 * x0.reshape(4, 2, 4, 2).mean((1, 3)).reshape(-1)


def completions(trained: vdm.TrainedModel, x0: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Return rows of pictures [n, 8, 8, 1] in [-1, 1] by label: the data, the observations and the samples."""
    likelihood = vdm.likelihoods.softmax(levels=17)
    plain = vdm.samplers.ancestral()
    mask = np.zeros(x0.shape[1:], bool)
    mask[:, :4] = True
    variance = float(np.mean(np.square(x0)))

    def sample(condition):
        """Return a sample for each image, with the noise that has the number of the image."""

        @jax.jit  # with the image as an argument, so that it compiles once
        def draw_one(params, x, i):
            options = {"sampler": condition(x), "steps": steps, "first": i}
            return trained.model.sample(params, jax.random.key(0), 1, **options)[0]

        drawn = [draw_one(trained.state.ema_params, x, i) for i, x in enumerate(x0)]
        return np.asarray(likelihood.encode(np.stack(drawn)))

    def guided(forward):
        return lambda x: vdm.samplers.reconstruction_guidance(
            plain, forward, forward(x), data_variance=variance
        )

    coarse = x0.reshape(-1, 4, 2, 4, 2, 1).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    return {
        "data": x0,
        "left half": np.where(mask, x0, HIDDEN),
        "inpainting": sample(lambda x: vdm.samplers.inpainting(plain, x, mask)),
        "guidance": sample(guided(lambda x: x[:, :4].reshape(-1))),
        "4×4 means": coarse,
        "guidance from means": sample(guided(means)),
    }


def draw(rows: dict[str, np.ndarray], path: Path) -> None:
    """Draw a row of pictures for each label."""
    figure = Figure(figsize=(LABEL_INCHES + 0.62 * SHOWN, 0.64 * len(rows)))
    left = LABEL_INCHES / figure.get_figwidth()
    margins = {"left": left, "right": 0.995, "top": 0.99, "bottom": 0.01, "hspace": 0.02}
    axes = figure.subplots(len(rows), 1, gridspec_kw=margins)
    for each, (label, images) in zip(axes, rows.items(), strict=True):
        show(each, grid(images, SHOWN))
        each.text(-0.01, 0.5, label, transform=each.transAxes, ha="right", va="center", fontsize=10)
    save(figure, path)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--runs", type=Path, help="folder of the run, to resume it; a temporary one by default"
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "inverse_problems")
    workdir = (options.runs or Path(tempfile.mkdtemp())) / "eps"
    trained = vdm.train(config_of(options.quick), workdir, log=lambda _: None)
    images = trained.dataset.test.images[np.arange(2 if options.quick else SHOWN)]
    x0 = np.asarray(vdm.likelihoods.softmax(levels=17).encode(images))
    rows = completions(trained, x0, 2 if options.quick else STEPS)
    out.mkdir(parents=True, exist_ok=True)
    draw(rows, out / "digits.png")
    errors = {}
    for name in ("inpainting", "guidance"):
        square = np.square(rows[name] - x0)
        errors[name] = {
            "left": float(square[:, :, :4].mean()),
            "right": float(square[:, :, 4:].mean()),
        }
    observed = [
        np.asarray([means(x) for x in rows[name]]) for name in ("guidance from means", "data")
    ]
    errors["guidance from means"] = {"means": float(np.mean(np.square(observed[0] - observed[1])))}
    about = {"command": COMMAND, "steps": STEPS, "squared_errors": errors}
    about |= environment("versions", "python") | {"machine": cpu_name(), "config": trained.config}
    (out / "results.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(errors, indent=2))


if __name__ == "__main__":
    main()
