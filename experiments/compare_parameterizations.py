"""Test bounds of parameterizations, output scales and weightings, all trained side by side.

    python experiments/compare_parameterizations.py [--quick] [--data=digits|mnist|...] [--seeds N] [--steps N]
                                                    [--out=DIR]

Runs `vdm_jax.compare` with a small MLP, T = 1000 and the base `levels`. All variants of a seed share the
initial weights, batches, times and noise. Writes comparison.json (numbers, settings, versions), comparison.csv,
comparison.md, comparison.png and samples.png. --quick trains for a few steps, to test that everything runs; its
numbers mean nothing.
"""

import json
from typing import Any

from _common import argument_parser, environment, output_folder, set_up_jax

import vdm_jax as vdm

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"seeds": 3, "steps": 2000, "samples": 256},
    "mnist": {
        "seeds": 2,
        "steps": 1500,
        "draws": 1,
        "weightings": ("elbo",),
        "sampling_steps": (10, 50),
        "gradient_batches": 4,
    },
}
QUICK = {
    "parameterizations": ("eps", "v"),
    "steps": 2,
    "seeds": 2,
    "draws": 1,
    "samples": 4,
    "sampling_steps": (2,),
    "gradient_batches": 2,
    "bins": 3,
    "network": {"name": "mlp", "width": 8, "depth": 1},
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    set_up_jax(options.quick)
    name = "compare_parameterizations"
    out = output_folder(options, name if options.data == "digits" else f"{name}_{options.data}")
    settings = dict(SETTINGS.get(options.data, SETTINGS["mnist"]))
    if options.quick:
        settings |= QUICK
    for key in ("seeds", "steps"):
        if getattr(options, key) is not None:
            settings[key] = getattr(options, key)
    result = vdm.compare(data=options.data, base="levels", timesteps=1000, **settings)
    about = environment("machine", "device", "python")
    result.about["machine"] = f"{about['machine']}, {about['device']}"
    result.about["python"] = about["python"]
    result.about["arguments"] = {
        "data": options.data,
        "base": "levels",
        "timesteps": 1000,
    } | settings
    paths = result.save(out)
    print(result.table(timing=True), result.bins_table(), sep="\n\n")
    print(json.dumps({name: round(seconds) for name, seconds in result.seconds.items()}))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
