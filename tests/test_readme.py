"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vdm_jax as vdm

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_and_the_nnx_network_trains():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict = {}
    exec("\n".join(blocks), names)
    assert names["sample"].shape == (3,)
    nnx = names["nnx"]

    class Linear(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, xt, gamma_t):
            return self.layer(jnp.concatenate([xt, gamma_t[:, None]], -1))

    model = vdm.MODELS["vdm"](
        vdm.Statistics(shape=(3,), levels=None),
        likelihood="gaussian",
        network=names["nnx_network"](lambda rngs: Linear(rngs)),
    )
    optimizer = optax.adam(1e-2)
    params = model.init(jax.random.key(0))
    state = vdm.init_state(params, optimizer, jax.random.key(1))
    step = jax.jit(vdm.make_step(model.loss, optimizer))
    for _ in range(3):
        state, metrics = step(state, names["x"])
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, params)
    assert all(jax.tree.leaves(moved))


def test_every_public_name_is_there():
    for name in vdm.__all__:
        assert getattr(vdm, name) is not None
    assert callable(vdm.train)  # not a folder of that name
