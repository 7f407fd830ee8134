"""Pictures of the embedded digits: denoising as it goes, samples of every parameterization, samplers and steps.

    python experiments/gallery.py [--quick] [--out=DIR] [--runs=DIR]

Trains each parameterization with both output scales, T = 1000: one small U-Net, one base, one data order, one
number of training steps. Writes denoising.gif and denoising.png (a chain of the `eps` model),
parameterizations.png (all from the same noise), samplers.png (steps and samplers of the `eps` model) and
results.json (bounds, distances, configs, library versions). No sample is chosen: each picture has the first of
its seed.
--quick trains one for seconds; its pictures show nothing.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import vdm_jax as vdm
from vdm_jax.comparison.quality import kernel_distance, pixels
from vdm_jax.config import default
from vdm_jax.runs.plots import tile
from vdm_jax.runtime.devices import enable_compilation_cache
from vdm_jax.runtime.versions import library_versions

HERE = Path(__file__).resolve().parent
COMMAND = "python experiments/gallery.py"
TIMESTEPS = 1000
SEED = 0  # of everything that is drawn
CHAIN = 24  # digits of the animation
ROWS, COLUMNS = 5, 13  # of the strip
SHOWN = 18  # samples in a row
BATCHES, BATCH = 4, 64  # of samples whose distance is measured
NETWORK = {"name": "unet", "channels": (16, 32), "blocks": 1, "dropout": 0.1}
SAMPLERS = {"ancestral": (10, 50, 1000), "ddim": (10, 50, 1000)}
GREYS = 16  # of the animation
GROUND = 0.8  # the grey between images, for noise has white edges
FRAME, PAUSE = 80, 3000  # milliseconds
CLEAR = 7.0  # log-SNR from which on nothing is seen to change


def config_of(parameterization: str, output_scale: str, quick: bool) -> Any:
    config = default()
    config.model.parameterization = parameterization
    config.model.output_scale = output_scale
    config.model.timesteps = TIMESTEPS
    config.model.time_sampler = "uniform"  # the same ones for all rows
    config.model.network = dict(NETWORK)
    config.sample.count = 4  # the run's own picture is not used
    config.sample.steps = 10
    if quick:
        config.model.network = {"name": "mlp", "width": 16, "depth": 1}
        config.train.steps = 4
        config.evaluate.draws = 1
    return config


# ------------------------------------------------------------ chains


def recording(name: str, seen: list) -> Any:
    """A sampler that also writes down what it sees: (γ_t, x_t, x̂_0) of every step."""
    sampler = vdm.build(vdm.samplers.SAMPLERS, name, "sampler")

    def write(*values):
        seen.append([np.asarray(value) for value in values])

    def step(key, xt, interval, predict, state):
        def watched(xt, interval):
            x0_hat = predict(xt, interval)
            jax.debug.callback(write, interval.gamma_t, xt[0], x0_hat[0])
            return x0_hat

        return sampler.step(key, xt, interval, watched, state)

    return vdm.samplers.Sampler(sampler.init, step)


def chain_of(trained: vdm.TrainedModel, key: Any, n: int, steps: int, name: str = "ancestral"):
    """log-SNR [N + 1], x_t and x̂_0 [N + 1, n, 8, 8, 1] from noise to data; the last of both are the samples."""
    seen: list = []
    watched = recording(name, seen)

    @jax.jit
    def draw(params, i):
        return trained.model.sample(params, key, 1, sampler=watched, steps=steps, first=i)

    # One example at a time: the callbacks of a batch come in no particular order.
    x, chains = [], []
    for i in range(n):
        seen.clear()
        x.append(np.asarray(draw(trained.state.ema_params, i))[0])
        jax.effects_barrier()
        seen.sort(key=lambda values: -values[0])
        chains.append([np.stack(values) for values in zip(*seen, strict=True)])
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
    """Levels as the middle of their cells in [-1, 1], as the model sees them."""
    assert levels is not None
    return (2 * np.asarray(x, np.float64) + 1) / levels - 1


def nearest(log_snr: np.ndarray, wanted: np.ndarray) -> list[int]:
    return [int(np.abs(log_snr - value).argmin()) for value in wanted]


# ------------------------------------------------------------ pictures


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images in [-1, 1] as one grey one; what is outside is black or white."""
    between = tile(np.zeros_like(images), 2, columns) == 1
    return np.where(between, GROUND, tile((np.clip(images, -1, 1) + 1) / 2, 2, columns))


