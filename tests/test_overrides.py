"""Overrides: every field of every shipped config takes its values, and refuses others in one line."""

import inspect
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

from vdm_jax.config import default, leaves, to_dict
from vdm_jax.models import CHAINS, MODELS
from vdm_jax.override_values import Override
from vdm_jax.overrides import COMPONENTS, apply_override, apply_overrides, split_overrides
from vdm_jax.settings import ROWS, to_plain

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = {
    path.stem: runpy.run_path(str(path))["get_config"] for path in sorted(FOLDER.rglob("*.py"))
}
FIELDS = {name: dict(leaves(to_plain(CONFIGS[name]()))) for name in CONFIGS}
MAY_BE_NONE = {path for path, row in ROWS.items() if row.optional} | {
    "model.timesteps",
    "model.loss_space",
    "model.train_schedule",
}
MAY_BE_NONE |= {"model.network.fourier", "sample.sampler.variance"}


def sections(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield prefix + key, value
            yield from sections(value, f"{prefix}{key}.")


SECTIONS = {name: dict(sections(to_plain(CONFIGS[name]()))) for name in CONFIGS}
HOLDS_COMPONENT = {
    name: {
        path: value
        for path, value in [*FIELDS[name].items(), *SECTIONS[name].items()]
        if path.partition(".")[0] in ("model", "sample") and path.split(".")[-1] in COMPONENTS
    }
    for name in CONFIGS
}
EACH_KIND = {tuple(paths): name for name, paths in HOLDS_COMPONENT.items()}.values()
"""Configs with different fields that hold components."""

every_config = pytest.mark.parametrize("name", CONFIGS)


def value_at(config, path):
    tree = to_plain(config)
    for key in path.split("."):
        tree = tree[key]
    return tree


def typed(text):
    path, _, value = text.partition("=")
    return Override(path, value)


def overridden(name, *overrides):
    """Return a shipped config with overrides, each path=text."""
    config = CONFIGS[name]()
    apply_overrides(config, list(map(typed, overrides)))
    return config


def refusal(name, *overrides):
    """Return the error message of overrides."""
    with pytest.raises(ValueError, match=r".") as caught:
        overridden(name, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_text(value):
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def another(value):
    """Return another value of the same type, and its text on the command line."""
    if isinstance(value, bool):
        return not value, str(not value).lower()
    if isinstance(value, int):
        return 1_000_000, "1e6"
    if isinstance(value, float):
        return -0.25, "-0.25"
    if isinstance(value, list):
        return value[::-1] + value[:1], as_text(value[::-1] + value[:1])
    return "other", "other"


# ---------------------------------------------------------------- every field of every config


@every_config
def test_every_field_can_be_set(name):
    for path, value in FIELDS[name].items():
        assert to_plain(overridden(name, f"{path}={as_text(value)}")) == to_plain(CONFIGS[name]())
        if value is None or path in HOLDS_COMPONENT[name] or path.endswith(".name"):
            continue
        changed, text = another(value)
        parsed = value_at(overridden(name, f"{path}={text}"), path)
        assert parsed == changed, path
        assert type(parsed) is type(changed), path


@every_config
def test_none(name):
    for path in [*FIELDS[name], *SECTIONS[name]]:
        if path in MAY_BE_NONE:
            assert value_at(overridden(name, f"{path}=None"), path) is None
            continue
        line = refusal(name, f"{path}=None")
        if path in SECTIONS[name].keys() - HOLDS_COMPONENT[name] - {"model"}:
            assert line.startswith(f"--config.{path}: is a section, ")
        else:
            assert line.startswith(f"--config.{path}: expected ") and line.endswith(", found None")


@every_config
def test_spellings_of_a_field(name):
    for path, value in FIELDS[name].items():
        section, _, field = path.rpartition(".")
        for spelling in {field.replace("_", "-"), field.upper()} - {field}:
            wrong = f"{section}.{spelling}".lstrip(".")
            line = refusal(name, f"{wrong}={as_text(value)}")
            hint = (
                f"--config.{wrong}: no such field; did you mean --config.{path}? fields of config"
            )
            assert line.startswith(hint)


@every_config
def test_elements_and_fields_of_fields(name):
    for path in FIELDS[name]:
        assert f"whole value, --config.{path}=<value>" in refusal(name, f"{path}[0]=16")
        if path not in HOLDS_COMPONENT[name]:
            line = refusal(name, f"{path}.x=16")
            assert line.startswith(f"--config.{path}.x: no such field: config.{path} is ")


@every_config
def test_a_value_is_needed(name):
    for path, value in FIELDS[name].items():
        for flag in (f"--config.{path}", f"--noconfig.{path}"):
            _, overrides = split_overrides([flag])
            config = CONFIGS[name]()
            if isinstance(value, bool):
                apply_overrides(config, overrides)
                assert value_at(config, path) is not flag.startswith("--no")
            else:
                with pytest.raises(ValueError, match=rf"^{flag}: expected .*<value>, "):
                    apply_overrides(config, overrides)


@every_config
def test_sections_are_set_by_their_fields(name):
    for path in SECTIONS[name].keys() - HOLDS_COMPONENT[name] - {"model"}:
        line = refusal(name, f"{path}=5")
        start = (
            f"--config.{path}: is a section, expected --config.{path}.<field>=<value>, found '5'; "
        )
        assert line.startswith(start)
        assert all(key in line for key in SECTIONS[name][path])
        assert ("did you mean" in line) == ("name" in SECTIONS[name][path])


# ---------------------------------------------------------------- components


@every_config
def test_bare_name_selects_a_component_with_defaults(name):
    for path, before in HOLDS_COMPONENT[name].items():
        for component in COMPONENTS[path.split(".")[-1]]:
            after = value_at(overridden(name, f"{path}={component}"), path)
            assert after == ({"name": component} if isinstance(before, dict) else component)
            literal = overridden(name, f"{path}={{'name': '{component}'}}")
            assert value_at(literal, path) == {"name": component}
        line = refusal(name, f"{path}=nothing")
        assert line.startswith(f"config.{path}: unknown name 'nothing'; ")


@pytest.mark.parametrize("name", EACH_KIND)
def test_arguments_of_components(name):
    """Arguments that the config omits can be set, in any order on the command line."""
    for path in HOLDS_COMPONENT[name]:
        for component, factory in COMPONENTS[path.split(".")[-1]].items():
            for key, parameter in inspect.signature(factory).parameters.items():
                if type(parameter.default) not in (int, float, bool):
                    continue
                value, text = another(parameter.default)
                overrides = [
                    f"{path}.{key}={text}",
                    f"{path}={component}",
                    f"{path}.name={component}",
                ]
                for order in (overrides, overrides[::-1]):
                    parsed = value_at(overridden(name, *order), path)
                    assert parsed == {"name": component, key: value}
                    assert type(parsed[key]) is type(value)


def test_another_name_keeps_accepted_arguments():
    config = overridden("eps", "model.schedule.name=cosine")
    assert value_at(config, "model.schedule") == {
        "name": "cosine",
        "gamma_min": -13.3,
        "gamma_max": 5.0,
    }
    assert refusal("eps", "model.network.name=mlp") == (
        "--config.model.network.name: 'mlp' has no argument 'blocks', which the config has for 'unet'; "
        "expected --config.model.network=mlp, with the defaults of 'mlp'"
    )


def test_an_argument_of_any_type_takes_a_number_in_place_of_a_name():
    config, path = CONFIGS["eps"](), "sample.sampler.variance"
    for text, value in (("fitted", "fitted"), ("0.1", 0.1), ("fitted", "fitted"), ("None", None)):
        apply_overrides(config, [Override(path, text)])
        assert value_at(config, path) == value


def test_lists_of_numbers_of_a_component():
    levels = overridden("eps", "sample.grid=explicit", "sample.grid.gammas=(3.5, 1, -4)")
    assert to_plain(levels)["sample"]["grid"] == {"name": "explicit", "gammas": [3.5, 1, -4]}
    betas = overridden("eps", "model.schedule=from_betas", "model.schedule.betas=0.1,0.2")
    assert to_plain(betas)["model"]["schedule"]["betas"] == [0.1, 0.2]


def test_arguments_of_a_component_given_by_name():
    assert value_at(overridden("eps", "model.time_sampler.mix=0.2"), "model.time_sampler") == {
        "name": "learned",
        "mix": 0.2,
    }
    assert value_at(overridden("eps", "model.base.name=zero"), "model.base") == "zero"
    line = refusal("eps", "model.base.mix=3")
    assert line.startswith("--config.model.base.mix: no such field; ") and line.endswith(
        "fields of config.model.base: levels, name, residual, second_moment"
    )
    assert "fields of config.model.loss_space: name" in refusal("eps", "model.loss_space.x=3")


def test_another_family():
    config = overridden("eps", "model=vae", "model.encoder.width=8", "model.latent=4")
    encoder = {"name": "mlp", "width": 8}
    assert value_at(config, "model") == {"name": "vae", "encoder": encoder, "latent": 4}


def test_every_component_of_every_family_has_its_table():
    for factory in (*MODELS.values(), *CHAINS.values()):
        for key, parameter in inspect.signature(factory).parameters.items():
            if isinstance(parameter.default, str) and key != "where":
                assert parameter.default in COMPONENTS[key]


def test_bad_specs_are_one_line():
    for text in ("{", "{'name'}", "{'gamma_min': 3}", "{'name': 'cosine', 3: 4}", "{'name': []}"):
        line = refusal("eps", f"model.schedule={text}")
        assert line.startswith(("--config.model.schedule: expected", "config.model.schedule: unkn"))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000),
        ("1E3", 1000),
        ("3.0", 3),
        ("0x10", 16),
        ("1_000", 1000),
        ("-4", -4),
        ("+4", 4),
        ("9" * 20, int("9" * 20)),
    ],
)
def test_whole_numbers(text, value):
    config = default()
    apply_override(config, Override("train.steps", text))
    assert config.train.steps == value and type(config.train.steps) is int


