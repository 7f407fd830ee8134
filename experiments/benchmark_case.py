"""One size of one variant in a process of its own, which `benchmark.py` asks line by line what to do.

FLOPs are XLA's count for the plain step before optimisation: one step a dispatch, blocks unrolled, nothing
computed twice. A loop's body would be counted once however often it runs, and some backends count the library
calls of a compiled program as nothing; the compiled program's own count is kept beside it. The residuals of the
backward pass are counted on shapes alone, before anything is compiled.
"""

import copy
import inspect
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_variants import QUICK, SIZES, Size
from ml_collections import ConfigDict

import vdm_jax
from vdm_jax.bases import BASES
from vdm_jax.config import default, to_dict
from vdm_jax.data import Dataset, Split, array_dataset, level_counts, load_dataset
from vdm_jax.models import with_model_state
from vdm_jax.models.statistics import fit_statistics
from vdm_jax.nets import NETS
from vdm_jax.override_values import Override
from vdm_jax.overrides import apply_override
from vdm_jax.runs.sweep import Run
from vdm_jax.runs.trained import TrainedModel
from vdm_jax.runtime.versions import library_versions
from vdm_jax.specs import build
from vdm_jax.training.dispatch import dispatcher, make_layout
from vdm_jax.training.layout import shardings

GIB = 2**30
EVENTS: Counter[str] = Counter()  # of JAX: compilations, and what the persistent cache had
COMPILED = "/jax/core/compile/backend_compile_duration"
HITS = "/jax/compilation_cache/cache_hits"
MISSES = "/jax/compilation_cache/cache_misses"


def config_of(asked: dict[str, Any], size: Size) -> dict[str, Any]:
    """The config of a variant, validated; `--set` has the last word.

    Raises:
      ValueError: a field that there is not, or a value that it does not take.
    """
    config = to_dict(default())
    config["model"] |= {"network": dict(size.network), "base": "input", "output_scale": "none"}
    config["model"]["schedule"]["name"] = "learned_linear"
    config["train"] |= {"batch_size": size.batch if asked["batch"] is None else asked["batch"]}
    config["train"] |= {"steps_per_dispatch": asked["steps_per_dispatch"], "parallel": "jit"}
    config["evaluate"]["draws"] = 1
    config["sample"]["steps"] = 2 if asked["quick"] else 10
    if asked["dtype"] is not None:
        config["model"]["network"]["dtype"] = asked["dtype"]
    overridden = ConfigDict(config)
    for item in asked["set"]:
        override(overridden, item)
    return to_dict(overridden)


def override(config: ConfigDict, item: str) -> None:
    """Set one field, KEY=VALUE; without a dot it is the network's."""
    key, equals, text = item.partition("=")
    if not (key and equals):
        raise ValueError(f"--set: expected KEY=VALUE, found {item!r}")
    path = key if "." in key or key in config else f"model.network.{key}"
    apply_override(config, Override(path, text))


