"""Keys of single examples, from their place in the global batch: no draw depends on how a batch is spread."""

from typing import Any

import jax

from vdm_jax.checks import check_key
from vdm_jax.typing import Key, Keys


def example_keys(key: Key, index: Any, n: int) -> tuple[Keys, ...]:
    """Return `n` keys [B] for each example, from its index [B] in the global batch."""
    check_key(key)
    return split_each(jax.vmap(jax.random.fold_in, (None, 0))(key, index), n)


def split_each(keys: Keys, n: int) -> tuple[Keys, ...]:
    """`n` keys [B] from each of the keys [B]."""
    keys = jax.vmap(lambda key: jax.random.split(key, n))(keys)
    return tuple(keys[:, i] for i in range(n))


def fold_each(keys: Keys, number: Any) -> Keys:
    """Fold one number into each of the keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
