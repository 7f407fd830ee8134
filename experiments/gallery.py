"""Samples of the embedded digits: a denoising chain, all parameterizations, and samplers with their steps.

    python experiments/gallery.py [--quick] [--out=DIR] [--runs=DIR]

Trains each parameterization with both output scales and T = 1000. All share the small U-Net, the base, the
order of the data and the number of training steps. Writes denoising.gif and denoising.png (a chain of the `eps`
model), parameterizations.png (samples of all models from the same noise), samplers.png (samplers and numbers of
steps of the `eps` model) and results.json (bounds, distances, configs, library versions). Samples are not
selected: each picture shows the first of its seed. --quick trains one model for seconds; its pictures show
nothing.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _common import (
    all_images,
    argument_parser,
    cpu_name,
    environment,
    output_folder,
    set_up_jax,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import vdm_jax as vdm
from vdm_jax.comparison.quality import kernel_distance, pixels
from vdm_jax.config import default
from vdm_jax.runs.plots import tile

COMMAND = "python experiments/gallery.py"
TIMESTEPS = 1000
SEED = 0  # of all samples
CHAIN = 24  # digits in the animation
ROWS, COLUMNS = 5, 13  # of denoising.png
SHOWN = 18  # samples in a row
BATCHES, BATCH = 4, 64  # number and size of the batches of samples whose distance is measured
NETWORK = {"name": "unet", "channels": (16, 32), "blocks": 1, "dropout": 0.1}
SAMPLERS = {"ancestral": (10, 50, 1000), "ddim": (10, 50, 1000)}
GREYS = 16  # grey levels of the animation
GROUND = 0.8  # grey level between images, which separates them also where their edges are white
FRAME, PAUSE = 80, 3000  # milliseconds
CLEAR = 7.0  # log-SNR above which no change is visible


def config_of(parameterization: str, output_scale: str, quick: bool) -> Any:
    """Return the config of one model."""
    config = default()
    config.model.parameterization = parameterization
    config.model.output_scale = output_scale
    config.model.timesteps = TIMESTEPS
    config.model.time_sampler = "uniform"  # so that all models train at the same times
    config.model.network = dict(NETWORK)
    config.sample.count = 4  # the samples of the run are not used
    config.sample.steps = 10
    if quick:
        config.model.network = {"name": "mlp", "width": 16, "depth": 1}
        config.train.steps = 4
        config.evaluate.draws = 1
    return config


# ------------------------------------------------------------ chains


def recording_sampler(name: str, records: list) -> Any:
    """Return a sampler that also appends (γ_t, x_t, x̂_0) of every step to `records`."""
    sampler = vdm.build(vdm.samplers.SAMPLERS, name, "sampler")

    def record(*values):
        records.append([np.asarray(value) for value in values])

    def step(key, xt, interval, predict, state):
        def recorded_predict(xt, interval):
            x0_hat = predict(xt, interval)
            jax.debug.callback(record, interval.gamma_t, xt[0], x0_hat[0])
            return x0_hat

        return sampler.step(key, xt, interval, recorded_predict, state)

    return vdm.samplers.Sampler(sampler.init, step)


def chain_of(trained: vdm.TrainedModel, key: Any, n: int, steps: int, name: str = "ancestral"):
    """Return chains from noise to data: log-SNR [N + 1], x_t and x̂_0 [N + 1, n, 8, 8, 1].

    The last x_t and the last x̂_0 are the samples.
    """
    records: list = []
    sampler = recording_sampler(name, records)

    @jax.jit
    def draw(params, i):
        return trained.model.sample(params, key, 1, sampler=sampler, steps=steps, first=i)

    # one example at a time, because the callbacks of a batch come in no particular order
    x, chains = [], []
    for i in range(n):
        records.clear()
        x.append(np.asarray(draw(trained.state.ema_params, i))[0])
        jax.effects_barrier()
        records.sort(key=lambda values: -values[0])
        chains.append([np.stack(values) for values in zip(*records, strict=True)])
    gamma = chains[0][0]
    xt, x0_hat = (np.stack([chain[j] for chain in chains], axis=1) for j in (1, 2))
    gamma_0 = trained.model.per_noise_level.gamma(trained.state.ema_params, 0.0)  # type: ignore[union-attr]
    end = unit(np.stack(x), trained.statistics.levels)[None]
    return (
        -np.append(gamma, float(gamma_0)),
        np.concatenate([xt, end]),
        np.concatenate([x0_hat, end]),
    )


def unit(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Return the centres of the levels' cells in [-1, 1], the values that the model is given."""
    assert levels is not None
    return (2 * np.asarray(x, np.float64) + 1) / levels - 1


def nearest(log_snr: np.ndarray, values: np.ndarray) -> list[int]:
    """Return the index of the nearest log-SNR for each value."""
    return [int(np.abs(log_snr - value).argmin()) for value in values]


