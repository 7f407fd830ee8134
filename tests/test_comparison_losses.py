"""Losses of the best denoisers are equal in every parameterization, and a wrong weight is caught."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_comparison import FAST, images

import vdm_jax as vdm
from vdm_jax.parameterizations import PARAMETERIZATIONS, Parameterization, eps

pytestmark = pytest.mark.usefixtures("without_optimizations")

ROWS = ("mean", "x0", "eps", "v", "score")


def law_as_mixture(law):
    return vdm.Mixture.of(law.weights, law.means, law.variances)


def best_networks(law, timesteps, rows=ROWS):
    schedule = vdm.schedules.linear()
    at = oracles.interval_of_step(schedule, timesteps=timesteps)
    return {name: law.network(PARAMETERIZATIONS[name](), at) for name in rows}


@pytest.mark.parametrize(
    ("name", "timesteps", "double"),
    [*((name, T, True) for name in oracles.LAWS for T in (30, None)), ("mixture", 30, False)],
)
@pytest.mark.slow
def test_losses_of_the_best_denoisers_are_equal(name, timesteps, double):
    law = oracles.LAWS[name]((3,))
    with jax.enable_x64(double):
        x = jnp.asarray(law_as_mixture(law).sample(jax.random.key(0), 200))
        rows = ROWS if timesteps else ROWS[1:]
        losses = vdm.parameterization_losses(
            best_networks(law, timesteps, rows),
            x,
            jax.random.key(1),
            timesteps=timesteps,
            draws=4,
        )
        assert [*losses] == [*rows]
        bits = {row: np.asarray(loss.bits_per_dim, np.float64) for row, loss in losses.items()}
        squares = [float(loss.squared_error.mean()) for loss in losses.values()]
    for row in rows:
        difference = bits[row] - bits["eps"]
        scale = abs(bits["eps"].mean())
        assert abs(difference.mean()) < (1e-12 if double else 1e-5) * scale, row
        assert bits[row].shape == (200,)
    assert max(squares) > 3 * min(squares)  # the errors of the outputs are not comparable


def test_losses_equal_the_bound_under_jit():
    law = oracles.gaussian((2,))
    x = jnp.asarray(law_as_mixture(law).sample(jax.random.key(0), 4000))
    networks = best_networks(law, 10, ("eps", "v"))

    @jax.jit
    def run(x, key):
        return vdm.parameterization_losses(networks, x, key, timesteps=10, draws=8)

    losses = run(x, jax.random.key(1))
    gammas = np.linspace(-13.3, 5, 11)
    exact = oracles.matching(law, gammas, np.asarray(x, np.float64))
    error = oracles.standard_error(np.asarray(losses["v"].elbo.matching, np.float64) - exact)
    assert abs(np.mean(losses["v"].elbo.matching) - exact.mean()) < 4.5 * error


@pytest.mark.parametrize("name", oracles.LAWS)
def test_best_denoisers_tie_and_a_wrong_weight_is_caught(name):
    law = oracles.LAWS[name]((2,))
    networks = best_networks(law, 20, ("mean", "x0", "eps", "v"))

    def scaled_output(step):
        preconditioning = eps().preconditioning(step)
        return preconditioning._replace(out=1.1 * preconditioning.out)

    rows = {row: row for row in networks}
    wrong = Parameterization(scaled_output, eps().target)
    changes = FAST | {"steps": 0, "sampling_steps": (20,), "samples": 500, "draws": 4}
    result = vdm.compare(
        rows | {"wrong": wrong},
        law_as_mixture(law),
        **changes | {"network": networks | {"wrong": networks["eps"]}},
        output_scales=["none"],
        weightings={"elbo": "elbo", "half": lambda log_snr, exact: 0.5 * exact},
        timesteps=20,
    )
    assert result.gradients is None and result.milliseconds is None
    for row in rows:
        for weighting in ("elbo", "half"):
            difference = result.difference(f"{row}_none_{weighting}", "eps_none_elbo")
            assert abs(difference.mean) < 1e-5 * abs(result.bound("eps_none_elbo").mean), row
            assert difference.standard_error < 1e-5
        quality = result.quality[20][result.names.index(f"{row}_none_elbo")]
        assert quality.mean() < 0.2  # to samples of the chain itself
    difference = result.difference("wrong_none_elbo", "eps_none_elbo")
    assert abs(difference.mean) > 10 * difference.standard_error
    notes = [note for note in result.notes if "inconsistent" in note]
    assert (
        len(notes) == 1
        and notes[0].startswith("'wrong' is inconsistent")
        and "by up to 9" in notes[0]
    )
    assert notes[0] in result.table()
    line = next(row for row in result.table().splitlines() if row.startswith("| eps_none_half"))
    assert "| 0.5 |" in line


# --- forms of networks -------------------------------------------------------------------------------


class Plain(nn.Module):
    @nn.compact
    def __call__(self, xt, gamma_t):
        return nn.Dense(xt.shape[-1])(jnp.concatenate([xt, gamma_t[:, None]], -1))


def test_losses_accept_every_form_of_network(monkeypatch):
    """A Linen module, a name of the table and a `Network` of functions of fewer arguments give equal losses."""
    monkeypatch.setitem(vdm.nets.NETS, "ours", lambda: Plain())
    module, x = Plain(), jnp.ones((4, 2))
    params = module.init(jax.random.key(0), x, x[:, 0])["params"]
    short = vdm.Network(
        lambda key, xt, gamma_t: params,
        lambda params, xt, gamma_t: module.apply({"params": params}, xt, gamma_t),
    )

    @oracles.jit
    def losses():
        return [
            vdm.parameterization_losses({"v": params}, x, jax.random.key(0), network=network)["v"]
            for network in (module, "ours", short)
        ]

    first, *others = losses()
    for other in others:
        np.testing.assert_array_equal(first.bits_per_dim, other.bits_per_dim)


@pytest.mark.slow
def test_losses_accept_parameters_or_a_callable():
    net = vdm.nets.mlp(width=4, depth=1, zero=False)
    x = jax.random.normal(jax.random.key(0), (6, 2))
    params = {row: net.init(jax.random.key(i), x, x[:, 0]) for i, row in enumerate(("eps", "v"))}
    by_params = vdm.parameterization_losses(params, x, jax.random.key(1), network=net)
    callables = {
        row: lambda xt, g, p=p: net.apply(p, xt[None], g[None])[0] for row, p in params.items()
    }
    by_callables = vdm.parameterization_losses(callables, x, jax.random.key(1))
    for row in params:
        np.testing.assert_allclose(
            by_params[row].bits_per_dim, by_callables[row].bits_per_dim, rtol=1e-5
        )
    zero = vdm.parameterization_losses(lambda xt, g: 0 * xt, x, jax.random.key(1))
    assert [*zero] == [name for name in PARAMETERIZATIONS if name != "mean"]
    chain = vdm.parameterization_losses(lambda xt, g: 0 * xt, x, jax.random.key(1), timesteps=5)
    assert [*chain] == [*PARAMETERIZATIONS]
    integers = vdm.parameterization_losses(lambda xt, g: 0 * xt, images(), jax.random.key(1))
    assert np.isfinite(integers["v"].bits_per_dim).all()


def test_losses_accept_specs_and_built_bases():
    x, key = jnp.zeros((2, 3)), jax.random.key(0)
    expected = vdm.parameterization_losses({"eps": lambda xt, g: xt}, x, key)["eps"]
    for base in ({"name": "zero"}, vdm.bases.zero()):
        losses = vdm.parameterization_losses(
            {"eps": lambda xt, g: xt}, x, key, base=base, output_scale={"name": "none"}
        )
        np.testing.assert_array_equal(losses["eps"].bits_per_dim, expected.bits_per_dim)
