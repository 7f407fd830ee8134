"""Time of the gradients of a convolution inside a loop, relative to outside.

    python experiments/convolutions.py [--quick] [--rounds 7] [--out DIR]

Computes the gradients of a 3×3 convolution in each form of `vdm_jax.nets.ops`, outside a loop and inside a
`lax.scan` of length one; all take turns. Writes jax_VERSION.json and jax_VERSION.md. --quick takes seconds; its
numbers mean nothing.
"""

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from _common import argument_parser, environment, markdown_table, output_folder

from vdm_jax.nets.ops import FORMS

SIZES = {False: ((8, 32, 32, 64), (3, 3, 64, 64)), True: ((2, 8, 8, 4), (3, 3, 4, 4))}
"""quick -> the shapes of the input and of the kernel."""


def programs(quick: bool) -> dict[tuple[str, str], Any]:
    """Return compiled gradients by form and place; each takes no argument."""
    x, k = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(SIZES[quick]))
    programs = {}
    for name, form in FORMS.items():

        def gradients(x, k, form=form):
            return jax.grad(lambda x, k: jnp.sum(form((1, 1), "SAME", None, x, k) ** 2), (0, 1))(
                x, k
            )

        def looped(x, k, gradients=gradients):
            return jax.lax.scan(lambda carry, _: (carry, gradients(*carry)), (x, k), length=1)[1]

        for place, run in (("outside", gradients), ("inside", looped)):
            compiled = jax.jit(run).lower(x, k).compile()
            programs[name, place] = lambda compiled=compiled: jax.block_until_ready(compiled(x, k))
    return programs


def measure(rounds: int, quick: bool) -> dict[str, list[float]]:
    """Return the seconds of each program, once per round after a first round that warms up."""
    runs = programs(quick)
    seconds: dict[str, list[float]] = {" ".join(name): [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i:
                seconds[" ".join(name)].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]], about: dict[str, Any]) -> str:
    """Return the table of times relative to the plain form outside a loop."""
    base = seconds["plain outside"]
    rows = []
    for name in FORMS:
        cells = [name]
        for place in ("outside", "inside"):
            ratios = [a / b for a, b in zip(seconds[f"{name} {place}"], base, strict=True)]
            cells.append(
                f"× {statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
            )
        rows.append(cells)
    caption = (
        "Gradients of a convolution of float32, in units of the plain form's outside of a loop: medians of "
        f"{len(base)} rounds taken in turns (smallest to largest). Input {about['shape']}, kernel "
        f"{about['kernel']}; {about['device']}, {about['cores']} cores, jax {about['versions']['jax']}, "
        f"jaxlib {about['versions']['jaxlib']}."
    )
    return markdown_table(["form", "outside of a loop", "inside"], rows, caption)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    out = output_folder(options, "convolutions")
    out.mkdir(parents=True, exist_ok=True)
    about = {"command": f"python experiments/convolutions.py --rounds {options.rounds}"}
    about |= environment("versions", "python", "device", "cores")
    about |= dict(zip(("shape", "kernel"), SIZES[options.quick], strict=True))
    seconds = measure(options.rounds, options.quick)
    path = out / f"jax_{jax.__version__}.json"
    path.write_text(json.dumps(about | {"seconds": seconds}, indent=1) + "\n")
    text = table(seconds, about)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