def dataset_of(name: str, shape: tuple[int, ...], batch: int) -> Dataset:
    """A data set with four batches as its test split."""
    if name == "synthetic":
        shape = (max(2048, 4 * batch), *shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        train = Split(images, "train")
        found = array_dataset("synthetic", version="1", levels=256, train=train, test=train)
    else:
        found = load_dataset(name)
    few = found.test.images[np.arange(min(4 * batch, len(found.test.images)))]
    return found._replace(test=Split(few, found.test.name))


def tree_bytes(tree: Any) -> int:
    """Of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def residual_bytes(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> int:
    """What the backward pass of a loss keeps from the forward one; computes and compiles nothing."""

    def backward(params, batch):
        return jax.vjp(lambda p: loss(p, batch), params)[1]

    return tree_bytes(jax.eval_shape(backward, params, batch))


def memory_here() -> int:
    """Bytes that a program may take: of the device, or of this machine within its container's limit."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    known, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if known.exists():  # with what the system would give back, unlike SC_AVPHYS_PAGES
        lines = dict(line.split(":", 1) for line in known.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(free, int(text)) if text.isdigit() else free


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into[name] = time.perf_counter() - began


def matmul_peak(dtype: str, seconds: float = 0.02) -> Callable[[], float]:
    """A measurement of this device's FLOP/s: the best of five products of a matrix that takes so long."""
    multiply = jax.jit(jnp.matmul)

    def once(matrix) -> float:
        began = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        return time.perf_counter() - began

    for side in (512, 1024, 2048, 4096, 8192):
        matrix = jnp.ones((side, side), dtype)
        once(matrix)
        if once(matrix) >= seconds:
            break
    return lambda: 2 * side**3 / min(once(matrix) for _ in range(5))


class Case:
    """What is asked for, built: a job, its program, its state, and a timer for each part."""

    def __init__(self, asked: dict[str, Any]):
        self.asked, self.where = asked, asked["size"]
        size = (QUICK if asked["quick"] else SIZES)[asked["size"]]
        self.config = config = config_of(asked, size)
        train = config["train"]
        self.batch, self.stack = train["batch_size"], train["steps_per_dispatch"]
        self.layout = make_layout(train["parallel"], train["fsdp"])
        config["evaluate"]["batch_size"] = self.batch
        self.dataset = data = dataset_of(asked["data"], size.shape, self.batch)
        # as `runs.setup.statistics_of`, which earlier revisions do not have
        images, measured = data.train.images, {"base": config["model"]["base"]}
        if "sample" in inspect.signature(fit_statistics).parameters:  # of earlier revisions
            measured["sample"] = images[np.arange(min(1024, len(images)))]
        self.statistics = fit_statistics(level_counts(images, data.levels), **measured)
        self.job = Run(config, self.statistics)
        self.shapes = jax.eval_shape(self.job.start)
        self.batches = next(self.stacks(1))
        self.one = jax.tree.map(lambda leaf: leaf[0], self.batches)
        self.compiled: dict[Any, Any] = {}
        self.times: dict[str, int] = {}
        self.in_rounds = 0

    def stacks(self, count: int) -> Iterator[Any]:
        options = {"batch_size": self.batch, "stack": self.stack, "start_step": 0}
        return self.job.batches(self.dataset.train, stop_step=count * self.stack, **options)

    def estimate(self) -> dict[str, int]:
        """Bytes of a train step, before it is compiled."""
        key, params = jax.random.key(0), self.shapes.params

        def loss(params, batch):
            state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.shapes.model_state)
            return with_model_state(self.job.model, state).loss(params, key, batch)[0]

        found = {
            "residuals": residual_bytes(loss, params, self.one),
            "state": tree_bytes(self.shapes),
            "gradients": tree_bytes(params),
            "data": tree_bytes(self.batches),
        }
        return found | {"total": sum(found.values()), "here": memory_here()}

    def open(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Compile the train step and, unless only that is asked for, make the first one.

        Raises:
          ValueError: it cannot fit.
        """
        guess, seconds = self.estimate(), {}
        words = (
            f"{self.where}: a step of batch {self.batch} needs about {guess['total'] / GIB:.2f} GiB"
        )
        words += (
            f" ({guess['residuals'] / GIB:.2f} of residuals), here are {guess['here'] / GIB:.2f}"
        )
        only = self.asked["compile_only"]
        # a guess: the compiler computes some residuals again, and takes room of its own for loops
        if guess["total"] > 2 * guess["here"] and not only:
            raise ValueError(f"{words}: expected a smaller --batch, or --compile-only")
        say(words)
        programs: list[Any] = []

        def wrap(layout, run, places):
            programs.append(self.layout.wrap(layout, run, places))
            return programs[0]

        hooked = self.layout._replace(wrap=wrap)  # the dispatcher keeps its program to itself
        self.run = dispatcher(hooked, self.job.step(self.layout), self.shapes, self.stack)
        places = shardings(self.layout, self.shapes)
        self.state: Any = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.shapes,
            places,
        )
        if not only:
            with timed(seconds, "init"):
                self.state = jax.block_until_ready(jax.jit(self.job.start, out_shardings=places)())
        before = EVENTS.copy()
        data = self.layout.arrange(self.layout, self.batches)
        with timed(seconds, "trace"):
            lowered = programs[0].lower(self.state, data, np.int32(self.stack))
        with timed(seconds, "compile"):
            program = lowered.compile()
        memory = program.memory_analysis()
        kinds = ("temp", "argument", "output", "alias")
        taken = {kind: getattr(memory, f"{kind}_size_in_bytes", None) for kind in kinds}
        exact = (taken["temp"] or 0) + (taken["argument"] or 0)
        if exact > guess["here"] and not only:
            raise ValueError(
                f"{self.where}: the compiled step takes {exact / GIB:.2f} GiB, here are "
                f"{guess['here'] / GIB:.2f}: expected a smaller --batch, or --compile-only"
            )
        checks: dict[str, Any] = {}
        if not only:
            old = jax.tree.leaves(self.state)
            with timed(seconds, "first step"):
                self.train(1)
            checks["donated"] = sum(leaf.is_deleted() for leaf in old) / len(old)
        checks["compilations"] = (EVENTS - before)[COMPILED]
        seconds["start"] = sum(seconds.values())
        self.step_flops = self.flops()
        return {
            "config": self.config,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params)),
            "estimate": guess,
            "seconds": {name: [value] for name, value in seconds.items()},
            "flops": {"step": self.step_flops, "compiled": _flops(program)},
            "memory": taken,
            "checks": checks,
            "cache": {"hits": EVENTS[HITS], "misses": EVENTS[MISSES]},
            "device": jax.devices()[0].device_kind,
            "package": vdm_jax.__file__,
            "versions": library_versions(),
        }

    def flops(self) -> float | None:
        """Of one plain step."""
        config = copy.deepcopy(self.config)
        for name in ("scan", "remat"):
            config["model"]["network"].pop(name, None)
        plain = Run(config, self.statistics)
        step = plain.step(self.layout)
        return _flops(jax.jit(step).lower(jax.eval_shape(plain.start), self.one))

    def warm(self, part: str) -> dict[str, Any]:
        """Compile what a part needs, and find how often to repeat it for a round of `seconds`."""
        if part == "train":
            self.peak = matmul_peak(self.config["model"]["network"].get("dtype", "float32"))
        for name in (part, "forward") if part in ("evaluate", "sample") else (part,):
            measure = getattr(self, name)
            if name != "train":  # whose first step was made
                measure(1)
            began = time.perf_counter()
            measure(1)
            took = max(time.perf_counter() - began, 1e-6)
            self.times[name] = int(np.clip(round(self.asked["seconds"] / took), 1, 1000))
        return {}

    def round(self, part: str) -> dict[str, Any]:
        """Seconds of a step, of a call of the network or of an image, and what they are to others."""
        before = EVENTS[COMPILED]
        found = self.measured(part)
        self.in_rounds += EVENTS[COMPILED] - before
        return found

    def measured(self, part: str) -> dict[str, Any]:
        own = getattr(self, part)(self.times[part])
        if part == "train":
            peak = self.peak()
            shares = {"matmul, GFLOP/s": peak / 1e9}
            if self.step_flops:
                shares["share of matmul peak"] = self.step_flops / own / peak
            return {"seconds": {"train": own}, "shares": shares}
        if part == "data":
            loop, waited, alone = own
            return {
                "seconds": {"image": alone},
                "shares": {"share waiting for data": waited / loop},
            }
        forward = self.forward(self.times["forward"])
        shares = {f"{part}, per forward pass": own / forward}
        return {"seconds": {part: own, f"forward beside {part}": forward}, "shares": shares}

    def train(self, count: int) -> float:
        """Seconds of a step, of so many dispatches of the same batches."""
        began = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.run(self.state, self.batches)
        jax.block_until_ready((self.state.params, metrics))
        return (time.perf_counter() - began) / (count * self.stack)

    def forward(self, count: int) -> float:
        """Seconds of a call of the network alone, without dropout, on one batch."""
        if "forward" not in self.compiled:
            model, known = self.config["model"], self.statistics._asdict()
            network = build(NETS, model["network"], "config.model.network")
            extra = build(BASES, model["base"], "config.model.base", **known).informative
            self.compiled["forward"] = jax.jit(
                lambda params, x, gamma: network.apply(params, x, gamma, x if extra else None)
            )
            self.inputs = jnp.zeros((self.batch, *self.dataset.shape)), jnp.zeros(self.batch)
        apply, params = self.compiled["forward"], self.state.ema_params["network"]
        began = time.perf_counter()
        for _ in range(count):
            output = apply(params, *self.inputs)
        jax.block_until_ready(output)
        return (time.perf_counter() - began) / count

    def trained(self) -> TrainedModel:
        """The run as it is now, which keeps what was compiled for it before."""
        nowhere = Path(os.devnull)
        parts = self.job.model, self.statistics, self.state, nowhere, self.layout, self.compiled
        found = TrainedModel(self.config, *parts)
        found.__dict__["dataset"] = self.dataset  # loaded already
        return found

    def evaluate(self, count: int) -> float:
        """Seconds of a call of the network in the exact bound of the test split, of all there is."""
        trained, draws = self.trained(), self.config["evaluate"]["draws"]
        calls = draws * -(-len(self.dataset.test.images) // self.batch)
        began = time.perf_counter()
        for _ in range(count):
            trained.evaluate("test")
        return (time.perf_counter() - began) / (count * calls)

    def sample(self, count: int) -> float:
        """Seconds of a call of the network in sampling; the last call is the step to the data."""
        trained, calls = self.trained(), self.config["sample"]["steps"] + 1
        key = jax.random.key(0)
        began = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(trained.sample(key, self.batch))
        return (time.perf_counter() - began) / (count * calls)

    def data(self, count: int) -> tuple[float, float, float]:
        """Seconds of a training loop and of its waits for data; of an image of the pipeline alone."""
        stacks, waited, last = self.stacks(count + 1), 0.0, None
        self.state, _ = self.run(self.state, next(stacks))  # starts the pipeline's threads
        jax.block_until_ready(self.state.params)
        began = time.perf_counter()
        for _ in range(count):  # as `training.loop` does, one dispatch ahead
            asked = time.perf_counter()
            stack = next(stacks)
            waited += time.perf_counter() - asked
            self.state, metrics = self.run(self.state, stack)
            if last is not None:
                jax.device_get(last)
            last = metrics
        jax.block_until_ready((self.state.params, last))
        loop = time.perf_counter() - began
        began, images = time.perf_counter(), 0
        for stack in self.stacks(1000):
            images += stack.index.size
            if time.perf_counter() - began > 0.25 * self.asked["seconds"]:
                break
        return loop, waited, (time.perf_counter() - began) / images

    def close(self) -> dict[str, Any]:
        """What is known at the end."""
        stats = jax.devices()[0].memory_stats() or {}
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = {"rss": rss * (1 if sys.platform == "darwin" else 1024)}
        if "peak_bytes_in_use" in stats:
            peak["device"] = stats["peak_bytes_in_use"]
        return {"peak": peak, "compilations in rounds": self.in_rounds}


def _flops(stage: Any) -> float | None:
    """XLA's count, where the backend has one."""
    found = stage.cost_analysis() or {}
    return (found if isinstance(found, dict) else found[0]).get("flops")


def serve(asked: dict[str, Any]) -> None:
    """Answer commands on standard input until it ends; each answer and each refusal is one JSON line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is no answer

    def answer(value: dict[str, Any]) -> None:
        try:
            print(json.dumps(value), file=answers, flush=True)
        except BrokenPipeError:  # nobody asks any more
            os._exit(0)

    jax.monitoring.register_event_duration_secs_listener(_count_duration)
    jax.monitoring.register_event_listener(_count)
    case = None
    for line in sys.stdin:
        try:
            command, *words = line.split()
            if command == "open":
                case = Case(asked)
                answer(case.open(lambda text: answer({"say": text})))
            else:
                answer(getattr(case, command)(*words))
        except Exception as error:
            if os.environ.get("VDM_JAX_DEBUG"):
                raise
            text = next(iter(str(error).strip().splitlines()), "")
            known = isinstance(error, ValueError | TypeError | OSError)
            kind = "" if known else f"{type(error).__name__}: "
            answer({"error": f"{kind}{text}"})


def _count(event: str, **about: Any) -> None:
    del about
    EVENTS[event] += 1


def _count_duration(event: str, duration_secs: float, **about: Any) -> None:
    del duration_secs
    _count(event, **about)
