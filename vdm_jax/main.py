"""Train, evaluate, sample, or weigh a loss, from the command line.

    python -m vdm_jax.main --config=configs/eps.py [--name=NAME | --workdir=DIR]
                           [--mode=train|evaluate|sample|reconstruct|weights [--checkpoint=newest|best|STEP]]
                           [--config.<field>=<value> ...] [--profile=FIRST:LAST]
                           [--distributed [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]]

A failure is reported in one line on stderr and by the exit status:

    2          a mistake in the config, the flags, the data or the folder; a file that cannot be written
    1          a loss that is not finite, a lack of memory, a lost process, a step that does not end
    128 + n    signal n: the step was finished and saved, and the same command continues the run. SIGTERM (143)
               and SIGINT (130); SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU unless they are ignored or handled
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from vdm_jax.config import difference, resolve
from vdm_jax.config_file import load_config
from vdm_jax.overrides import apply_overrides, split_overrides
from vdm_jax.runs import report
from vdm_jax.runs import train as trainer
from vdm_jax.runs import weights as weights_report
from vdm_jax.runs.axes import is_sweep
from vdm_jax.runs.estimates import report_estimates
from vdm_jax.runs.folder import CONFIG as CONFIG_FILE
from vdm_jax.runs.folder import read_config
from vdm_jax.runs.load import load, load_sweep, with_sections
from vdm_jax.runtime.devices import check_devices, enable_compilation_cache
from vdm_jax.runtime.exit import explanation, fail, leave, silence_failed_saves
from vdm_jax.runtime.interrupt import Interrupted, listening
from vdm_jax.runtime.paths import check_workdir, named_folder
from vdm_jax.runtime.processes import all_gather_json, initialize, is_first
from vdm_jax.runtime.profile import parse_steps
from vdm_jax.settings import Settings
from vdm_jax.specs import choose

CONFIG: Any = flags.DEFINE_string(  # `parse` replaces the name of the file by its `ConfigDict`
    "config",
    None,
    "Config file such as configs/eps.py, or FILE:ARGUMENT if its get_config takes an argument; "
    "--config.<field>=<value> sets a field, such as --config.train.steps=3000.",
)

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<name>.")
NAME = flags.DEFINE_string(
    "name", None, "Name of the run, a folder in runs/; by default the config file's name."
)
MODE = flags.DEFINE_string(
    "mode", "train", "What to do: train, evaluate, sample, reconstruct or weights."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "Checkpoint of the modes that load a run: newest, best or a step."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "Training steps to trace, first:last, such as 100:120."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Whether this is one of several processes of a run."
)
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Address of process 0, host:port.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
CONNECT = flags.DEFINE_float(
    "connect_seconds", 300.0, "Seconds that the processes have to find each other."
)


def train(workdir: Path) -> None:
    """Train a run or a sweep, or continue it, and report the results."""
    if CHECKPOINT.value != "newest":
        raise ValueError(
            f"--checkpoint: training continues from the newest, found {CHECKPOINT.value!r}"
        )
    profile = None if PROFILE.value is None else parse_steps(PROFILE.value)
    start = trainer.train_sweep if is_sweep(_settings()) else trainer.train
    start(CONFIG.value, workdir, profile=profile)


def evaluate(workdir: Path) -> None:
    """Evaluate a checkpoint with the estimators and settings of the command line."""
    if is_sweep(_settings()):
        report.report_sweep(_loaded(workdir, load_sweep), workdir, log)
    else:
        report_estimates(_loaded(workdir), workdir, log)


def sample(workdir: Path) -> None:
    """Draw samples from a checkpoint with the settings of the command line."""
    path, trained = workdir / "samples.png", _loaded(workdir)
    report.forget(
        workdir, "sample"
    )  # before the file changes, so that no record describes another file
    report.draw_samples(trained, path)
    log(f"samples: {path}")


def reconstruct(workdir: Path) -> None:
    """Plot test images beside their reconstructions by a checkpoint."""
    trained = _loaded(workdir)
    if not trained.model.plots:
        raise ValueError(
            f"--mode=reconstruct: {trained.model.name!r} has no codes to reconstruct from"
        )
    report.forget(workdir, "plots")
    for path in report.draw_plots(trained, workdir):
        log(f"{path.stem}: {path}")


def weights(workdir: Path) -> None:
    """Log and plot the effective weights of the config's training losses; no run is needed."""
    if CHECKPOINT.value != "newest":
        raise ValueError(f"--checkpoint: weights are of no run, found {CHECKPOINT.value!r}")
    weights_report.weights(_settings(), workdir, log)


