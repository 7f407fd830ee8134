"""Networks. Flax lives here and nowhere else."""

from collections.abc import Callable

from vdm_jax.nets.conv import conv_decoder, conv_encoder
from vdm_jax.nets.mlp import mlp
from vdm_jax.nets.network import Network
from vdm_jax.nets.own import as_network
from vdm_jax.nets.unet import unet, vdm_unet

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
    "mlp",
    "unet",
    "vdm_unet",
]