@pytest.mark.parametrize(
    "text",
    ["", "abc", "1.5", "1e-3", "1e400", "1e30", "nan", "inf", "True", "3,4", "\u22123", "9" * 9999],
)
def test_invalid_whole_numbers(text):
    line = refusal("eps", f"train.steps={text}")
    assert line.startswith("--config.train.steps: expected a whole number, found '")
    assert len(line) < 200


def test_truth_values():
    for text, value in {"True": True, "false": False, "0": False, "T": True}.items():
        assert overridden("eps", f"train.ema_warmup={text}").train.ema_warmup is value
    for text in ("", "maybe", "2", "1.0"):
        assert "expected true or false, found" in refusal("eps", f"train.ema_warmup={text}")


LISTS = {
    "sweep.seeds": {"0,1": [0, 1], "(0, 1)": [0, 1], "[0,1]": [0, 1], "1e2": [100], "5,": [5]},
    "sweep.learning_rates": {"1e-3,2e-3": [1e-3, 2e-3], "1": [1.0]},
    "sweep.parameterizations": {"eps,v": ["eps", "v"], "('x0', \"v\")": ["x0", "v"], "v": ["v"]},
    "model.network.channels": {"16": [16], "16,32,64": [16, 32, 64]},
}


@pytest.mark.parametrize("path", LISTS)
def test_lists(path):
    for text, value in {**LISTS[path], "": [], "()": [], "[]": [], " ": []}.items():
        config = overridden("eps", f"{path}={text}")
        assert value_at(config, path) == value
        tree = config
        for key in path.split("."):
            tree = tree[key]
        assert isinstance(tree, tuple)
        assert list(map(type, tree)) == list(map(type, value))