MODES = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "reconstruct": reconstruct,
    "weights": weights,
}


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
            all_gather_json("done")  # other processes may need longer than JAX waits at the exit
    except Interrupted as interrupted:
        leave(str(interrupted), 128 + interrupted.signum)
    except (ValueError, TypeError, OSError) as error:
        # tracer errors are TypeErrors, but bugs and not user errors: they need a traceback
        is_bug = isinstance(error, jax.errors.JAXTypeError)
        if os.environ.get("VDM_JAX_DEBUG") or (is_bug and not jax.distributed.is_initialized()):
            raise
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), status=1)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        line = explanation(error, _settings().train.batch_size)
        if line is None:
            raise
        fail(line, status=1)
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        fail(f"{type(error).__name__}: {error}", status=1)


def folder() -> Path:
    """Return the folder of the run.

    Raises:
      ValueError: a name that leads out of `runs/`.
    """
    name = NAME.value
    if name is None:
        return check_workdir(WORKDIR.value, "--workdir")
    if not flags.FLAGS["workdir"].using_default_value:
        raise ValueError("--name: names a folder in runs/, expected no --workdir beside it")
    return named_folder(Path("runs"), name, "--name")


def connect() -> None:
    """Connect with the other processes of the run, if there are any."""
    addresses = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if DISTRIBUTED.value:
        initialize(*addresses, seconds=CONNECT.value)
    elif any(value is not None for value in addresses):
        raise ValueError(
            "--coordinator_address, --num_processes, --process_id: are for --distributed"
        )


def log(line: str) -> None:
    """Print a line, in process 0."""
    if is_first():
        print(line)


def _loaded(workdir: Path, read: Callable[..., Any] = load) -> Any:
    """Load a run or a sweep, with the evaluation, sampling and data settings of the command line."""
    settings, step = _settings(), CHECKPOINT.value
    if step not in ("newest", "best") and not step.isdecimal():
        raise ValueError(f"--checkpoint: expected newest, best or a step, found {step!r}")
    step = int(step) if step.isdecimal() else step
    loaded = read(workdir, step, parallel=settings.train.parallel, fsdp=settings.train.fsdp)
    if lines := difference(read_config(workdir).plain, settings.plain):
        raise ValueError(
            f"{workdir} holds a run of another config ({CONFIG_FILE}): {'; '.join(lines)}"
        )
    return with_sections(
        loaded, evaluate=settings.evaluate, sample=settings.sample, data=settings.data
    )


def _settings() -> Settings:
    return resolve(CONFIG.value)


def parse(argv: list[str]) -> list[str]:
    """Parse the flags, run the config file and apply the overrides; report a mistake in one line."""
    try:
        expanded = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
        others, overrides = split_overrides(expanded)
        rest = _parse_flags([*argv[:1], *others])
        if CONFIG.value is not None:
            path, config = load_config(CONFIG.value)
            apply_overrides(config, overrides)
            flags.FLAGS.config = config
            flags.FLAGS.set_default("workdir", f"runs/{path.stem}")
        return rest
    except (flags.Error, ValueError, OSError) as error:
        if os.environ.get("VDM_JAX_DEBUG"):
            raise
        fail(str(error))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # raised by --help, with status 1
        sys.exit(0)


def cli() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal cannot show ±
    if os.environ.get("VDM_JAX_DEBUG"):
        logging.set_verbosity(logging.INFO)
    else:
        silence_failed_saves()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
