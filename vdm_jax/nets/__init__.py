"""Networks. Only this package imports Flax."""

from collections.abc import Callable, Mapping

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
"""name -> factory of a `Network`. The last two are for latent variables and are no denoisers."""

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


def network_of(given: object, shape: tuple[int, ...]) -> Network:
    """Build the network that a name or a spec names, or turn another object into one by `as_network`.

    Args:
      given: a name or a spec of `NETS`, or an argument of `as_network`.
      shape: of one example.

    Raises:
      ValueError: `build` or `as_network` raises it; the message starts with "network".
    """
    if isinstance(given, str | Mapping):
        given = build(NETS, given, "network")
    with located("network"):
        if isinstance(given, Network) and not isinstance(given, Pretrained):
            return complete(given, shape)
        return as_network(given, shape)