@pytest.mark.parametrize("text", ["a", "1,,2", "(1", "1 2", "None", "1,x", "1.5", "[1],[2]"])
def test_invalid_lists_of_whole_numbers(text):
    line = refusal("eps", f"sweep.seeds={text}")
    assert line.startswith("--config.sweep.seeds: expected a list such as 1,2, found ")


def test_text_is_never_empty():
    for path, value in FIELDS["eps"].items():
        if isinstance(value, str):
            line = refusal("eps", f"{path}=")
            assert line.startswith(f"--config.{path}: expected text") and line.endswith("found ''")


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "others", "overrides"),
    [
        (["--config=a.py", "--config.seed=3"], ["--config=a.py"], [("seed", "3", False)]),
        (["-config.seed=3", "--name=x"], ["--name=x"], [("seed", "3", False)]),
        (["--config.seed", "3", "--name", "x"], ["--name", "x"], [("seed", "3", False)]),
        (["--config.a.b", "-3"], [], [("a.b", "-3", False)]),
        (["--config.a.b", "--name=x"], ["--name=x"], [("a.b", None, False)]),
        (["--config.a.b"], [], [("a.b", None, False)]),
        (["--noconfig.a", "x"], ["x"], [("a", None, True)]),
        (["--config.a=b=c"], [], [("a", "b=c", False)]),
        (["--config.a="], [], [("a", "", False)]),
        (["--config.=3", "--config.ü=ß"], [], [("", "3", False), ("ü", "ß", False)]),
        (["--configs.a=3", "--", "--config.a=3"], ["--configs.a=3", "--", "--config.a=3"], []),
    ],
)
def test_arguments_are_split(arguments, others, overrides):
    assert split_overrides(arguments) == (others, [Override(*override) for override in overrides])


def test_the_last_of_two_values_counts():
    assert overridden("eps", "seed=3", "seed=4").seed == 4
    assert overridden("eps", "sweep.seeds=0,1", "sweep.seeds=2").sweep.seeds == (2,)


@pytest.mark.parametrize("path", ["", ".", "zzz", "train.", ".steps", "train..steps", "__class__"])
def test_odd_paths_are_unknown_fields(path):
    assert refusal("eps", f"{path}=3").startswith(f"--config.{path}: no such field; ")


def test_configs_of_users():
    """Users' configs may hold placeholders, references and fields of their own."""
    config = ConfigDict({"seed": 0, "sample": {"count": 4, "draw": True, "depth": 3}})
    config.copy = config.get_ref("seed")
    config.later = config_dict.placeholder(int)
    config.anything = config_dict.placeholder(object)
    config.lock()
    texts = ["seed=5", "later=2e3", "anything=[1, 'a']", "sample.draw=0", "sample.depth=4"]
    apply_overrides(config, list(map(typed, texts)))
    assert config.to_dict() == {
        "seed": 5,
        "copy": 5,
        "later": 2000,
        "anything": [1, "a"],
        "sample": {"count": 4, "draw": False, "depth": 4},
    }


def test_integer_schedule_ends_accept_floats():
    config = default()
    config.model.schedule = ConfigDict({"name": "linear", "gamma_min": -13, "gamma_max": 5})
    apply_override(config, Override("model.schedule.gamma_max", "5.5"))
    assert config.model.schedule.gamma_max == 5.5


def test_overrides_are_validated_with_the_config():
    config = overridden("eps", "train.batch_size=-4")
    with pytest.raises(ValueError, match=r"^config\.train\.batch_size: expected .* found -4$"):
        to_dict(config)
