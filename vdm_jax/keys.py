"""Random keys of single examples.

They are derived from the positions of the examples in the global batch, so that no draw depends on how the
batch is distributed over devices.
"""

import jax

from vdm_jax.checks import check_key, is_key
from vdm_jax.typing import ArrayLike, Key, Keys


def key_of_each(key: Key, index: ArrayLike) -> Keys:
    """Return a key [B] for each example, from its index [B] in the global batch."""
    check_key(key)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def example_keys(key: Key, index: ArrayLike, n: int) -> tuple[Keys, ...]:
    """Return `n` keys [B] for each example, from its index [B] in the global batch."""
    return split_each(key_of_each(key, index), n)


def split_each(keys: Keys, n: int) -> tuple[Keys, ...]:
    """Split each of the keys [B] into `n` keys, and return these as `n` arrays [B]."""
    keys = jax.vmap(lambda key: jax.random.split(key, n))(keys)
    return tuple(keys[:, i] for i in range(n))


def fold(key: Key | Keys, number: ArrayLike) -> Key | Keys:
    """Fold one number into a key, or into each of the keys [B]."""
    return jax.random.fold_in(key, number) if is_key(key) else fold_each(key, number)


def fold_each(keys: Keys, number: ArrayLike) -> Keys:
    """Fold one number into each of the keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