def show(axes: Any, picture: np.ndarray) -> Any:
    axes.set_axis_off()
    return axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """As 8-bit grey."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).convert("L").save(
        path, optimize=True
    )


def strip(path: Path, log_snr: np.ndarray, xt: np.ndarray, x0_hat: np.ndarray) -> None:
    """Digits from left to right as the noise goes: of each the latent, and under it the prediction."""
    wanted = np.append(np.linspace(log_snr[0], CLEAR, COLUMNS - 1), log_snr[-1])
    at = nearest(log_snr, wanted)
    figure = Figure(figsize=(8.4, 6.75))
    room = {"left": 0.045, "right": 0.995, "top": 0.965, "bottom": 0.005, "hspace": 0.06}
    pairs = figure.subplots(ROWS, 1, gridspec_kw=room)
    cell = 9  # pixels of an image and a gap
    for i, axes in enumerate(pairs):
        show(axes, grid(np.concatenate([xt[at, i], x0_hat[at, i]]), COLUMNS))
        for j, name in enumerate((r"$x_t$", r"$\hat{x}_0$")):
            axes.text(-1.5, (j + 0.5) * cell, name, ha="right", va="center", fontsize=11)
    above = {"y": -1.5, "va": "bottom", "fontsize": 9}
    for column, index in enumerate(at):
        value = f"{log_snr[index]:.1f}".replace("-", "−")
        pairs[0].text(x=(column + 0.5) * cell, s=value, ha="center", **above)
    pairs[0].text(x=-0.5, s="log-SNR", ha="right", **above)
    save(figure, path)


def animation(path: Path, log_snr: np.ndarray, xt: np.ndarray, x0_hat: np.ndarray) -> None:
    """The same chain as a GIF: latents on the left, predictions on the right, the noise level below."""
    at = nearest(log_snr, np.arange(log_snr[0], CLEAR, 0.3))
    at = [*dict.fromkeys(at), len(log_snr) - 1]
    columns, scale, height, width = 6, 5, 280, 600  # pixels; each of an image is 5 × 5 of them
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for x, left, name in ((xt, 15, r"latent $x_t$"), (x0_hat, 310, r"prediction $\hat{x}_0$")):
        picture = grid(x[at[0]], columns)
        high, wide = (scale * n for n in picture.shape[:2])
        axes = figure.add_axes((left / width, 65 / height, wide / width, high / height))
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
    for index in at:
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
    spent = [FRAME] * len(frames)
    spent[0], spent[-1] = 600, PAUSE
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=spent, loop=0, optimize=False
    )


def rows_of_samples(
    path: Path, rows: list[tuple[str, np.ndarray, str]], levels: int, output_scales: tuple[str, str]
) -> None:
    """A row of samples each, with its name on the left and a number on the right; the first row is of data."""
    height, above = 0.43, 0.25  # inches
    tall = height * len(rows) + above
    figure = Figure(figsize=(9.4, tall))
    room = {"left": 0.12, "right": 0.87, "top": 1 - above / tall, "bottom": 0.005, "hspace": 0.02}
    strips = figure.subplots(len(rows), 1, gridspec_kw=room)

    def beside(axes, y, words, **style):
        places = ((-0.012, "right"), (1.012, "left"))
        for (x, side), text in zip(places, words, strict=True):
            axes.text(x, y, text, transform=axes.transAxes, ha=side, **style)

    for axes, (name, images, number) in zip(strips, rows, strict=True):
        show(axes, tile(images[:SHOWN], levels, SHOWN))
        beside(axes, 0.5, (name, number), va="center", fontsize=10)
    beside(strips[0], 1.08, output_scales, va="bottom", fontsize=9, color="0.35")
    save(figure, path)


# ------------------------------------------------------------ measurements


def distances(batches: Any, dataset: Any) -> list[float]:
    """Of some batches of images from the test split, by their pixels."""
    test = dataset.test.images[np.arange(len(dataset.test.images))]
    real = pixels(test, dataset.levels)
    return [kernel_distance(pixels(np.asarray(x), dataset.levels), real) for x in batches]


def estimate(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def words(mean: float, error: float) -> str:
    return f"{mean:.3f} ± {error:.3f}".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the pictures show nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gallery")
    parser.add_argument("--runs", type=Path, help="folder of the runs, to resume; else a new one")
    options = parser.parse_args()
    enable_compilation_cache()
    rows, output_scales, steps = (
        [*vdm.parameterizations.PARAMETERIZATIONS],
        ["unit_variance", "none"],
        TIMESTEPS,
    )
    samplers = SAMPLERS
    if options.quick:
        options.out = Path(tempfile.mkdtemp())
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        rows, output_scales, steps, samplers = ["eps"], ["unit_variance"], 20, {"ddim": (5,)}
    folder = options.runs or Path(tempfile.mkdtemp())
    key = jax.random.key(SEED)

    found, pictures, chosen = [], [], None
    for output_scale in output_scales:
        for name in rows:
            workdir = folder / f"{name}_{output_scale}"
            trained = vdm.train(
                config_of(name, output_scale, options.quick), workdir, log=lambda _: None
            )
            test = json.loads((workdir / "evaluation.json").read_text())["test"]
            x = np.asarray(trained.sample(key, SHOWN, steps=steps))
            pictures.append((f"{name}, {output_scale}", x, f"{test['bits_per_dim']:.3f}"))
            found.append({"parameterization": name, "output_scale": output_scale, "test": test})
            found[-1]["config"] = trained.config
            print(f"{name}, {output_scale}: {test['bits_per_dim']:.3f} bits/dim", flush=True)
            if (name, output_scale) == ("eps", "unit_variance"):
                chosen = trained
    assert chosen is not None
    levels = chosen.dataset.levels
    test_images = chosen.dataset.test.images
    real = np.asarray(test_images[np.arange(SHOWN)])
    train = chosen.dataset.train.images
    order = np.random.default_rng(SEED).permutation(len(train))[: BATCHES * BATCH]
    floor = estimate(distances([train[i] for i in order.reshape(BATCHES, BATCH)], chosen.dataset))

    options.out.mkdir(parents=True, exist_ok=True)
    first = ("data", real, "")
    rows_of_samples(
        options.out / "parameterizations.png",
        [first, *pictures],
        levels,
        ("output, scale", "bits/dim"),
    )
    keys = jax.random.split(jax.random.key(SEED + 1), BATCHES)
    measured, pictures = [], []
    first = ("data", real, words(*floor))
    for sampler, numbers in samplers.items():
        for n in numbers:
            x = np.asarray(chosen.sample(key, SHOWN, sampler=sampler, steps=n))
            batches = [chosen.sample(key, BATCH, sampler=sampler, steps=n) for key in keys]
            mean, error = estimate(distances(batches, chosen.dataset))
            pictures.append((f"{sampler}, {n}", x, words(mean, error)))
            measured.append({"sampler": sampler, "steps": n, "distance": mean, "error": error})
            print(f"{sampler}, {n} steps: distance {mean:.4f} ± {error:.4f}", flush=True)
    rows_of_samples(
        options.out / "samplers.png", [first, *pictures], levels, ("sampler, steps", "distance")
    )
    chain = chain_of(chosen, key, CHAIN, steps)
    strip(options.out / "denoising.png", *chain)
    animation(options.out / "denoising.gif", *chain)

    about = {"command": COMMAND, "versions": library_versions()}
    about |= {"python": platform.python_version(), "machine": f"{platform.machine()} CPU"}
    about |= {"seed": SEED, "rows": found, "samplers": measured}
    about |= {"distance": f"kernel distance of pixels, {BATCHES} batches of {BATCH} samples"}
    about |= {"of_training_examples": floor}
    (options.out / "results.json").write_text(json.dumps(about, indent=2) + "\n")
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size / 1e3:7.0f} kB  {path.name}")


if __name__ == "__main__":
    main()
