"""The benchmark's pure parts: pairs, variants, the estimate of memory, and one line for every mistake."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(FOLDER))  # as for a script beside them
benchmark = importlib.import_module("benchmark")
case = importlib.import_module("benchmark_case")
variants = importlib.import_module("benchmark_variants")

BASE = argparse.Namespace(batch=4, dtype=None, steps_per_dispatch=1, data="synthetic", set=["a=1"])
ASKED = vars(BASE) | {
    "set": [],
    "quick": True,
    "compile_only": False,
    "seconds": 0.1,
    "size": "mlp",
}


def test_the_ratio_is_of_neighbours():
    found = variants.ratios(
        {"train": [1.0, 2.0, 4.0, 1.0], "alone": [1.0]}, {"train": [2.0, 2.0, 2.0, 3.0]}
    )
    assert found == {
        "train": {
            "median": 1.5,
            "min": 0.5,
            "quartiles": [0.875, 2.25],
            "max": 3.0,
            "values": [2.0, 1.0, 0.5, 3.0],
        }
    }


def test_one_round_has_a_summary_too():
    assert variants.summary([3.0]) == {
        "median": 3.0,
        "min": 3.0,
        "quartiles": [3.0, 3.0],
        "max": 3.0,
        "values": [3.0],
    }


def test_a_variant_is_what_is_given_and_its_own_flags(tmp_path):
    text = "--steps-per-dispatch 10 --set remat=full scan=True"
    found = variants.parse_variant(text, BASE, tmp_path)
    own = {"steps_per_dispatch": 10, "set": ["a=1", "remat=full", "scan=True"]}
    assert found == variants.Variant(text, vars(BASE) | own)
    assert BASE.set == ["a=1"]


def test_a_command_is_a_variant(tmp_path):
    assert variants.parse_variant("cmd:echo a:b", BASE, tmp_path).command == "echo a:b"


def test_a_revision_is_unpacked_beside_the_others(tmp_path):
    root = FOLDER.parent
    if subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a repository")
    found = [variants.parse_variant("git:HEAD", BASE, tmp_path) for _ in range(2)]
    assert len({one.tree for one in found}) == 2
    assert all((Path(one.tree) / "vdm_jax" / "__init__.py").is_file() for one in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scan=True",
        "cmd: ",
        "git:",
        "git:--help",
        "git:no-such-revision",
        "--rounds 3",
        "--sizes mlp",
        "--steps-per-dispatch many",
        "--against --batch",
    ],
)
def test_other_variants_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match="--against"):
        variants.parse_variant(text, BASE, tmp_path)


def test_a_command_prints_numbers_or_rounds_of_them():
    line = json.dumps({"rows": {"tiny": {"seconds": {"train": [0.1, 0.3, 0.2], "sample": 2}}}})
    assert variants.seconds_of(f"words\n{line}\n", "tiny", "cmd") == {"train": 0.2, "sample": 2}


@pytest.mark.parametrize(
    "output",
    [
        "",
        "words",
        "[]",
        '{"rows": {"mlp": {"seconds": {"train": 1}}}}',
        '{"rows": {"tiny": {"seconds": {}}}}',
        '{"rows": {"tiny": {"seconds": {"train": "1"}}}}',
        '{"rows": {"tiny": {"seconds": {"train": []}}}}',
        '{"rows": {"tiny": {"seconds": {"train": 0}}}}',
        '{"rows": {"tiny": {"seconds": [1]}}}',
    ],
)
def test_other_output_is_refused(output):
    with pytest.raises(ValueError, match=r"cmd: expected .*as last line"):
        variants.seconds_of(output, "tiny", "cmd")


def test_residuals_of_a_case_that_can_be_counted():
    x, weights = jnp.ones((8, 4)), {"w": jnp.ones((4, 16))}

    def loss(params, x):
        return jnp.sum(jnp.sin(x @ params["w"]))

    # the cosine of x w, float32 [8, 16], and x, float32 [8, 4]
    assert case.residual_bytes(loss, weights, x) == 4 * (8 * 16 + 8 * 4)
    again = jax.checkpoint(loss)  # keeps w instead of the cosine
    assert case.residual_bytes(again, weights, x) == 4 * (4 * 16 + 8 * 4)


def test_estimate_grows_with_the_batch_and_has_the_state():
    small, large = (case.Case(ASKED | {"batch": n}).estimate() for n in (4, 8))
    assert 1.5 * small["residuals"] < large["residuals"] < 2.5 * small["residuals"]
    assert small["state"] == large["state"] > 3 * small["gradients"]  # also average and moments
    parts = [small[name] for name in ("residuals", "state", "gradients", "data")]
    assert small["total"] == sum(parts) and small["here"] > 0


def test_set_is_a_path_or_a_field_of_the_network():
    asked = ASKED | {"set": ["width=8", "model.schedule.name=linear", "sample.steps=3", "seed=5"]}
    config = case.config_of(asked, variants.QUICK["mlp"])
    assert config["model"]["network"]["width"] == 8 and config["sample"]["steps"] == 3
    assert config["model"]["schedule"]["name"] == "linear" and config["seed"] == 5
    assert config["train"]["batch_size"] == 4


@pytest.mark.parametrize("item", ["width", "=3", "seed.x=3", "train.nope=1", "train.batch_size=-4"])
def test_other_fields_are_refused(item):
    with pytest.raises(ValueError, match=r"--set|config\."):
        case.config_of(ASKED | {"set": [item]}, variants.QUICK["mlp"])


@pytest.mark.parametrize(
    "change", [{"dtype": "float17"}, {"set": ["remat=sometimes"]}, {"set": ["nope=1"]}]
)
@pytest.mark.parametrize("size", ["mlp", "tiny"])
def test_what_a_network_does_not_take_is_refused(change, size):
    with pytest.raises((ValueError, TypeError), match=r"config\.model\.network"):
        case.Case(ASKED | {"size": size} | change)


def test_a_batch_that_cannot_fit_is_refused_before_compilation(monkeypatch):
    monkeypatch.setattr(case, "memory_here", lambda: 1000)
    monkeypatch.setattr(case, "dispatcher", lambda *_: pytest.fail("goes on to compile"))
    with pytest.raises(ValueError, match=r"batch 4 needs about .* GiB"):
        case.Case(ASKED).open(lambda line: None)


def test_what_must_hold_is_checked():
    config = {"model": {"network": {"name": "unet"}}, "train": {"steps_per_dispatch": 1}}
    row = {
        "config": config,
        "flops": {"step": 10.0, "compiled": 10.5},
        "seconds": {"train": [1.0], "image": [1.0]},
        "summary": {"share waiting for data": {"median": 0.1}},
        "memory": {"temp": 1, "argument": 1},
        "estimate": {"residuals": 1},
        "checks": {"compilations": 1, "donated": 1.0},
        "compilations in rounds": 0,
    }
    other = row | {
        "config": {
            "model": {"network": {"name": "unet", "scan": True}},
            "train": {"steps_per_dispatch": 2},
        },
        "flops": {"step": 10.0, "compiled": 2.0},  # of a loop one turn is counted
    }
    twice = {"flops": {"step": 10.0, "compiled": 20.0}, "config": config}
    for words, bad in {
        "": {},
        "the same FLOPs": {"flops": {"step": 9.0, "compiled": 9.0}},
        "compute the step once": twice,
        "compiled once": {"checks": {"compilations": 2}},
        "memory of the program": {"memory": {"temp": None}},
        "times of all parts": {"seconds": {"train": [1.0], "image": []}},
        "a share of waiting": {"summary": {"share waiting for data": {"median": 1.5}}},
    }.items():
        against = [{"variant": "b", "rows": {"tiny": other | bad}}]
        found = {"rows": {"tiny": row}, "against": against}
        if not bad:
            benchmark.check(found, ("train", "data"))
            continue
        with pytest.raises(ValueError, match=f"tiny, b: expected.*{words}"):
            benchmark.check(found, ("train", "data"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sizes", "huge"],
        ["--rounds", "0"],
        ["--seconds", "nan"],
        ["--batch", "many"],
        ["--nope"],
        ["--parts", "train", "--compile-only"],
        ["--against", "other"],
        ["--against", "--rounds 3"],
    ],
)
def test_every_mistake_is_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "Worker", lambda *_: pytest.fail("starts something"))
    assert benchmark.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_mistake_that_only_the_process_sees_is_one_line():
    command = [sys.executable, FOLDER / "benchmark.py", "--sizes", "mlp", "--dtype", "float17"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "float17" in done.stderr
