"""The variational diffusion model: the floors below, mapped over a batch around one network call.

For every example: draw a latent (`elbo.probe`), predict x̂_0 = b + out·c·net, score the error. The mathematics
is per example and mapped; the network sees the whole batch.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.bases import BASES, HEADS
from vdm_jax.diffusion import Interval, data_interval, marginal
from vdm_jax.elbo import Elbo, check_steps, check_timesteps, draw_times, matching, prior, probe
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models.model import Model, Statistics
from vdm_jax.nets import NETS
from vdm_jax.parameterizations import PARAMETERIZATIONS, snr_weight
from vdm_jax.samplers import SAMPLERS, sample_chain
from vdm_jax.schedules import SCHEDULES, interval
from vdm_jax.specs import build, name_of
from vdm_jax.typing import as_batch
from vdm_jax.weightings import WEIGHTINGS


def vdm(
    statistics: Statistics,
    *,
    network: Any = "mlp",
    schedule: Any = "linear",
    parameterization: Any = "eps",
    base: Any = "zero",
    head: Any = "raw",
    likelihood: Any = "softmax",
    timesteps: int | None = None,
    space: Any = None,
    weighting: Any = "elbo",
    where: str = "model",
) -> Model:
    """Build a variational diffusion model. Every component is a name, a spec or a built object.

    Args:
      statistics: shape, levels and moments of the training split.
      network: of `NETS`.
      schedule: of `SCHEDULES`; a learned one is trained on the bound with the network.
      parameterization: what the network outputs, of `PARAMETERIZATIONS`.
      base, head: the fixed denoiser and the scale of the network's correction, of `BASES` and `HEADS`.
      likelihood: of `LIKELIHOODS`.
      timesteps: T ≥ 1 matching terms, or None for continuous time.
      space: in which the training error is taken, of `PARAMETERIZATIONS`; None is the parameterization's.
      weighting: of the training error, of `WEIGHTINGS`; the bound is reported whatever it is.
      where: config path, for messages.

    Raises:
      ValueError: unknown names or arguments, a likelihood of another kind than the data, `mean` in
        continuous time, a learned schedule under another weighting than the bound.
    """
    shape, dim = statistics.shape, math.prod(statistics.shape)
    first = network, schedule, parameterization  # as given, for the report
    others = {"base": base, "head": head, "weighting": weighting, "space": space}
    others["likelihood"] = likelihood
    net = build(NETS, network, f"{where}.network")
    schedule = build(SCHEDULES, schedule, f"{where}.schedule")
    row = build(PARAMETERIZATIONS, parameterization, f"{where}.parameterization")
    error_space = row if space is None else build(PARAMETERIZATIONS, space, f"{where}.space")
    shared = statistics._asdict()
    likelihood = build(LIKELIHOODS, likelihood, f"{where}.likelihood", **shared)
    base = build(BASES, base, f"{where}.base", **shared)
    head = build(HEADS, head, f"{where}.head")
    weigh = build(WEIGHTINGS, weighting, f"{where}.weighting")
    if likelihood.levels != statistics.levels:
        raise ValueError(
            f"{where}.likelihood: the data have {_kind(statistics.levels)}, "
            f"the likelihood is of {_kind(likelihood.levels)}"
        )
    check_timesteps(timesteps, row)
    check_timesteps(timesteps, error_space)
    if schedule.learned and weigh(jnp.asarray(0.7), jnp.asarray(2.3)) != jnp.asarray(2.3):
        raise ValueError(
            f"{where}.weighting: a learned schedule is trained on the bound, expected 'elbo', "
            f"found {weighting!r}"
        )

    words = [name_of(part) for part in first]
    words += [f"{key} {name_of(part)}" for key, part in others.items() if part is not None]
    components = f"vdm: {', '.join(words)}"

    def correction(params, xt, steps: Interval, keys=None):
        """The base's estimate and the network's correction to it, [B, *d] both."""
        mix, target = jax.vmap(row)(steps), jax.vmap(row.target)(steps)
        estimate = jax.vmap(base.estimate)(xt, steps.gamma_t, mix)
        extra = estimate if base.informative else None
        output = net.apply(params["network"], xt, steps.gamma_t, extra, keys)
        scale = jax.vmap(lambda *at: head(base, *at))(steps.gamma_t, mix, target)
        return estimate, _scaled(mix.out * scale, output)

    def predict(params, xt, steps: Interval):
        estimate, change = correction(params, xt, steps)
        return estimate + change

    def errors(params, at, keys=None):
        """x_0 − x̂_0 of each probe, without the cancellation of computing x̂_0 first."""
        _, change = correction(params, at.xt, at.interval, keys)
        mix, target = jax.vmap(row)(at.interval), jax.vmap(row.target)(at.interval)
        own = jax.vmap(base.error)(at.x0, at.eps, at.xt, at.interval.gamma_t, mix, target)
        return own - change

    def ends(params, x, x0, keys):
        """Reconstruction and prior, [B] both."""
        gamma_0 = schedule.gamma(params["schedule"], 0.0)
        gamma_1 = schedule.gamma(params["schedule"], 1.0)
        latent = jax.vmap(lambda key, x0: marginal(x0, gamma_0).sample(key))(keys, x0)
        x0_hat = None
        if likelihood.denoised:
            x0_hat = predict(params, latent, _same_for_all(data_interval(gamma_0), x0))
        log_prob = jax.vmap(likelihood.log_prob, (0, 0, None if x0_hat is None else 0, None))
        nats = -log_prob(x, latent, x0_hat, gamma_0)
        return nats, jax.vmap(prior, (0, None))(x0, gamma_1)

    def terms(params, x, x0, at, end_keys, keys=None) -> Elbo:
        """The parts of −ELBO, [B] each."""
        reconstruction, prior_nats = ends(params, x, x0, end_keys)
        return Elbo(reconstruction, jax.vmap(matching)(at, errors(params, at, keys)), prior_nats)

    def draw(params, keys, x0, times):
        def one(key, x0, t):
            return probe(
                key,
                x0,
                t,
                schedule=schedule,
                schedule_params=params["schedule"],
                timesteps=timesteps,
            )

        return jax.vmap(one)(keys, x0, times)

    def init(key):
        network_key, schedule_key = jax.random.split(key)
        xt = jnp.zeros((1, *shape))
        extra = xt if base.informative else None
        return {
            "network": net.init(network_key, xt, jnp.zeros((1,)), extra),
            "schedule": schedule.init(schedule_key),
        }

    def loss(params, key, batch):
        batch = as_batch(batch)
        x0 = likelihood.encode(batch.x)
        time_key, key = jax.random.split(key)
        noise, end, drop = _example_keys(key, batch.index, 3)
        times = draw_times(time_key, batch.phase, timesteps)
        at = draw(params, noise, x0, times)
        bound = terms(params, batch.x, x0, at, end, drop)

        def relative(step, rate):  # the chosen weight in units of the bound's own
            exact = 0.5 * rate * snr_weight(step, error_space(step))
            # 1 for the bound, and of a fixed schedule otherwise: nothing to differentiate
            return jax.lax.stop_gradient(weigh(-step.gamma_t, exact) / exact)

        weighted = bound._replace(
            matching=jax.vmap(relative)(at.interval, at.rate) * bound.matching
        )
        bits = 1 / (dim * math.log(2))
        value = bits * jnp.mean(weighted.total)
        metrics = {name: bits * jnp.mean(part) for name, part in bound._asdict().items()}
        return value, {"loss": value, "bits_per_dim": bits * jnp.mean(bound.total)} | metrics

    def elbo(params, key, batch, draws=1):
        batch = as_batch(batch)
        x0 = likelihood.encode(batch.x)
        time_keys, draw_keys = _example_keys(key, batch.index, 2)

        def one_draw(total, i):  # times of one example are stratified over its draws
            noise, end = _example_keys_of(jax.vmap(jax.random.fold_in, (0, None))(draw_keys, i), 2)
            times = jax.vmap(lambda key: draw_times(key, i / draws, timesteps))(time_keys)
            at = draw(params, noise, x0, times)
            one = terms(params, batch.x, x0, at, end)
            return jax.tree.map(jnp.add, total, one), None

        zeros = jnp.zeros(x0.shape[0], x0.dtype)
        total, _ = jax.lax.scan(one_draw, Elbo(zeros, zeros, zeros), jnp.arange(draws))
        return jax.tree.map(lambda sum_: sum_ / draws, total)

    def sample(params, key, n, sampler="ancestral", steps=1000):
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
            return predict(params, xt, _same_for_all(step, xt))

        def final(latent):
            gamma_0 = schedule.gamma(params["schedule"], 0.0)
            return predict(params, latent, _same_for_all(data_interval(gamma_0), latent))

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
    return Model(init, loss, elbo, sample, f"diffusion ELBO, {time}", components)


def _kind(levels: int | None) -> str:
    return "continuous values" if levels is None else f"{levels} levels"


def _scaled(factors, arrays):
    """factors [B] times arrays [B, *d]."""
    return jax.vmap(jnp.multiply)(factors, arrays)


def _same_for_all(step: Interval, xt) -> Interval:
    return jax.tree.map(lambda value: jnp.broadcast_to(value, xt.shape[:1]), step)


def _example_keys(key, index, n: int):
    """`n` keys [B] for each example, from its index in the global batch."""
    return _example_keys_of(jax.vmap(jax.random.fold_in, (None, 0))(key, index), n)


def _example_keys_of(keys, n: int):
    keys = jax.vmap(lambda key: jax.random.split(key, n))(keys)
    return tuple(keys[:, i] for i in range(n))
