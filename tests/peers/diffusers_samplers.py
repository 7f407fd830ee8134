"""Write diffusers_samplers.json: the latents of the `diffusers` schedulers, step by step.

The tests read the file and never import this script, so that they need neither torch nor diffusers. The file is
from torch 2.13.0 (CPU), diffusers 0.42.1 and NumPy 2.4.6 on Python 3.11, written by

    python3.11 -m venv peer
    peer/bin/pip install torch==2.13.0 diffusers==0.42.1
    peer/bin/python tests/peers/diffusers_samplers.py

All schedulers visit the same 13 noise levels, those of the timesteps 996, 913, ..., 83, 0 of a chain of 1000
steps with linear β from 1e-4 to 0.02. The file has

    versions  of diffusers, torch and numpy
    network   the formula of the fixed network that takes the place of a trained one, `network` below
    gammas    γ = log(σ²/α²), from noise to data [13]
    x1        the latent at the first noise level [3]
    noise     the standard normal noise of each step [12, 3]
    records   of each run: `scheduler`, its `settings`, `step_settings` of its method `step`, `uses_noise`, and
              `latents` [13, 3], the variance-preserving x_t at each noise level, of which the first is x1

There is no step to σ = 0. The numbers are those of float64. The schedulers compute in float32 by name, so that
`torch.float32` stands for float64 here while they run; `main` also runs them as they are, and compares.
The last step is 4.7 times as long as the one before.
"""

import contextlib
import importlib.metadata
import itertools
import json
import pathlib
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

STEPS = 12
STRIDE = 1000 // STEPS  # that of DDIMScheduler
TIMESTEPS = [STRIDE * k for k in range(STEPS, 0, -1)]  # those of each step's start

CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "sample",
}
DPM_SOLVER = {
    "solver_type": "midpoint",
    "lower_order_final": False,
    "euler_at_final": False,
    "final_sigmas_type": "sigma_min",
}
DDIM = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "steps_offset": STRIDE,
}

RUNS = [
    *(
        (
            DPMSolverMultistepScheduler,
            {"solver_order": order, "algorithm_type": kind, **DPM_SOLVER},
            {},
        )
        for kind, orders in [("dpmsolver++", (1, 2, 3)), ("sde-dpmsolver++", (1, 2))]
        for order in orders
    ),
    *((DDIMScheduler, DDIM, {"eta": eta}) for eta in (0.0, 0.5)),
    (HeunDiscreteScheduler, {}, {}),
]
"""The class, its own settings, and the settings of its method `step`."""

NETWORK = "x0_hat = tanh(0.8 * alpha * x_t + 0.3 * sin(gamma)), alpha = sqrt(sigmoid(-gamma))"


def network(xt, gamma):
    """Return x̂_0, `NETWORK`."""
    return torch.tanh(0.8 * alpha(gamma) * xt + 0.3 * torch.sin(gamma))


def alpha(gamma):
    """Return the signal level α."""
    return torch.sqrt(torch.sigmoid(-gamma))


def noise_levels(dtype):
    """Return γ at `TIMESTEPS` and at 0, from noise to data [STEPS + 1]."""
    betas = torch.linspace(CHAIN["beta_start"], CHAIN["beta_end"], 1000, dtype=torch.float64)
    signal = torch.cumprod(1 - betas, 0)[[*TIMESTEPS, 0]]
    return torch.log((1 - signal) / signal).to(dtype)


def run(scheduler_class, settings, step_settings, x1, noise, dtype):
    """Return the latents of one scheduler, [STEPS + 1, *x1.shape]."""
    exact = dtype == torch.float64
    patch = (
        mock.patch.object(torch, "float32", torch.float64) if exact else contextlib.nullcontext()
    )
    x1, noise, gammas = x1.to(dtype), noise.to(dtype), noise_levels(dtype)
    with patch:
        scheduler = scheduler_class(**CHAIN, **settings)
        if scheduler_class is DDIMScheduler:
            scheduler.set_timesteps(STEPS)
            assert scheduler.timesteps.tolist() == TIMESTEPS
            latents = with_one_stage(scheduler, step_settings, x1, noise, gammas)
        elif scheduler_class is DPMSolverMultistepScheduler:
            scheduler.set_timesteps(timesteps=TIMESTEPS)
            set_sigmas(scheduler, torch.exp(0.5 * gammas), exact)
            latents = with_one_stage(scheduler, step_settings, x1, noise, gammas)
        else:
            # σ = 0 follows, and its step is not made
            scheduler.set_timesteps(timesteps=[*TIMESTEPS, 0])
            ends = torch.exp(0.5 * gammas)
            both = torch.cat([ends[:1], ends[1:].repeat_interleave(2), torch.zeros(1, dtype=dtype)])
            set_sigmas(scheduler, both, exact)
            latents = with_two_stages(scheduler, x1, gammas)
    latents = torch.stack(latents)
    assert latents.dtype == dtype
    return latents.double().numpy()


def set_sigmas(scheduler, sigmas, exact):
    """Replace the noise levels of a scheduler, which are rounded to float32, by the same in float64."""
    np.testing.assert_allclose(scheduler.sigmas, sigmas, rtol=1e-5 if exact else 1e-3)
    if exact:
        scheduler.sigmas = sigmas


def with_one_stage(scheduler, step_settings, xt, noise, gammas):
    """Return the latents of a scheduler that predicts once per step."""
    latents = [xt]
    for i, timestep in enumerate(scheduler.timesteps):
        output = network(xt, gammas[i])
        xt = scheduler.step(
            output, timestep, xt, variance_noise=noise[i], **step_settings
        ).prev_sample
        latents.append(xt)
    return latents


def with_two_stages(scheduler, x1, gammas):
    """Return the latents of Heun's method, whose own latent is y = x_t/α."""
    latents, y = [x1], x1 / alpha(gammas[0])
    timesteps = iter(scheduler.timesteps)
    for gamma, gamma_next in itertools.pairwise(gammas):
        for level in (gamma, gamma_next):
            output = network(alpha(level) * y, level)
            y = scheduler.step(output, next(timesteps), y).prev_sample
        latents.append(alpha(gamma_next) * y)
    return latents


def main():
    x1 = torch.tensor([1.3, -0.4, 0.7], dtype=torch.float64)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((STEPS, 3)).round(6))
    records = []
    for scheduler_class, settings, step_settings in RUNS:
        latents, as_it_is = (
            run(scheduler_class, settings, step_settings, x1, noise, dtype)
            for dtype in (torch.float64, torch.float32)
        )
        differences = np.abs(latents - as_it_is).max(1)
        print(
            f"float32 differs by {differences[:-1].max():.0e}, at the end by {differences[-1]:.0e}"
        )
        # 1 − ᾱ = 1e-4 of the last noise level has 3 digits in float32
        assert np.all(differences[:-1] < 1e-5) and differences[-1] < 1e-3
        kind = settings.get("algorithm_type", "")
        record = {
            "scheduler": scheduler_class.__name__,
            "settings": {**CHAIN, **settings},
            "step_settings": step_settings,
            "uses_noise": kind.startswith("sde") or step_settings.get("eta", 0) > 0,
            "latents": latents.tolist(),
        }
        records.append(record)

    packages = ("diffusers", "torch", "numpy")
    contents = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "network": NETWORK,
        "gammas": noise_levels(torch.float64).tolist(),
        "x1": x1.tolist(),
        "noise": noise.tolist(),
        "records": records,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(contents) + "\n")


if __name__ == "__main__":
    main()
