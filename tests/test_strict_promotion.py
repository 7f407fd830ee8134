"""Everything runs under JAX's strict dtype promotion, where no array changes its type implicitly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import weekly_except

from vdm_jax.effective_weights import effective_weights
from vdm_jax.elbo import FORMS, negative_elbo
from vdm_jax.likelihoods import LIKELIHOODS
from vdm_jax.models import MODELS, Statistics
from vdm_jax.models.likelihood import build_estimator
from vdm_jax.parameterizations import PARAMETERIZATIONS
from vdm_jax.samplers import SAMPLERS, generate
from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build, name_of
from vdm_jax.training.evaluate import make_evaluator
from vdm_jax.training.optimizer import OPTIMIZERS, make_optimizer
from vdm_jax.training.state import init_state
from vdm_jax.training.step import make_step
from vdm_jax.weightings import WEIGHTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_optimizations")]

SHAPE, LEVELS = (4, 4, 1), 8
X = np.random.default_rng(0).integers(0, LEVELS, (3, *SHAPE)).astype(np.uint8)
COUNTS = np.zeros((*SHAPE, LEVELS), np.float32)
NEEDED = {
    "from_betas": {"betas": np.linspace(1e-3, 0.05, 50)},
    "piecewise_linear": {"gammas": [-8.0, -2.0, 6.0]},
}
EVERY_SCHEDULE = [{"name": name} | NEEDED.get(name, {}) for name in SCHEDULES]
SOFTMAX = {"name": "softmax", "levels": LEVELS}
MLP = {"name": "mlp", "width": 4, "depth": 1, "dropout": 0.1}
UNET = {"name": "unet", "channels": (4,), "blocks": 1, "fourier": (3, 3)}
CONV = {name: {"name": f"conv_{name}", "channels": (4,)} for name in ("encoder", "decoder")}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def half(xt, gamma_t):
    return 0.5 * xt * jnp.cos(gamma_t)


@pytest.mark.parametrize(
    "spec",
    weekly_except([{"name": "linear"}, {"name": "learned_monotone"}], EVERY_SCHEDULE),
    ids=name_of,
)
def test_pure_functions_of_every_schedule(spec):
    schedule = build(SCHEDULES, spec)
    at = {"schedule": schedule, "schedule_params": schedule.init(jax.random.key(0))}
    key = jax.random.key(1)

    @jax.jit
    def evaluate():
        bounds = [
            negative_elbo(half, X[0], key, likelihood=SOFTMAX, timesteps=5, form=form, **at)
            for form in FORMS
        ]
        bounds += [negative_elbo(half, X[0], key, likelihood=SOFTMAX, **at)]
        samples = [generate(half, key, (3,), sampler=name, steps=2, **at) for name in SAMPLERS]
        weights = [
            effective_weights("v", name, timesteps=timesteps, times=times, **at)
            for name in WEIGHTINGS
            for timesteps, times in ((None, jnp.asarray([0.2, 0.7])), (7, jnp.arange(7)))
        ]
        return bounds, samples, weights

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(evaluate()))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_parameterization(name):
    at = {"schedule": "cosine", "parameterization": name}
    key = jax.random.key(0)
    bound = negative_elbo(half, X[0], key, likelihood=SOFTMAX, timesteps=3, **at)
    assert np.isfinite(bound.total) and generate(half, key, (3,), steps=2, **at).dtype == np.float32


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood(name):
    shared = {"levels": LEVELS, "log_counts": COUNTS}
    likelihood = build(LIKELIHOODS, name, **shared)
    x = {"bernoulli": X[0] // 4, "gaussian": np.float32(X[0]) / 8}.get(name, X[0])
    x0, log_var = likelihood.encode(x), jnp.asarray(-2.0)
    likelihood.sample(jax.random.key(0), x0, log_var)
    likelihood.expected(x0, log_var)
    for variance in (log_var, jnp.full(SHAPE, -2.0)):
        assert np.isfinite(likelihood.log_prob(x, x0, variance))
    np.testing.assert_array_equal(likelihood.decode(x0), x)


FAMILIES = [  # a family, its fields and an optimizer
    ("vdm", {"network": UNET, "base": "histogram", "output_scale": "unit_variance"}, "adamw"),
    ("vdm", {"network": UNET | {"dtype": "bfloat16"}, "weighting": "min_snr"}, "adamw"),
    (
        "vdm",
        {"network": MLP | {"dtype": "bfloat16"}, "base": "input", "output_scale": "unit_variance"},
        "adamw",
    ),
    ("vdm", {"network": MLP, "time_sampler": "learned", "timesteps": 6, "weighting": "p2"}, "muon"),
    ("vdm", {"network": MLP, "time_sampler": "analytic", "base": "levels"}, "adamw"),
    ("vdm", {"network": MLP, "schedule": "learned_monotone"}, "adamw"),
    ("vae", CONV | {"latent": 2}, "adamw"),
    ("mhvae", {"chain": {"name": "gaussian", "latents": [3, 2]}}, "adamw"),
    ("mhvae", {"chain": {"name": "diffusion", "timesteps": 2, "network": MLP}}, "adamw"),
]


def test_every_family_and_optimizer_is_tried():
    assert {family for family, _, _ in FAMILIES} == set(MODELS)
    assert {optimizer for _, _, optimizer in FAMILIES} == set(OPTIMIZERS)


@pytest.mark.parametrize(("family", "fields", "optimizer"), FAMILIES, ids=str)
def test_a_train_step_the_bound_and_samples(family, fields, optimizer):
    model = MODELS[family](Statistics(SHAPE, LEVELS, log_counts=COUNTS), **fields)
    settings = {"warmup_steps": 2, "decay_steps": 9, "decay_to": 0.1, "weight_decay": 0.01}
    settings |= {"b1": 0.9, "b2": 0.99, "clip_norm": 1.0, "accumulate": 2, "learning_rate": 1e-3}
    descend, _ = make_optimizer(name=optimizer, **settings)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: init_state(model.init(key), descend, key))
    step = make_step(model.loss, descend, ema_warmup=True, ema_every=2)
    lowered = jax.jit(step).lower(state, X)  # lowering also checks the promotion in derivatives
    state, metrics = lowered.out_info
    assert metrics["loss"].dtype == jnp.float32
    params = state.ema_params
    bound = jax.eval_shape(make_evaluator(build_estimator(model, "elbo", 2)), params, key, X)
    assert jnp.dtype("float32") in {part.dtype for part in bound.values()}
    if model.importance is not None:
        jax.eval_shape(
            make_evaluator(build_estimator(model, {"name": "importance", "samples": 2})),
            params,
            key,
            X,
        )
    steps = {"steps": fields.get("timesteps", 2)} if family == "vdm" else {}
    assert jax.eval_shape(lambda p: model.sample(p, key, 2, **steps), params).dtype == np.uint8
