"""Train, evaluate, sample, or weigh a loss, from the command line.

    python -m vdm_jax.main --config=configs/eps.py [--name=NAME | --workdir=DIR]
                           [--mode=train|evaluate|sample|reconstruct|weights [--checkpoint=newest|best|STEP]]
                           [--config.train.steps=...] [--profile=FIRST:LAST]
                           [--distributed [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]]

Whatever ends it is one line on stderr, and an exit status:

    2          a mistake in the config, the flags, the data or the folder; a file that cannot be written
    1          a loss that is not finite, no memory left, another process that is gone, a step that is stuck
    143, 130   SIGTERM, SIGINT: the step was finished and saved, and the same command continues
"""

import io
import os
import re
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
import platformdirs
from absl import app, flags, logging
from ml_collections import config_flags

from vdm_jax import report, run
from vdm_jax.config import difference, to_dict, unknown_field, with_defaults
from vdm_jax.jobs import is_many
from vdm_jax.specs import choose
from vdm_jax.trained import read_json
from vdm_jax.training.interrupt import Interrupted, listening
from vdm_jax.training.processes import everyone, initialize, is_first
from vdm_jax.training.profile import parse_steps
from vdm_jax.xla import cores

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/eps.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name> by default.")
NAME = flags.DEFINE_string("name", None, "Name of the run; that of the config file by default.")
MODE = flags.DEFINE_string("mode", "train", "train, evaluate, sample, reconstruct or weights.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best or a step; for the modes that load a run."
)
PROFILE = flags.DEFINE_string("profile", None, "Steps to trace, as first:last, e.g. 100:120.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes of one run.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
CONNECT = flags.DEFINE_float("connect_seconds", 300.0, "Time for the processes to find each other.")


def train(workdir: Path) -> None:
    """Train, or continue, and report."""
    if CHECKPOINT.value != "newest":
        raise ValueError(
            f"--checkpoint: training goes on from the newest, found {CHECKPOINT.value!r}"
        )
    profile = None if PROFILE.value is None else parse_steps(PROFILE.value)
    go = run.train_side_by_side if is_many(to_dict(CONFIG.value)) else run.train
    go(CONFIG.value, workdir, profile=profile)


def evaluate(workdir: Path) -> None:
    """Evaluate a checkpoint with the settings of the command line."""
    if is_many(to_dict(CONFIG.value)):
        report.compare(_loaded(workdir, run.load_side_by_side), workdir, say)
    else:
        say(f"test: {_loaded(workdir).evaluate('test')}")


def sample(workdir: Path) -> None:
    """Draw from a checkpoint with the settings of the command line."""
    path, trained = workdir / "samples.png", _loaded(workdir)
    report.forget(workdir, "sample")
    report.draw_samples(trained, path)
    say(f"samples: {path}")


def reconstruct(workdir: Path) -> None:
    """Show test images beside what a checkpoint makes of their codes."""
    trained = _loaded(workdir)
    if not trained.model.pictures:
        raise ValueError(
            f"--mode=reconstruct: {trained.model.name!r} has no codes to reconstruct from"
        )
    report.forget(workdir, "pictures")
    for path in report.draw_pictures(trained, workdir):
        say(f"{path.stem}: {path}")


def weights(workdir: Path) -> None:
    """Show what the config's training losses weigh; needs no run, and trains nothing."""
    if CHECKPOINT.value != "newest":
        raise ValueError(f"--checkpoint: weights are of no run, found {CHECKPOINT.value!r}")
    report.weights(to_dict(CONFIG.value), workdir, say)


MODES = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "reconstruct": reconstruct,
    "weights": weights,
}


NO_MEMORY = "RESOURCE_EXHAUSTED", "Out of memory", "out of memory"
"""What errors say of memory."""

