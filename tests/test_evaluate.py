"""Evaluation: each example once, whatever the batches, with its parts, its error and its words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.data import Split, eval_batches
from vdm_jax.elbo import Elbo
from vdm_jax.models import Statistics, vae, vdm
from vdm_jax.models.likelihood import build_estimator
from vdm_jax.nets import Network
from vdm_jax.training.evaluate import evaluate, make_evaluator
from vdm_jax.training.evaluation import Evaluation

WORDS = {"estimator": "diffusion ELBO, T = 3, 2 draws", "data": "digits 1.9, split test", "step": 7}


def split(size, shape=(2, 2, 1), levels=5):
    return Split(np.random.default_rng(0).integers(0, levels, (size, *shape), np.uint8), "test")


def assert_close(a: Evaluation, b: Evaluation, rtol):
    numbers = ("bits_per_dim", "standard_error", "reconstruction", "matching", "prior")
    for name in numbers:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, err_msg=name)
    assert a[len(numbers) :] == b[len(numbers) :]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25])
def test_each_example_once_and_nothing_of_the_padding(batch_size):
    size, dim, seen = 10, 4, []

    def evaluator(params, key, batch, fitted):
        """Parts that are known for each example, and poison where the batch is padded."""
        i = np.where(batch.index < size, batch.index, np.nan).astype(np.float64)
        seen.extend(batch.index[batch.index < size])
        return Elbo(params * i, i**2, np.ones_like(i))._asdict()

    batches = eval_batches(split(size), batch_size=batch_size)
    result = evaluate(evaluator, 3.0, jax.random.key(0), batches, dim=dim, **WORDS)
    assert seen == list(range(size))
    bits = dim * math.log(2)
    i = np.arange(size)
    total = (3 * i + i**2 + 1) / bits
    expected = Evaluation(
        bits_per_dim=total.mean(),
        standard_error=math.sqrt(np.sum((total - total.mean()) ** 2) / (size - 1) / size),
        reconstruction=3 * i.mean() / bits,
        matching=np.mean(i**2) / bits,
        prior=1 / bits,
        examples=size,
        **WORDS,
    )
    assert_close(result, expected, 1e-12)
    parts = result.reconstruction + result.matching + result.prior
    np.testing.assert_allclose(result.bits_per_dim, parts, rtol=1e-12)
    assert all(type(value) in (float, int, str, dict, type(None)) for value in result)  # of JSON


def test_one_example_has_no_standard_error():
    def evaluator(params, key, batch, fitted):
        return Elbo(*(np.ones(len(batch.index)),) * 3)._asdict()

    batches = eval_batches(split(1), batch_size=3)
    result = evaluate(evaluator, None, jax.random.key(0), batches, dim=1, **WORDS)
    assert math.isnan(result.standard_error) and result.examples == 1


@pytest.fixture(scope="module")
def estimate():
    """Evaluate a small model on so many examples in batches of a size."""
    network = Network(
        init=lambda key, xt, gamma_t, extra=None: {"w": jnp.ones(())},
        apply=lambda params, xt, gamma_t, extra=None, keys=None: params["w"] * xt,
    )
    model = vdm(Statistics((2, 2, 1), 5), network=network)
    params = model.init(jax.random.key(0))
    evaluators = {
        draws: make_evaluator(build_estimator(model, "elbo", draws)) for draws in (1, 2, 16)
    }

    def run(size, batch_size, draws=2, seed=0):
        batches = eval_batches(split(size), batch_size=batch_size)
        key = jax.random.key(seed)
        return evaluate(evaluators[draws], params, key, batches, dim=4, **WORDS)

    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    yield run
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize(
    ("size", "batch_sizes"), [(297, (49, 100, 297, 1000)), (4, (1, 4))], ids=str
)
@pytest.mark.slow
def test_the_batch_size_does_not_matter(estimate, size, batch_sizes):
    first, *others = (estimate(size, batch_size) for batch_size in batch_sizes)
    assert first.examples == size and first.standard_error > 0
    for other in others:
        assert_close(other, first, 2e-6)


def test_one_key_is_one_number_and_draws_lower_the_error(estimate):
    assert estimate(297, 297) == estimate(297, 297)
    assert estimate(297, 297).bits_per_dim != estimate(297, 297, seed=1).bits_per_dim
    errors = [estimate(297, 297, draws).standard_error for draws in (1, 16)]
    assert errors[1] < 0.7 * errors[0]


def test_the_report_says_what_the_number_is():
    numbers = (2.5, 0.01234, 0.25, 2.0, 0.25)
    text = str(Evaluation(*numbers, examples=297, **WORDS))
    assert "2.5000 ± 0.0123 bits/dim" in text
    assert "reconstruction 0.2500 + matching 2.0000 + prior 0.2500" in text
    assert "diffusion ELBO, T = 3, 2 draws; digits 1.9, split test, 297 examples" in text
    assert text.endswith("EMA weights of step 7")


# --- the importance-weighted bound -------------------------------------------------------------------


STATISTICS = Statistics((2, 2, 1), 5, log_counts=np.zeros((2, 2, 1, 5), np.float32))
TINY = {"name": "mlp", "width": 8, "depth": 1}


def test_the_importance_weighted_bound_has_no_parts_and_is_tighter():
    model = vae(STATISTICS, latent=2, encoder=TINY, decoder=TINY)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.5 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, leaves)
    results = {}
    for samples, spec in ((1, "elbo"), (20, {"name": "importance", "samples": 20})):
        batches = eval_batches(split(40), batch_size=16)
        evaluator = make_evaluator(build_estimator(model, spec, 4))
        results[samples] = evaluate(evaluator, params, jax.random.key(0), batches, dim=4, **WORDS)
    elbo, tight = results[1], results[20]
    assert elbo.reconstruction > 0 and elbo.prior > 0
    assert (tight.reconstruction, tight.matching, tight.prior) == (None, None, None)
    assert tight.bits_per_dim < elbo.bits_per_dim
    assert str(tight).splitlines()[0].endswith(" bits/dim") and "= reconstr" in str(elbo)


def test_models_without_an_estimator_say_so():
    message = "estimator: 'ode' needs a diffusion process, which 'vae' does not have; choices: elbo"
    with pytest.raises(ValueError, match=message):
        build_estimator(vae(STATISTICS, encoder=TINY, decoder=TINY), "ode")
    with pytest.raises(ValueError, match="estimator: unknown name 'iwae'"):
        build_estimator(vae(STATISTICS, encoder=TINY, decoder=TINY), "iwae")
    with pytest.raises(ValueError, match=r"estimator\.timesteps: needed, because"):
        build_estimator(vdm(STATISTICS, network=TINY), "importance")
    mean = vdm(STATISTICS, network=TINY, parameterization="mean", timesteps=4)
    with pytest.raises(ValueError, match=r"estimator\.timesteps: 'mean' .* expected 4, found 3"):
        build_estimator(mean, {"name": "elbo", "timesteps": 3})
    model = vae(STATISTICS, prior_weight=0)
    with pytest.raises(ValueError, match=r"^vae: .*an autoencoder .* has no bound"):
        build_estimator(model, "elbo")
