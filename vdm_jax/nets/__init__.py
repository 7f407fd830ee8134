"""Networks. Flax lives here and nowhere else."""

from collections.abc import Callable

from vdm_jax.nets.mlp import mlp
from vdm_jax.nets.network import Network
from vdm_jax.nets.unet import unet, vdm_unet

NETS: dict[str, Callable[..., Network]] = {"mlp": mlp, "unet": unet, "vdm_unet": vdm_unet}

__all__ = ["NETS", "Network", "mlp", "unet", "vdm_unet"]
