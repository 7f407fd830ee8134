"""Numbers that are no bounds: wrong estimates of −log P on a source whose entropy is known.

    python experiments/no_bounds.py [--quick] [--out DIR]

The source is a Markov chain of D pixels with K = 8 levels, whose entropy has a closed form. The denoiser is the
exact posterior mean, computed by the forward–backward algorithm, so that no number below has an error of
training. Each row is an estimator in bits/dim: the correct ones first, then mistakes that are easy to make. A
number below the entropy, beyond its standard error, cannot be a code length. Writes results.json and table.md.
--quick takes few examples and steps; its numbers mean nothing.
"""

import math
from collections.abc import Callable
from functools import partial
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

import vdm_jax as vdm
from vdm_jax.diffusion import alpha, log_sigma
from vdm_jax.elbo import consistency_printed
from vdm_jax.likelihoods import level_values

COMMAND = "python experiments/no_bounds.py"
LEVELS, DIM = 8, 6
STAY = 0.7  # probability that a pixel has the level of the previous one
ENDS = {"gamma_min": -5.0, "gamma_max": 5.0}
SCHEDULE = vdm.schedules.linear(**ENDS)
TIMESTEPS = 20
SAMPLES = 10  # importance samples
ODE = {"name": "ode", "steps": 64, "divergence": "exact"}

TRANSITION = np.full((LEVELS, LEVELS), (1 - STAY) / (LEVELS - 1)) + np.eye(LEVELS) * (
    STAY - (1 - STAY) / (LEVELS - 1)
)
ENTROPY = (math.log(LEVELS) - (DIM - 1) * np.sum(TRANSITION[0] * np.log(TRANSITION[0]))) / DIM
"""Entropy of the source in nats per dimension; the first pixel is uniform."""


def draw(seed: int, n: int) -> np.ndarray:
    """Draw n examples of the source, integers [n, D]."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, LEVELS, (n, 1))
    for _ in range(DIM - 1):
        other = (x[:, -1] + rng.integers(1, LEVELS, n)) % LEVELS
        x = np.column_stack([x, np.where(rng.random(n) < STAY, x[:, -1], other)])
    return x


def denoise(xt: jax.Array, gamma_t: jax.Array, log_prior: jax.Array | float = 0.0) -> jax.Array:
    """Return E[x_0 | x_t] of the source, by the forward–backward algorithm in logarithms.

    `log_prior` is that of the first pixel, up to a constant.
    """
    values = jnp.asarray(level_values(LEVELS), xt.dtype)
    log_transition = jnp.asarray(np.log(TRANSITION), xt.dtype)
    scores = -0.5 * jnp.square(xt[:, None] - alpha(gamma_t) * values[None])
    scores = scores * jnp.exp(-2 * log_sigma(gamma_t))
    scores = scores.at[0].add(log_prior)

    def forward(message, score):
        message = jax.nn.logsumexp(message[:, None] + log_transition, 0) + score
        return message, message

    def backward(message, score):
        return jax.nn.logsumexp(log_transition + (message + score)[None], 1), message

    _, ahead = jax.lax.scan(forward, scores[0], scores[1:])
    _, behind = jax.lax.scan(backward, jnp.zeros_like(values), scores, reverse=True)
    log_posterior = jnp.concatenate([scores[:1], ahead]) + behind
    return jax.nn.softmax(log_posterior, -1) @ values


OPTIONS = {
    "schedule": SCHEDULE,
    "parameterization": "x0",
    "likelihood": {"name": "softmax", "levels": LEVELS},
}


def log_prob(estimator: dict[str, Any], x: jax.Array, key: jax.Array) -> jax.Array:
    """Return an estimate of log P(x), nats."""
    return vdm.log_likelihood(denoise, x, key, estimator=estimator, **OPTIONS)


def bound(x: jax.Array, key: jax.Array, timesteps: int | None = TIMESTEPS) -> Any:
    """Return the terms of one estimate of −ELBO."""
    return vdm.negative_elbo(denoise, x, key, timesteps=timesteps, **OPTIONS)


def density(x: jax.Array, key: jax.Array, width: float) -> jax.Array:
    """Return the log-density of the flow at a point of the bin of x, `width` of its size, in units of x_0."""
    value_key, ode_key = jax.random.split(key)
    x0 = jnp.asarray(level_values(LEVELS), jnp.float32)[x]
    y = x0 + width * jax.random.uniform(value_key, x0.shape, minval=-1, maxval=1) / LEVELS
    options = OPTIONS | {"likelihood": "gaussian"}
    return vdm.log_likelihood(denoise, y, ode_key, estimator=ODE, **options)


LOG_BIN = DIM * math.log(2 / LEVELS)
"""Logarithm of the volume of a bin, in units of x_0."""


def without_reconstruction(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the matching and the prior term in continuous time."""
    terms = bound(x, key, None)
    return terms.matching + terms.prior


