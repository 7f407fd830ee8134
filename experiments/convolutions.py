"""Do the gradients of a convolution cost the same inside a loop as outside of one?

    python experiments/convolutions.py [--quick] [--rounds 7] [--out DIR]

Of each form of `vdm_jax.nets.ops`, the gradients of a 3×3 convolution are computed outside of a loop, and
inside of a `lax.scan` of one turn; all take turns. Writes jax_VERSION.json and jax_VERSION.md. --quick takes
seconds; its numbers mean nothing.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.nets.ops import FORMS
from vdm_jax.runtime.versions import library_versions
from vdm_jax.xla import cores

HERE = Path(__file__).resolve().parent
SIZES = {False: ((8, 32, 32, 64), (3, 3, 64, 64)), True: ((2, 8, 8, 4), (3, 3, 4, 4))}  # if small


def programs(small: bool) -> dict[tuple[str, str], Any]:
    """Compiled gradients by form and place, of arrays of their own."""
    x, k = (jax.random.normal(jax.random.key(i), size) for i, size in enumerate(SIZES[small]))
    found = {}
    for name, form in FORMS.items():

        def gradients(x, k, form=form):
            return jax.grad(lambda x, k: jnp.sum(form((1, 1), "SAME", None, x, k) ** 2), (0, 1))(
                x, k
            )

        def looped(x, k, gradients=gradients):
            return jax.lax.scan(lambda carry, _: (carry, gradients(*carry)), (x, k), length=1)[1]

        for where, run in (("outside", gradients), ("inside", looped)):
            compiled = jax.jit(run).lower(x, k).compile()
            found[name, where] = lambda compiled=compiled: jax.block_until_ready(compiled(x, k))
    return found


def measure(rounds: int, small: bool) -> dict[str, list[float]]:
    """Seconds of each, one for each round after a first that does not count."""
    runs = programs(small)
    seconds: dict[str, list[float]] = {" ".join(name): [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if i:
                seconds[" ".join(name)].append(time.perf_counter() - began)
    return seconds


def table(seconds: dict[str, list[float]], about: dict[str, Any]) -> str:
    base = seconds["plain outside"]
    lines = ["| form | outside of a loop | inside |", "|---|---|---|"]
    for name in FORMS:
        cells = []
        for where in ("outside", "inside"):
            ratios = [a / b for a, b in zip(seconds[f"{name} {where}"], base, strict=True)]
            cells.append(
                f"× {statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    words = (
        "Gradients of a convolution of float32, in units of the plain form's outside of a loop: medians of "
        f"{len(base)} rounds taken in turns (smallest to largest). Input {about['shape']}, kernel "
        f"{about['kernel']}; {about['device']}, {about['cores']} cores, jax {about['versions']['jax']}, "
        f"jaxlib {about['versions']['jaxlib']}."
    )
    return "\n".join([*lines, "", words, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "convolutions")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.out = 1, Path(tempfile.mkdtemp())
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"command": f"python experiments/convolutions.py --rounds {options.rounds}"}
    about |= {"versions": library_versions(), "python": platform.python_version()}
    about |= {"device": jax.devices()[0].device_kind, "cores": cores()}
    about |= dict(zip(("shape", "kernel"), SIZES[options.quick], strict=True))
    seconds = measure(options.rounds, options.quick)
    path = options.out / f"jax_{jax.__version__}.json"
    path.write_text(json.dumps(about | {"seconds": seconds}, indent=1) + "\n")
    text = table(seconds, about)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
