"""The variational diffusion model: the floors below, mapped over a batch around one network call.

For every example: draw a latent (`elbo.probe`), predict x̂_0 = b + out·c·net, score the error. The mathematics
is per example and mapped; the network sees the whole batch.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import Interval, data_interval, marginal
from vdm_jax.elbo import (
    Elbo,
    check_steps,
    check_timesteps,
    draw_times,
    matching,
    mean_of_draws,
    prior,
    probe,
    training_interval,
)
from vdm_jax.likelihoods import least_noisy
from vdm_jax.models.denoiser import denoiser, same_for_all
from vdm_jax.models.keys import example_keys, fold_each, split_each
from vdm_jax.models.model import ByNoise, Draw, Model, Statistics, encoded, likelihood_for
from vdm_jax.objectives import bound_weight, relative_weight
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.samplers import SAMPLERS, sample_chain
from vdm_jax.schedules import SCHEDULES, Schedule, interval
from vdm_jax.specs import build, name_of
from vdm_jax.times import RUNNING, TIMES, Drawn, draw_weighted, follow, mean_square, probabilities
from vdm_jax.typing import Array
from vdm_jax.variance import copies, tie
from vdm_jax.weightings import WEIGHTINGS, is_bound


def vdm(
    statistics: Statistics,
    *,
    network: Any = "mlp",
    schedule: Any = "linear",
    train_schedule: Any = None,
    parameterization: Any = "eps",
    base: Any = "zero",
    head: Any = "raw",
    likelihood: Any = "softmax",
    timesteps: int | None = None,
    space: Any = None,
    weighting: Any = "elbo",
    times: Any = "uniform",
    where: str = "model",
) -> Model:
    """Build a variational diffusion model. Every component is a name, a spec or a built object.

    Args:
      statistics: shape, levels and moments of the training split.
      network: of `NETS`, or what `vdm_jax.nets.as_network` takes: Linen modules, (init, apply), callables.
      schedule: of `SCHEDULES`; a learned one is trained with the network on the bound, in continuous time what
        lies between its ends on the variance of the loss (`Schedule.interior`).
      train_schedule: of `SCHEDULES`, or None for `schedule`: where the training loss draws its times. The
        bound in continuous time does not depend on the path between the same two ends: another path spends the
        draws elsewhere, and under a weighting other than the bound weighs the noise levels by it.
      parameterization: what the network outputs, of `PARAMETERIZATIONS`.
      base, head: the fixed denoiser and the scale of the network's correction, of `BASES` and `HEADS`.
      likelihood: of `LIKELIHOODS`.
      timesteps: T ≥ 1 matching terms, or None for continuous time.
      space: in which the training error is taken, of `PARAMETERIZATIONS`; None is the parameterization's.
      weighting: of the training error, of `WEIGHTINGS`; the bound is reported whatever it is.
      times: the density that the training loss draws its times from, of `TIMES`; its expectation is the same
        for all of them.
      where: config path, for messages.

    Raises:
      ValueError: unknown names or arguments, a likelihood of another kind than the data, `mean` in
        continuous time, a learned schedule under another weighting than the bound, a train_schedule that
        is learned, of other ends, or not for continuous time.
    """
    shape, bits = statistics.shape, 1 / (statistics.dim * math.log(2))
    first = network, schedule, parameterization  # as given, for the report
    others = {"base": base, "head": head, "weighting": weighting, "space": space}
    others |= {"likelihood": likelihood, "train schedule": train_schedule}
    others |= {"times": None if times == "uniform" else times}
    net = denoiser(
        statistics,
        network=network,
        parameterization=parameterization,
        base=base,
        head=head,
        where=where,
    )
    row = net.row
    schedule = build(SCHEDULES, schedule, f"{where}.schedule")
    error_space = row if space is None else build(PARAMETERIZATIONS, space, f"{where}.space")
    likelihood = likelihood_for(statistics, likelihood, where)
    weigh = build(WEIGHTINGS, weighting, f"{where}.weighting")
    spread = build(TIMES, times, f"{where}.times")
    check_timesteps(timesteps, row, f"{where}.parameterization")
    check_timesteps(timesteps, error_space, f"{where}.space")
    if schedule.learned and not is_bound(weigh):
        raise ValueError(
            f"{where}.weighting: a learned schedule is trained on the bound, expected 'elbo', "
            f"found {weighting!r}"
        )

    path = (
        schedule
        if train_schedule is None
        else _other_path(schedule, train_schedule, timesteps, where)
    )

    # in continuous time alone: the bound of a chain depends on the interior
    by_variance = timesteps is None and schedule.interior is not None

    # of sampling; a `mean` knows no chain but its own
    usual_steps = 1000 if row.continuous or timesteps is None else timesteps

    words = [name_of(part) for part in first]
    words += [f"{key} {name_of(part)}" for key, part in others.items() if part is not None]
    components = f"vdm: {', '.join(words)}"

    def ends(params, x, x0, keys, dropout_keys):
        """Reconstruction and prior, [B] both."""
        gamma_0 = schedule.gamma(params["schedule"], 0.0)
        gamma_1 = schedule.gamma(params["schedule"], 1.0)
        latent = jax.vmap(lambda key, x0: marginal(x0, gamma_0).sample(key))(keys, x0)
        x0_hat = None
        if likelihood.denoised:
            x0_hat = net.predict(
                params["network"], latent, same_for_all(data_interval(gamma_0), x0), dropout_keys
            )

        def log_prob(x, latent, x0_hat):
            return likelihood.log_prob(x, *least_noisy(likelihood, latent, x0_hat, gamma_0))

        nats = -jax.vmap(log_prob)(x, latent, x0_hat)
        return nats, jax.vmap(prior, (0, None))(x0, gamma_1)

    def terms(params, x, x0, at, end_keys, keys=None) -> Elbo:
        """The parts of −ELBO, [B] each."""
        reconstruction, prior_nats = ends(params, x, x0, end_keys, keys)
        return Elbo(
            reconstruction,
            jax.vmap(matching)(at, net.error(params["network"], at, keys)),
            prior_nats,
        )

    def draw(own, keys, x0, times, path=schedule, axes=None):
        """Latents of the schedule's params `own`, which may have an axis of examples."""

        def one(key, x0, t, own):
            return probe(key, x0, t, schedule=path, schedule_params=own, timesteps=timesteps)

        return jax.vmap(one, (0, 0, 0, axes))(keys, x0, times, own)

    def init(key):
        network_key, schedule_key = jax.random.split(key)
        params = {
            "network": net.init(network_key),
            "schedule": schedule.init(schedule_key),
        }
        if spread.rate is not None:
            params[RUNNING] = {"times": untrained(params)}
        return params

    def relative(step, rate):
        """The training weight in units of the bound's own."""
        # 1 for the bound, and of a fixed schedule otherwise: nothing to differentiate
        return jax.lax.stop_gradient(relative_weight(step, rate, error_space, weigh))

    def untrained(params):
        """E[L² | bin] of a network whose output is zero, nats per dimension squared."""

        def expected(t):
            step, rate = training_interval(path, params["schedule"], t, timesteps)
            return step, rate * relative(step, rate)

        def at(t):
            step, rate = jax.vmap(expected)(t)
            return 0.5 * rate * jnp.square(jnp.exp(-0.5 * step.gamma_t) * net.deviation(step))

        return mean_square(at, spread.bins, timesteps)

    def choose_times(params, key, phase):
        """Times of a batch and, unless they are uniform, the probabilities of their bins."""
        if spread.bins is None:
            return Drawn(draw_times(key, phase, timesteps)), None
        own = untrained(params) if spread.rate is None else params[RUNNING]["times"]
        chances = probabilities(own, spread.mix, timesteps)
        return draw_weighted(key, phase, chances, timesteps), chances

    def draw_by_example(own, keys, x0, t):
        """The same as `draw`, with a handle to tie the losses to: of each example its own interior."""
        each, handle = copies(own[schedule.interior], jnp.zeros(t.shape))
        axes = {name: 0 if name == schedule.interior else None for name in own}
        return draw(own | {schedule.interior: each}, keys, x0, t, axes=axes), handle

    def training(params, key, batch, dropout=True):
        """One draw of each example, and a term of value 0 that moves the running averages, if any."""
        batch, x0 = encoded(batch, statistics, likelihood)
        time_key, key = jax.random.split(key)
        noise, end, drop = example_keys(key, batch.index, 3)
        drawn, chances = choose_times(params, time_key, batch.phase)
        if by_variance:
            at, handle = draw_by_example(params["schedule"], noise, x0, drawn.t)
        else:
            at, handle = draw(params["schedule"], noise, x0, drawn.t, path), None
        bound = terms(params, batch.x, x0, at, end, drop if dropout else None)
        weight, term = jax.vmap(relative)(at.interval, at.rate), None
        if chances is not None and spread.rate is not None:
            seen = weight * bound.matching / statistics.dim
            term = follow(params[RUNNING]["times"], drawn, seen, chances, spread.rate)
        if drawn.weight is not None:
            bound = bound._replace(matching=drawn.weight * bound.matching)
        if handle is not None:
            bound = bound._replace(matching=tie(bound.matching, bits * handle))
        weighted = weight * bound.matching
        exact = jax.vmap(lambda step, rate: bound_weight(step, rate, row))
        one = Draw(
            interval=at.interval,
            bound=bound,
            loss=bound._replace(matching=weighted),
            squared_error=bound.matching / exact(at.interval, at.rate),
        )
        return one, term

    def loss(params, key, batch):
        one, term = training(params, key, batch)
        metrics = {name: bits * jnp.mean(part) for name, part in one.bound._asdict().items()}
        value = bits * jnp.mean(one.loss.total)
        value = value if term is None else value + term
        return value, {"loss": value, "bits_per_dim": bits * jnp.mean(one.bound.total)} | metrics

    def loss_by_noise(params, key, batch, edges):
        one, _ = training(params, key, batch)
        return bits * jnp.mean(split_by_noise(one.interval, one.loss.matching, edges), 0)

    def elbo_by_noise(params, key, batch, edges, draws=1):
        check_steps(draws, "draws must be at least 1")
        batch, x0 = encoded(batch, statistics, likelihood)
        time_keys, draw_keys = example_keys(key, batch.index, 2)

        def one_draw(i):  # times of one example are stratified over its draws
            noise, end = split_each(fold_each(draw_keys, i), 2)
            times = jax.vmap(lambda key: draw_times(key, i / draws, timesteps))(time_keys)
            at = draw(params["schedule"], noise, x0, times)
            one = terms(params, batch.x, x0, at, end)
            return one, split_by_noise(at.interval, one.matching, edges)

        return mean_of_draws(one_draw, draws)

    def elbo(params, key, batch, draws=1):
        bound, _ = elbo_by_noise(params, key, batch, np.zeros(1), draws)
        return bound

    def gain(params, t):
        def at(t):
            return training_interval(schedule, params["schedule"], t, timesteps)[0]

        return jnp.abs(net.gain(jax.vmap(at)(t)))

    def sample(params, key, n, sampler="ancestral", steps=usual_steps):
        check_steps(steps, "sample.steps: steps must be at least 1")
        grid = timesteps or steps
        if not row.continuous and grid % steps != 0:
            raise ValueError(
                f"sample.steps: 'mean' is a step of the training chain, expected a divisor of "
                f"timesteps = {grid}, found {steps}"
            )
        start_key, chain_key = jax.random.split(key)

        def at_time(xt, t, step):
            if steps != grid:  # the network's own interval is that of the training chain
                step = interval(schedule, params["schedule"], jnp.maximum(t - 1 / grid, 0), t)
            return net.predict(params["network"], xt, same_for_all(step, xt))

        def final(latent):
            gamma_0 = schedule.gamma(params["schedule"], 0.0)
            if timesteps is not None and not likelihood.denoised:
                # no loss has called the network there
                given = least_noisy(likelihood, latent, None, gamma_0)
                return jax.vmap(likelihood.expected, (0, None))(*given)
            return net.predict(
                params["network"], latent, same_for_all(data_interval(gamma_0), latent)
            )

        x0 = sample_chain(
            at_time,
            final,
            jax.random.normal(start_key, (n, *shape)),
            chain_key,
            schedule=schedule,
            schedule_params=params["schedule"],
            sampler=build(SAMPLERS, sampler, "sample.sampler"),
            steps=steps,
        )
        return likelihood.decode(x0)

    time = "continuous time" if timesteps is None else f"T = {timesteps}"
    by_noise = ByNoise(
        elbo=elbo_by_noise,
        draw=lambda *arguments, **options: training(*arguments, **options)[0],
        loss=loss_by_noise,
        gain=gain,
        gamma=lambda params, t: schedule.gamma(params["schedule"], t),
    )
    return Model(init, loss, elbo, sample, f"diffusion ELBO, {time}", components, by_noise=by_noise)