# ------------------------------------------------------------ pictures


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Tile images with values in [-1, 1] into one grey image; clip values outside this range."""
    between = tile(np.zeros_like(images), 2, columns) == 1
    return np.where(between, GROUND, tile((np.clip(images, -1, 1) + 1) / 2, 2, columns))


def show(axes: Any, picture: np.ndarray) -> Any:
    """Show a grey image without axes."""
    axes.set_axis_off()
    return axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Save a figure as an 8-bit grey image."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).convert("L").save(
        path, optimize=True
    )


def strip(path: Path, log_snr: np.ndarray, xt: np.ndarray, x0_hat: np.ndarray) -> None:
    """Draw digits with falling noise from left to right: the latents, and below them the predictions."""
    values = np.append(np.linspace(log_snr[0], CLEAR, COLUMNS - 1), log_snr[-1])
    indices = nearest(log_snr, values)
    figure = Figure(figsize=(8.4, 6.75))
    margins = {"left": 0.045, "right": 0.995, "top": 0.965, "bottom": 0.005, "hspace": 0.06}
    pairs = figure.subplots(ROWS, 1, gridspec_kw=margins)
    cell = 9  # pixels of an image and the gap beside it
    for i, axes in enumerate(pairs):
        show(axes, grid(np.concatenate([xt[indices, i], x0_hat[indices, i]]), COLUMNS))
        for j, name in enumerate((r"$x_t$", r"$\hat{x}_0$")):
            axes.text(-1.5, (j + 0.5) * cell, name, ha="right", va="center", fontsize=11)
    header = {"y": -1.5, "va": "bottom", "fontsize": 9}
    for column, index in enumerate(indices):
        value = f"{log_snr[index]:.1f}".replace("-", "−")
        pairs[0].text(x=(column + 0.5) * cell, s=value, ha="center", **header)
    pairs[0].text(x=-0.5, s="log-SNR", ha="right", **header)
    save(figure, path)


def animation(path: Path, log_snr: np.ndarray, xt: np.ndarray, x0_hat: np.ndarray) -> None:
    """Draw a chain as a GIF: latents on the left, predictions on the right, the noise level below."""
    indices = nearest(log_snr, np.arange(log_snr[0], CLEAR, 0.3))
    indices = [*dict.fromkeys(indices), len(log_snr) - 1]
    columns, scale = 6, 5  # a pixel of an image becomes 5 × 5 pixels
    height, width = 280, 600  # pixels
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for x, left, name in ((xt, 15, r"latent $x_t$"), (x0_hat, 310, r"prediction $\hat{x}_0$")):
        picture = grid(x[indices[0]], columns)
        rows, cols = (scale * n for n in picture.shape[:2])
        axes = figure.add_axes((left / width, 65 / height, cols / width, rows / height))
        pictures.append((show(axes, picture), x))
        axes.set_title(name, fontsize=11)
    line = figure.add_axes((0.1, 42 / height, 0.8, 6 / height))
    line.set(xlim=(log_snr[0], log_snr[-1]), ylim=(-1, 1), yticks=[])
    line.spines[:].set_visible(False)
    line.axhline(0, color="0.75", linewidth=3)
    line.tick_params(labelsize=8)
    line.set_xlabel("log-SNR", fontsize=9, labelpad=1)
    (done,) = line.plot([], [], color="0.15", linewidth=3, solid_capstyle="butt")
    (mark,) = line.plot([], [], "o", color="0.15", markersize=8, clip_on=False)
    frames = []
    for index in indices:
        for picture, x in pictures:
            picture.set_data(grid(x[index], columns))
        done.set_data([log_snr[0], log_snr[index]], [0, 0])
        mark.set_data([log_snr[index]], [0])
        canvas.draw()
        grey = np.asarray(canvas.buffer_rgba())[..., 0].astype(int)
        levels = np.round(grey * (GREYS - 1) / 255).astype(np.uint8)
        frame = Image.fromarray(levels, mode="P")
        frame.putpalette([round(g * 255 / (GREYS - 1)) for g in range(GREYS) for _ in range(3)])
        frames.append(frame)
    durations = [FRAME] * len(frames)
    durations[0], durations[-1] = 600, PAUSE
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
    )


def rows_of_samples(
    path: Path, rows: list[tuple[str, np.ndarray, str]], levels: int, headings: tuple[str, str]
) -> None:
    """Draw rows of samples, each with its name on the left and a number on the right.

    Args:
      path: the file to write.
      rows: (name, images, number); the first row is of data.
      levels: of the images.
      headings: above the names and above the numbers.
    """
    row_height, header = 0.43, 0.25  # inches
    height = row_height * len(rows) + header
    figure = Figure(figsize=(9.4, height))
    margins = {"left": 0.12, "right": 0.87, "bottom": 0.005, "hspace": 0.02}
    strips = figure.subplots(len(rows), 1, gridspec_kw=margins | {"top": 1 - header / height})

    def write_beside(axes, y, texts, **style):
        places = ((-0.012, "right"), (1.012, "left"))
        for (x, side), text in zip(places, texts, strict=True):
            axes.text(x, y, text, transform=axes.transAxes, ha=side, **style)

    for axes, (name, images, number) in zip(strips, rows, strict=True):
        show(axes, tile(images[:SHOWN], levels, SHOWN))
        write_beside(axes, 0.5, (name, number), va="center", fontsize=10)
    write_beside(strips[0], 1.08, headings, va="bottom", fontsize=9, color="0.35")
    save(figure, path)


# ------------------------------------------------------------ measurements


def distances(batches: Any, dataset: Any) -> list[float]:
    """Return the kernel distance, by pixels, of each batch of images from the test split."""
    real = pixels(all_images(dataset.test), dataset.levels)
    return [kernel_distance(pixels(np.asarray(x), dataset.levels), real) for x in batches]


def estimate(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def format_estimate(mean: float, error: float) -> str:
    """Return a mean with its standard error as text."""
    return f"{mean:.3f} ± {error:.3f}".replace("-", "−")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs, to resume them; a temporary one by default"
    )
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "gallery")
    names = [*vdm.parameterizations.PARAMETERIZATIONS]
    output_scales, steps, samplers = ["unit_variance", "none"], TIMESTEPS, SAMPLERS
    if options.quick:
        names, output_scales, steps, samplers = ["eps"], ["unit_variance"], 20, {"ddim": (5,)}
    folder = options.runs or Path(tempfile.mkdtemp())
    key = jax.random.key(SEED)

    results, pictures, eps_model = [], [], None
    for output_scale in output_scales:
        for name in names:
            workdir = folder / f"{name}_{output_scale}"
            trained = vdm.train(
                config_of(name, output_scale, options.quick), workdir, log=lambda _: None
            )
            test = json.loads((workdir / "evaluation.json").read_text())["test"]
            x = np.asarray(trained.sample(key, SHOWN, steps=steps))
            label = name if output_scale == "unit_variance" else f"{name}, unscaled"
            pictures.append((label, x, f"{test['bits_per_dim']:.3f}"))
            result = {"parameterization": name, "output_scale": output_scale, "test": test}
            results.append(result | {"config": trained.config})
            print(f"{name}, {output_scale}: {test['bits_per_dim']:.3f} bits/dim", flush=True)
            if (name, output_scale) == ("eps", "unit_variance"):
                eps_model = trained
    assert eps_model is not None
    dataset = eps_model.dataset
    data = np.asarray(dataset.test.images[np.arange(SHOWN)])
    train = dataset.train.images
    order = np.random.default_rng(SEED).permutation(len(train))[: BATCHES * BATCH]
    # training examples have the distance that perfect samples would have
    floor = estimate(distances([train[i] for i in order.reshape(BATCHES, BATCH)], dataset))

    out.mkdir(parents=True, exist_ok=True)
    rows_of_samples(
        out / "parameterizations.png",
        [("data", data, ""), *pictures],
        dataset.levels,
        ("output", "bits/dim"),
    )
    keys = jax.random.split(jax.random.key(SEED + 1), BATCHES)
    measured, pictures = [], []
    for sampler, numbers in samplers.items():
        for n in numbers:
            x = np.asarray(eps_model.sample(key, SHOWN, sampler=sampler, steps=n))
            batches = [eps_model.sample(key, BATCH, sampler=sampler, steps=n) for key in keys]
            mean, error = estimate(distances(batches, dataset))
            pictures.append((f"{sampler}, {n}", x, format_estimate(mean, error)))
            measured.append({"sampler": sampler, "steps": n, "distance": mean, "error": error})
            print(f"{sampler}, {n} steps: distance {mean:.4f} ± {error:.4f}", flush=True)
    rows_of_samples(
        out / "samplers.png",
        [("data", data, format_estimate(*floor)), *pictures],
        dataset.levels,
        ("sampler, steps", "distance"),
    )
    chain = chain_of(eps_model, key, CHAIN, steps)
    strip(out / "denoising.png", *chain)
    animation(out / "denoising.gif", *chain)

    about = {"command": COMMAND} | environment("versions", "python") | {"machine": cpu_name()}
    about |= {"seed": SEED, "rows": results, "samplers": measured}
    about |= {"distance": f"kernel distance of pixels, {BATCHES} batches of {BATCH} samples"}
    about |= {"of_training_examples": floor}
    (out / "results.json").write_text(json.dumps(about, indent=2) + "\n")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e3:7.0f} kB  {path.name}")


if __name__ == "__main__":
    main()