def best_of(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the smallest of several estimates of −ELBO."""
    return jnp.min(jax.vmap(lambda key: bound(x, key).total)(jax.random.split(key, SAMPLES)))


def one_term_of_a_chain(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the bound with one matching term, where the sum has T of them."""
    terms = bound(x, key)
    return terms.reconstruction + terms.matching / TIMESTEPS + terms.prior


def with_known_pixel(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return −ELBO where the denoiser is told the first pixel, which no sampler knows."""
    log_prior = jnp.where(jnp.arange(LEVELS) == x[0], 0.0, -1e4)
    given = partial(denoise, log_prior=log_prior)
    return vdm.negative_elbo(given, x, key, **OPTIONS).total


def printed_form(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the consistency form as printed, docs/equations.md §5."""
    return vdm.negative_elbo(
        denoise, x, key, timesteps=TIMESTEPS, form=consistency_printed, **OPTIONS
    ).total


def differential_entropy(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return −log p of a uniformly dequantized example, a density in units of x_0."""
    return -density(x, key, width=1.0)


def no_entropy_of_dequantization(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return −log p(z_0), z_0 ~ q(z_0 | x), without + E log q(z_0 | x)."""
    noise_key, key = jax.random.split(key)
    x0 = jnp.asarray(level_values(LEVELS), jnp.float32)[x]
    noise = jnp.exp(0.5 * ENDS["gamma_min"]) * jax.random.normal(noise_key, x0.shape)
    options = OPTIONS | {"likelihood": "gaussian"}
    return -vdm.log_likelihood(denoise, x0 + noise, key, estimator=ODE, **options)


def density_at_the_levels(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return −log of the density at the level times the volume of its bin."""
    return -density(x, key, width=0.0) - LOG_BIN


Estimate = Callable[[jax.Array, jax.Array], jax.Array]
"""(x, key) -> an estimate of −log P(x) of one example, nats."""


def of(estimator: dict[str, Any]) -> Estimate:
    """Return an estimator of the package as a function that estimates −log P(x)."""
    return lambda x, key: -log_prob(estimator, x, key)


CORRECT: dict[str, Estimate] = {
    f"ELBO, T = {TIMESTEPS}": of({"name": "elbo", "timesteps": TIMESTEPS}),
    "ELBO, continuous time": of({"name": "elbo"}),
    f"importance-weighted, T = {TIMESTEPS}, M = {SAMPLES}": of(
        {"name": "importance", "timesteps": TIMESTEPS, "samples": SAMPLES}
    ),
    "ODE, decoder": of(ODE),
    "ODE, truncated normal": of(ODE | {"dequantization": "truncated_normal"}),
    f"ODE, uniform, M = {SAMPLES}": of(ODE | {"dequantization": "uniform", "samples": SAMPLES}),
}

MISTAKES: dict[str, tuple[Estimate, str]] = {
    "density read as a code length": (differential_entropy, "no volume of the bin"),
    "density at the level times the bin": (
        density_at_the_levels,
        "the density is not constant on the bin",
    ),
    "forgotten entropy of the dequantization": (
        no_entropy_of_dequantization,
        "log p(z_0) of a draw of q, without − log q(z_0; x)",
    ),
    "matching term only": (
        without_reconstruction,
        "no reconstruction term",
    ),
    "one step of the chain": (one_term_of_a_chain, "1 KL term instead of the sum of T"),
    "condition that the sampler lacks": (with_known_pixel, "the first pixel is given"),
    f"best of {SAMPLES} draws": (best_of, "the smallest of several estimates"),
    "consistency form as printed": (printed_form, "another KL than that of the bound"),
}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean in bits/dim and its standard error."""
    bits = values / (DIM * math.log(2))
    return float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits)))


def evaluate(function: Estimate, x: np.ndarray, draws: int) -> np.ndarray:
    """Return the mean of several estimates of each example, nats [n]."""
    keys = jax.random.split(jax.random.key(0), (len(x), draws))
    compiled = jax.jit(jax.vmap(jax.vmap(function, (None, 0))))
    batch = max(1, len(x) // 4)
    parts = [
        np.asarray(compiled(x[i : i + batch], keys[i : i + batch]), np.float64).mean(1)
        for i in range(0, len(x), batch)
    ]
    return np.concatenate(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    set_up_jax(options.quick)
    out = output_folder(options, "no_bounds")
    if options.quick:
        options.examples, options.draws = 8, 1
    x = draw(0, options.examples)
    entropy = ENTROPY / math.log(2)
    # the examples themselves have another mean code length than the source
    log_probs = np.log(1 / LEVELS) + np.log(TRANSITION[x[:, :-1], x[:, 1:]]).sum(1)
    sample_entropy = float(-log_probs.mean() / (DIM * math.log(2)))
    rows, lines = [], []
    functions = {name: (function, "–") for name, function in CORRECT.items()} | MISTAKES
    for name, (function, fault) in functions.items():
        is_cheap = not name.startswith(("importance", "ODE", "density", "forgotten"))
        nats = evaluate(function, x, options.draws * (16 if is_cheap and not options.quick else 1))
        # paired with the code length of each example, which removes the spread of the examples
        excess, error = mean_and_error(nats + log_probs)
        rows.append({"name": name, "fault": fault, "excess": excess, "error": error})
        lines.append([name, f"{excess + entropy:.3f}", f"{excess:+.3f} ± {error:.3f}", fault])
        print(" | ".join(lines[-1]), flush=True)
    about = {"command": COMMAND} | environment("versions", "python") | {"machine": cpu_name()}
    about |= {"entropy_bits_per_dim": entropy, "sample_entropy": sample_entropy}
    about |= {"examples": options.examples, "draws": options.draws}
    caption = (
        f"Bits/dim; the source has an entropy of {entropy:.3f}. Differences ± standard error over "
        f"{options.examples} examples, each paired with its own code length."
    )
    table = markdown_table(["number", "bits/dim", "minus entropy", "mistake"], lines, caption)
    write_results(out, about | {"rows": rows}, table)


if __name__ == "__main__":
    main()
