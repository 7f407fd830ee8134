"""Networks. Flax lives here and nowhere else."""

from collections.abc import Callable, Mapping
from typing import Any

from vdm_jax.nets.adapters import as_network, complete
from vdm_jax.nets.callables import from_callable
from vdm_jax.nets.conv import conv_decoder, conv_encoder
from vdm_jax.nets.mlp import mlp
from vdm_jax.nets.network import Network, Pretrained, from_linen
from vdm_jax.nets.unet import unet, vdm_unet
from vdm_jax.specs import build, located

NETS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "unet": unet,
    "vdm_unet": vdm_unet,
    "conv_encoder": conv_encoder,
    "conv_decoder": conv_decoder,
}
"""name -> factory of a `Network`; the last two are for latent variables, no denoisers."""

__all__ = [
    "NETS",
    "Network",
    "as_network",
    "conv_decoder",
    "conv_encoder",
    "from_callable",
    "from_linen",
    "mlp",
    "network_of",
    "unet",
    "vdm_unet",
]


def network_of(given: Any, shape: tuple[int, ...]) -> Network:
    """Return the network of a name, of a spec, or of what `as_network` takes.

    Raises:
      ValueError: those of `build` and `as_network`, about "network".
    """
    if isinstance(given, str | Mapping):
        given = build(NETS, given, "network")
    initialized = isinstance(given, Network) and not isinstance(given, Pretrained)
    with located("network"):
        return (complete if initialized else as_network)(given, shape)
