"""Variance of the forms of the diffusion ELBO as estimators, over the number of steps T.

    python experiments/elbo_forms.py [--quick] [--out DIR]

Compares the denoising form (10), the consistency form (16) by the three-sample log ratio and by the bridge, and
the printed but wrong variant of (16), on Gaussian data with the exact denoiser and on the embedded digits with
one trained network. Each form is estimated from one random step of the chain, times T, and from all steps of
one trajectory. For each T, the table has the mean of −ELBO in nats per example with its standard error, and its
variance over the noise for a given example, averaged over examples. Writes results.json, table.md and
variances.png. --quick takes seconds; its numbers mean nothing.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import (
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

import vdm_jax as vdm
from vdm_jax.data import level_counts, load_dataset, train_batches
from vdm_jax.diffusion import Interval, bridge, data_interval
from vdm_jax.elbo import prior
from vdm_jax.gaussian import cross_entropy, standard_normal
from vdm_jax.likelihoods import observation
from vdm_jax.models import build_model
from vdm_jax.models.denoiser import denoiser
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.training.optimizer import make_optimizer

FORMS = vdm.elbo.FORMS | {"consistency_printed": vdm.elbo.consistency_printed}
SCHEDULE = {"name": "linear", "gamma_min": -13.3, "gamma_max": 5.0}
NETWORK = {"name": "mlp", "width": 256, "depth": 2}


def gaussian_case(examples: int):
    """Return data x_0 ~ N(0.3, diag v) of 16 dimensions, their likelihood, and E[x_0 | x_t]."""
    variance = jnp.linspace(0.05, 1.0, 16)
    x = 0.3 + jnp.sqrt(variance) * jax.random.normal(jax.random.key(0), (examples, 16))

    def predict(xt, gamma_t):
        alpha, noise = jnp.sqrt(jax.nn.sigmoid(-gamma_t)), jax.nn.sigmoid(gamma_t)
        gain = alpha * variance / (alpha**2 * variance + noise)
        return 0.3 + gain * (xt - 0.3 * alpha)

    return x, vdm.build(vdm.likelihoods.LIKELIHOODS, "gaussian"), predict


def digits_case(examples: int, steps: int):
    """Return test digits, their likelihood, and the prediction x̂_0 of a network trained here."""
    dataset = load_dataset("digits")
    counts = level_counts(dataset.train.images, dataset.levels)
    statistics = fit_statistics(counts, base="histogram")
    parts = {
        "network": NETWORK,
        "parameterization": "eps",
        "base": "histogram",
        "output_scale": "unit_variance",
    }
    model = build_model({"name": "vdm", "schedule": SCHEDULE, **parts}, statistics)
    optimizer, _ = make_optimizer(
        learning_rate=1e-3,
        warmup_steps=min(100, steps - 1),
        decay_steps=steps,
        decay_to=0.02,
        weight_decay=0.01,
        b1=0.9,
        b2=0.99,
        clip_norm=1.0,
        accumulate=1,
    )
    params = jax.jit(model.init)(jax.random.key(0))
    state = vdm.init_state(params, optimizer, jax.random.key(1))
    step = vdm.make_step(model.loss, optimizer, ema_decay=0.999, ema_warmup=True)
    run = jax.jit(partial(jax.lax.scan, step))
    stack = min(50, steps)
    for batches in train_batches(
        dataset.train, batch_size=128, seed=0, start_step=0, stop_step=steps, stack=stack
    ):
        state, _ = run(state, batches)
    net = denoiser(statistics, **parts)

    def predict(xt, gamma_t):
        values = (gamma_t, gamma_t, 0.0 * gamma_t)
        interval = Interval(*(jnp.reshape(value, (1,)) for value in values))
        return net.predict(state.ema_params["network"], xt[None], interval)[0]

    x = jnp.asarray(dataset.test.images[np.arange(examples)])
    return x, vdm.build(vdm.likelihoods.LIKELIHOODS, "softmax", levels=dataset.levels), predict


def one_step(x, key, *, likelihood, predict, timesteps: int):
    """Estimate −ELBO of every form from one random step, [forms]."""
    return jnp.stack(
        [
            vdm.negative_elbo(
                predict,
                x,
                key,
                schedule=SCHEDULE,
                parameterization="x0",
                likelihood=likelihood,
                timesteps=timesteps,
                form=FORMS[form],
            ).total
            for form in FORMS
        ]
    )


def all_steps(x, key, *, likelihood, predict, timesteps: int):
    """Estimate −ELBO of every form from all steps of one trajectory, [forms]."""
    schedule = vdm.build(vdm.schedules.SCHEDULES, SCHEDULE)
    times = jnp.arange(timesteps + 1) / timesteps
    after = jax.vmap(lambda s, t: vdm.interval(schedule, None, s, t))(times[:-1], times[1:])
    first = data_interval(schedule.gamma(None, 0.0))
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, after)
    x0 = likelihood.encode(x)
    keys = jax.random.split(key, timesteps + 2)
    start = vdm.marginal(x0, first.gamma_t).sample(keys[0])

    def add_noise(xs, interval_and_key):
        interval, key = interval_and_key
        xt = vdm.transition(xs, interval).sample(key)
        return xt, xt

    _, later = jax.lax.scan(add_noise, start, (after, keys[1 : timesteps + 1]))
    now = jnp.concatenate([start[None], later[:-1]])
    past = jnp.concatenate([x0[None], now[:-1]])

    def terms(past, now, later, before, after):
        """Return the term of one step in each form."""
        p = vdm.posterior(later, predict(later, after.gamma_t), after)
        q = vdm.transition(past, before)
        between = bridge(past, later, before, after)
        return jnp.stack(
            [
                vdm.kl(vdm.posterior(later, x0, after), p),
                q.log_prob(now) - p.log_prob(now),
                cross_entropy(between, p) - cross_entropy(between, q),
                vdm.kl(q, p),
            ]
        )

    matching = jnp.sum(jax.vmap(terms)(past, now, later, before, after), 0)
    last = jax.tree.map(lambda leaf: leaf[-1], after)
    end = vdm.kl(vdm.transition(now[-1], last), standard_normal(x0.shape))
    ends = jnp.stack([prior(x0, last.gamma_t), end, end, end])
    observed = observation(likelihood, start, None, first.gamma_t)
    return matching + ends - likelihood.log_prob(x, *observed)


ESTIMATORS = {"one step": one_step, "all steps": all_steps}


def measure(estimator, x, repeats: int, **case) -> list[dict]:
    """Return the mean, its standard error over the noise, and the variance over the noise, of each form."""
    run = jax.vmap(partial(estimator, **case))

    @jax.jit
    def values(keys):  # [repeats, examples, forms]
        return jax.lax.map(lambda key: run(x, jax.random.split(key, len(x))), keys)

    draws = np.asarray(values(jax.random.split(jax.random.key(2), repeats)), np.float64)
    variance = draws.var(0, ddof=1)  # [examples, forms]
    error = np.sqrt(variance.sum(0) / repeats) / len(x)
    return [
        {"form": form, "mean": m, "standard_error": e, "variance": v}
        for form, m, e, v in zip(FORMS, draws.mean((0, 1)), error, variance.mean(0), strict=True)
    ]


def table(rows: list[dict]) -> str:
    """Return the table: a row per data set, T, estimator and form."""
    lines = []
    for row in rows:
        cells = [row["data"], str(row["timesteps"]), row["drawn"], row["form"]]
        cells += [f"{row['mean']:.2f} ± {row['standard_error']:.2f}", f"{row['variance']:.3g}"]
        lines.append(cells)
    return markdown_table(["data", "T", "drawn", "form", "−ELBO, nats", "variance"], lines)


def figure(path: Path, rows: list[dict]) -> None:
    """Draw the variance over T, a panel per data set."""
    drawing = Figure(figsize=(10, 4.4), layout="constrained")
    data = list(dict.fromkeys(row["data"] for row in rows))
    for axes, name in zip(drawing.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        for (drawn, style), (i, form) in (
            (a, b) for a in zip(ESTIMATORS, ("-o", "--s"), strict=True) for b in enumerate(FORMS)
        ):
            line = [
                row
                for row in rows
                if (row["data"], row["drawn"], row["form"]) == (name, drawn, form)
            ]
            axes.loglog(
                [row["timesteps"] for row in line],
                [row["variance"] for row in line],
                style,
                color=f"C{i}",
                markersize=4,
                label=f"{form}, {drawn}",
            )
        axes.set(xlabel="T, steps of the chain", ylabel="variance of −ELBO over the noise, nats²")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    FigureCanvasAgg(drawing).print_png(str(path))


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "elbo_forms")
    chain_lengths, repeats, examples, steps = [2, 6, 16, 50, 160, 500], 1000, 16, 1500
    if options.quick:
        chain_lengths, repeats, examples, steps = [2, 6], 4, 2, 2
    cases = {
        "Gaussian, exact denoiser": gaussian_case(examples),
        "digits, trained MLP": digits_case(examples, steps),
    }
    rows: list[dict[str, Any]] = []
    for name, (x, likelihood, predict) in cases.items():
        for timesteps in chain_lengths:
            for drawn, estimator in ESTIMATORS.items():
                forms = measure(
                    estimator,
                    x,
                    repeats,
                    likelihood=likelihood,
                    predict=predict,
                    timesteps=timesteps,
                )
                case = {"data": name, "timesteps": timesteps, "drawn": drawn}
                rows += [case | row for row in forms]
    about = environment("versions", "python") | {"machine": cpu_name()}
    about |= {"repeats": repeats, "examples": examples}
    about |= {"schedule": SCHEDULE, "network": NETWORK, "training_steps": steps}
    write_results(out, about | {"rows": rows}, table(rows))
    figure(out / "variances.png", rows)


if __name__ == "__main__":
    main()
