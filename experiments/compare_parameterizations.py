"""Compare parameterizations, output scales and weightings: train all side by side and tabulate the bounds.

    python experiments/compare_parameterizations.py [--quick] [--data=digits|mnist|...] [--seeds N] [--steps N]
                                                    [--out=DIR]

`vdm_jax.compare` with a small MLP, T = 1000 and the `levels` base: every variant of a seed has the same initial
weights, batches, times and noise. Writes comparison.json (numbers, settings, versions), .csv, .md, .png and
samples.png. --quick trains for a few steps, to see that everything runs; its numbers mean nothing.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax

import vdm_jax as vdm
from vdm_jax.runtime.devices import enable_compilation_cache

HERE = Path(__file__).resolve().parent
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    enable_compilation_cache()
    settings = dict(SETTINGS.get(options.data, SETTINGS["mnist"]))
    name = "compare_parameterizations"
    out = options.out or HERE / "results" / (
        name if options.data == "digits" else f"{name}_{options.data}"
    )
    if options.quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
        settings |= QUICK
        out = options.out or Path(tempfile.mkdtemp())
    asked = {key: getattr(options, key) for key in ("seeds", "steps")}
    settings |= {key: value for key, value in asked.items() if value is not None}
    result = vdm.compare(data=options.data, base="levels", timesteps=1000, **settings)
    result.about["machine"] = f"{platform.machine()}, {jax.devices()[0].device_kind}"
    result.about["python"] = platform.python_version()
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