def split_by_noise(steps: Interval, values: Array, edges: Any) -> Array:
    """Put each of `values` [B] into the bin of its interval's middle: [B, K], zero elsewhere."""
    middle = steps.gamma_t - 0.5 * steps.delta
    bins = jnp.searchsorted(jnp.asarray(edges[1:-1], middle.dtype), middle, side="right")
    return jax.nn.one_hot(bins, len(edges) - 1, dtype=values.dtype) * values[:, None]


def _other_path(schedule: Schedule, spec: Any, timesteps: int | None, where: str) -> Schedule:
    """The schedule of the training times, if it has the ends of the model's own."""
    path, where = build(SCHEDULES, spec, f"{where}.train_schedule"), f"{where}.train_schedule"
    if timesteps is not None:
        raise ValueError(f"{where}: is for continuous time, found timesteps = {timesteps}")
    if schedule.learned or path.learned:
        raise ValueError(f"{where}: neither it nor the schedule may be learned")
    with jax.ensure_compile_time_eval():
        ends = [[float(s.gamma(None, t)) for t in (0.0, 1.0)] for s in (schedule, path)]
    if not np.allclose(*ends, rtol=1e-5, atol=1e-5):
        raise ValueError(f"{where}: expected the ends {ends[0]} of the schedule, found {ends[1]}")
    return path
