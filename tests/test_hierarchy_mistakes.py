"""Mistakes in latent-variable models are refused in one line."""

import math

import jax
import pytest
from small_hierarchy import (
    PARTS,
    SHAPE,
    STATISTICS,
    TINY,
    Map,
    X,
    fixed_network,
    map_pair,
    small_hierarchy,
)

from vdm_jax.models import Statistics, mhvae, vae


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small_hierarchy([]), r"chain\.latents: expected the dimensions of T ≥ 1 latents"),
        (lambda: small_hierarchy(3), r"chain\.latents: expected the dimensions .* found 3"),
        (
            lambda: small_hierarchy([4, 0]),
            r"latents\[1\]: expected a whole number of at least 1, found 0",
        ),
        (
            lambda: small_hierarchy([4, 2.5]),
            r"latents\[1\]: expected a whole number of at least 1, found 2.5",
        ),
        (lambda: small_hierarchy([3], prior_weight=-0.5), r"prior_weight: expected .*, found -0.5"),
        (
            lambda: small_hierarchy([3], prior_weight=math.nan),
            "prior_weight: expected .*, found nan",
        ),
        (
            lambda: small_hierarchy([3, 2], prior_weight=0),
            "prior_weight: 0 makes an autoencoder of one latent",
        ),
        (
            lambda: small_hierarchy([3], draws=0),
            "draws: expected a whole number of at least 1, found 0",
        ),
        (
            lambda: small_hierarchy([3], likelihood="bernoulli"),
            "likelihood: the data have 5 levels.* of 2 levels",
        ),
        (
            lambda: small_hierarchy([3], likelihood="gaussian"),
            "have 5 levels, .* of continuous values",
        ),
        (lambda: vae(Statistics(SHAPE, None)), "expected K-level data, found continuous values"),
        (lambda: vae(Statistics(SHAPE, None), likelihood="softmax"), "found continuous values"),
        (lambda: vae(STATISTICS, latent=0), r"latent: expected .* at least 1, found 0"),
        (lambda: vae(STATISTICS, latent=2.0), r"latent: .* found 2\.0"),
        (
            lambda: vae(STATISTICS, encoder="unet"),
            r"encoder: .*cannot map \(2, 3\) to \(2, 16\)",
        ),
        (
            lambda: vae(STATISTICS, encoder=fixed_network(lambda x: x)),
            r"expected a map from .* found one to \(2, 3\)",
        ),
        (
            lambda: vae(STATISTICS, decoder="vdm_unet"),
            r"decoder: cannot map \(16,\) to \(2, 3, 2\)",
        ),
        (lambda: vae(STATISTICS, decoder="mpl"), r"decoder: unknown name 'mpl'; .*'mlp'"),
        (
            lambda: mhvae(STATISTICS, chain="diffusion"),
            r"chain: 'diffusion' needs timesteps",
        ),
        (
            lambda: mhvae(STATISTICS, chain={"name": "diffusion", "timesteps": 0}),
            r"chain\.timesteps: expected a whole number",
        ),
        (
            lambda: mhvae(
                STATISTICS, chain={"name": "diffusion", "timesteps": 2, "network": "mpl"}
            ),
            r"^chain\.network: unknown name 'mpl'",
        ),
        (
            lambda: mhvae(STATISTICS, chain={"name": "gaussian", "latents": [2], "lvl": 3}),
            "chain: 'gaussian' has no argument 'lvl'; did you mean 'level'",
        ),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_mistakes_are_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Map((2, 4)), r"expected a map from \(2, 3\) to \(2, 3\), found one to \(2, 4\)"),
        (lambda x: x, "expected a name, a Linen module, or init and apply, found function"),
        ((map_pair, lambda params: params), r"apply takes 'params', expected \(params, x\)"),
        (
            (lambda key, x: {}, lambda params, x, scale: x),
            r"cannot map \(2, 3\) to \(2, 3\): .*'scale'",
        ),
    ],
    ids=["shape", "function", "apply", "argument"],
)
def test_invalid_encoders_are_refused_in_one_line(encoder, message):
    with pytest.raises(ValueError, match=rf"^encoder: {message}") as caught:
        vae(STATISTICS, latent=3, encoder=encoder, decoder=TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vae", "autoencoder", "diffusion"])
def test_data_of_another_shape_than_the_statistics_are_refused(kind):
    if kind == "diffusion":
        model = mhvae(STATISTICS, chain={"name": "diffusion", "timesteps": 2, "network": TINY})
    else:
        model = vae(STATISTICS, latent=3, prior_weight=float(kind == "vae"), **PARTS)
    key, x = jax.random.key(0), X[:, :1]
    params = jax.eval_shape(model.init, key)
    calls = [model.loss]
    if model.importance is not None:
        calls += [model.elbo, lambda *arguments: model.importance(*arguments, 2)]
    for call in calls:
        with pytest.raises(ValueError, match=r"batch: .* expected shape \(2, 3\), found \(1, 3\)"):
            jax.eval_shape(call, params, key, x)
