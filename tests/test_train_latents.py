"""Runs of latent-variable models: training, resumption, reports and mistakes."""

import runpy

import jax
import pytest
import tiny_runs
from PIL import Image
from tiny_runs import SMOKE, assert_same, changed, silent, tiny

import vdm_jax as vdm
from vdm_jax.training.logs import read_metrics

compiled_quickly = tiny_runs.compiled_quickly  # a fixture of every test below


def shrunk(name, **changes):
    """Return a shipped config of a latent-variable model, with small networks and few steps."""
    config = runpy.run_path(str(SMOKE.parent / f"{name}.py"))["get_config"]()
    parts = config.model.chain if name == "mhvae" else config.model
    parts.encoder.width = parts.decoder.width = 8
    if name == "mhvae":
        parts.latents, parts.level.width = (4, 3), 8
    config.optimizer.warmup_steps = 2
    config.train.batch_size, config.train.steps, config.train.steps_per_dispatch = 16, 8, 4
    config.train.log_every, config.train.checkpoint_every = 2, 4
    config.evaluate.draws, config.sample.count = 1, 4
    return changed(config, changes)


@pytest.mark.slow
def test_hierarchy_is_trained_resumed_and_plotted(tmp_path):
    lines = []
    vdm.train(shrunk("mhvae", **{"train.steps": 4}), tmp_path / "parts", log=silent)
    resumed = vdm.train(shrunk("mhvae"), tmp_path / "parts", log=silent)
    whole = vdm.train(shrunk("mhvae"), tmp_path / "whole", log=lines.append)
    assert_same(resumed.state, whole.state)
    assert lines[0].startswith("test: ") and "ELBO, 2 latents" in lines[0]
    made = {line.split()[0] for line in lines[1:]}
    assert {"samples", "reconstructions", "interpolations", "evaluation"} <= made
    for name in ("samples", "reconstructions", "interpolations", "loss"):
        with Image.open(tmp_path / "whole" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert {"kl_1", "gain_2", "level_1", "level_2", "bits_per_dim"} <= rows[-1].keys()
    tight = whole.evaluate("test", estimator={"name": "importance", "samples": 3})
    assert "importance-weighted bound of 3 samples" in tight.estimator and tight.prior is None
    again = []
    vdm.train(shrunk("mhvae"), tmp_path / "whole", log=again.append)
    assert again[1:] == lines


@pytest.mark.slow
def test_autoencoder_reports_that_it_has_no_bound(tmp_path):
    lines = []
    trained = vdm.train(shrunk("ae"), tmp_path, log=lines.append)
    assert lines[0].startswith("no test bound: an autoencoder (prior_weight = 0) has no bound")
    assert (tmp_path / "reconstructions.png").exists() and (tmp_path / "loss.png").exists()
    assert not (tmp_path / "samples.png").exists()
    for refused in (trained.bits_per_dim, lambda: trained.sample(jax.random.key(0), 2)):
        with pytest.raises(ValueError, match="has no bound, because its loss lacks the prior term"):
            refused()
    again = []
    vdm.train(shrunk("ae"), tmp_path, log=again.append)
    assert again[1:] == lines
    # a run shorter than a log interval has a curve without points
    vdm.train(shrunk("ae", **{"train.log_every": 100}), tmp_path / "short", log=silent)
    assert (tmp_path / "short" / "loss.png").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mhvae", {"model.chain.latents": ()}, r"config\.model\.chain\.latents: expected .* T ≥ 1"),
        ("mhvae", {"model.chain.latents": (3, 0)}, r"latents\[1\]: .* at least 1, found 0"),
        ("vae", {"model.latent": 0}, r"config\.model\.latent: .* at least 1, found 0"),
        ("vae", {"model.prior_weight": -1.0}, r"config\.model\.prior_weight: .*, found -1.0"),
        ("vae", {"model.likelihood": "bernoulli"}, r"config\.model\.likelihood: the data have 17"),
        (
            "vae",
            {"model.draws": 0},
            r"config\.model\.draws: expected a whole number of at least 1, found 0",
        ),
        (
            "vae",
            {"evaluate.estimators": ({"name": "importance", "samples": 0},)},
            r"config\.evaluate: estimator\.samples: expected .* at least 1, found 0",
        ),
        (
            "vae",
            {"sample.steps": 10},
            r"config\.sample: 'vae' has no setting 'steps'; choices: count",
        ),
        (
            "smoke",
            {"evaluate.estimators": ("importance",)},
            r"estimator\.timesteps: needed, because the estimator has no continuous-time limit",
        ),
    ],
)
def test_mistakes_with_latent_variables(tmp_path, name, changes, message):
    config = tiny(**changes) if name == "smoke" else shrunk(name, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        vdm.train(config, tmp_path / "run", log=silent)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