LOST_PEER = "Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "another task"
"""What errors say of a collective that lost a process."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings are given as --config.<field>=<value>")
    if CONFIG.value is None:
        fail("--config is missing, expected a config file such as --config=configs/eps.py")
    try:
        with listening(leave=True):
            mode = choose(MODES, MODE.value, "--mode")
            if PROFILE.value is not None and mode is not train:
                raise ValueError(f"--profile: traces training, expected no --mode={MODE.value}")
            enable_compilation_cache()
            connect()
            check_devices()
            mode(folder())
            everyone("done")  # JAX's own wait at the end of a process is short
    except Interrupted as interrupted:
        leave(str(interrupted), 128 + interrupted.signum)
    except (ValueError, TypeError, OSError) as error:
        # of code that is traced: nobody's mistake but ours
        ours = isinstance(error, jax.errors.JAXTypeError)
        if os.environ.get("VDM_JAX_DEBUG") or (ours and not jax.distributed.is_initialized()):
            raise
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), status=1)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        line = explanation(error)
        if line is None:
            raise
        fail(line, status=1)
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        fail(f"{type(error).__name__}: {error}", status=1)


def explanation(error: Exception) -> str | None:
    """What to say of an error of the device, or None if it needs its traceback."""
    line = next(iter(str(error).splitlines()), "").rstrip(".")
    if isinstance(error, MemoryError) or any(word in line for word in NO_MEMORY):
        size = to_dict(CONFIG.value)["train"]["batch_size"]
        return (
            f"out of memory with config.train.batch_size = {size}: {line or 'no memory left'}; "
            "give a smaller one, with config.optimizer.accumulate and more config.train.steps for as "
            "many examples per update, or a network with remat = 'full'"
        )
    if jax.process_count() == 1:
        return None
    gone = any(word in line for word in LOST_PEER)
    return f"another process is gone: {line}" if gone else line


def folder() -> Path:
    """Where the run is.

    Raises:
      ValueError: a name that leads out of `runs/`.
    """
    name = NAME.value
    if name is None:
        return Path(WORKDIR.value or Path("runs") / default_name())
    if WORKDIR.value is not None:
        raise ValueError("--name: names a folder in runs/, expected no --workdir beside it")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"--name: expected up to 100 letters, digits, '.', '_' and '-', not first, found {name!r}; "
            "other folders are given as --workdir"
        )
    path = Path("runs") / name
    if path.resolve().parent != Path("runs").resolve():
        raise ValueError(
            f"--name: {name!r} is a link to {path.resolve()}, expected a folder in runs/"
        )
    return path


def connect() -> None:
    """Find the other processes, if there are any."""
    given = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if DISTRIBUTED.value:
        initialize(*given, seconds=CONNECT.value)
    elif any(value is not None for value in given):
        raise ValueError(
            "--coordinator_address, --num_processes, --process_id: are for --distributed"
        )


def check_devices() -> None:
    """Find JAX's devices.

    Raises:
      ValueError: there are none of the kind that JAX was told to use.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's own, for the second there are no words
        asked = jax.config.values["jax_platforms"]
        words = next(iter(str(error).splitlines()), "") or "it has no such device"
        raise ValueError(f"JAX cannot use JAX_PLATFORMS={asked!r} here: {words}") from error


def say(line: str) -> None:
    """Print, in one of the processes."""
    if is_first():
        print(line)


def default_name() -> str:
    """The config file's name without its ending."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told where, or it cannot be written.

    XLA compiles for as many cores as the process has, and JAX's key does not say for how many: a program that
    was compiled for one would be slow on two.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = Path(platformdirs.user_cache_dir("vdm_jax")) / f"xla-{cores()}-cores"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def fail(message: str, status: int = 2) -> NoReturn:
    """Say what is wrong in one line and leave."""
    leave(f"error: {' '.join(message.split())}", status)


def leave(line: str, status: int) -> NoReturn:
    """Say a line and leave."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it; the status is to be right nevertheless
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if jax.distributed.is_initialized():
        # the usual way out waits for the others, which may wait for this one; without process 0 they
        # end at once, and they may be about to say the same
        if is_first():
            time.sleep(1)
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _loaded(workdir: Path, load: Callable[..., Any] = run.load) -> Any:
    """What is in a folder, with the evaluation and sampling settings of the command line."""
    asked = to_dict(CONFIG.value)
    step = CHECKPOINT.value
    if step not in ("newest", "best") and not step.isdigit():
        raise ValueError(f"--checkpoint: expected newest, best or a step, found {step!r}")
    layout = {name: asked["train"][name] for name in ("parallel", "fsdp")}
    found = load(workdir, int(step) if step.isdigit() else step, **layout)
    lines = difference(with_defaults(read_json(workdir / "config.json")), asked)
    if lines:
        raise ValueError(f"{workdir} holds a run of another config: {'; '.join(lines)}")
    for trained in found.values() if isinstance(found, dict) else [found]:
        trained.config.update({name: asked[name] for name in ("evaluate", "sample", "data")})
    return found


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; every mistake in them is one line."""
    path = _config_file(argv)
    file, *arguments = path.split(":", 1)
    if file and not Path(file).is_file():
        fail(f"--config: no file {file!r} in {Path.cwd()}, expected one such as configs/eps.py")
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError, TypeError) as error:  # does not say which flag it is about
        make = runpy.run_path(file).get("get_config")
        if make is None:
            fail(f"--config: {file} has no function get_config")
        fail(_unknown_override(make(*arguments), argv) or f"--config={path}: {error}")
    except (flags.Error, ValueError, OSError, SyntaxError) as error:
        fail(re.sub(r"Traceback .*\n(  .*\n)*", "", str(error)))  # that of the config file


def _config_file(argv: list[str]) -> str:
    """The value of --config, or nothing."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(=(.*))?", argument):
            return match[2] if match[1] else following
    return ""


def _unknown_override(config: Any, argv: list[str]) -> str | None:
    """What is wrong with the first --config.<field> that the config does not have."""
    names = [re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in argv]
    lines = [unknown_field(config, match[1]) for match in names if match]
    return next((f"--{line}" for line in lines if line), None)


def one_line_of_a_save() -> None:
    """Leave a save that fails to the loop, which says it in one line.

    Orbax logs tracebacks, and closes its event loop at the first file that cannot be written: what was to
    come is never awaited, and every other file has a traceback from TensorStore's threads, at any time until
    the process ends. The line that says why is to be the last.
    """
    logging.set_verbosity(logging.FATAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _without_closed_loops


def _without_closed_loops(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def cli() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not all of them know ±
    if os.environ.get("VDM_JAX_DEBUG"):
        logging.set_verbosity(logging.INFO)
    else:
        one_line_of_a_save()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
