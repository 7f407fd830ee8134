"""One size of one variant in its own process, which takes commands from `benchmark.py` line by line.

FLOPs are XLA's count for the plain step before optimization: one step per dispatch, blocks unrolled, nothing
recomputed. The count of the compiled program is kept beside it, but cannot replace it: it counts the body of a
loop once, however often it runs, and on some backends misses library calls. The residuals of the backward pass
are counted from shapes, before anything is compiled.
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

# earlier revisions take plain dictionaries
resolve: Any = getattr(vdm_jax.config, "resolve", to_dict)

GIB = 2**30
EVENTS: Counter[str] = (
    Counter()
)  # of JAX: compilations, and hits and misses of the persistent cache
COMPILED = "/jax/core/compile/backend_compile_duration"
HITS = "/jax/compilation_cache/cache_hits"
MISSES = "/jax/compilation_cache/cache_misses"


def config_of(request: dict[str, Any], size: Size) -> dict[str, Any]:
    """Return the validated config of a variant; `--set` overrides the other flags.

    Raises:
      ValueError: an unknown field, or a value that it does not take.
    """
    config = to_dict(default())
    config["model"] |= {"network": dict(size.network), "base": "input", "output_scale": "none"}
    config["model"]["schedule"]["name"] = "learned_linear"
    batch = size.batch if request["batch"] is None else request["batch"]
    stack = request["steps_per_dispatch"]
    config["train"] |= {"batch_size": batch, "steps_per_dispatch": stack, "parallel": "jit"}
    config["evaluate"]["draws"] = 1
    config["sample"]["steps"] = 2 if request["quick"] else 10
    if request["dtype"] is not None:
        config["model"]["network"]["dtype"] = request["dtype"]
    overridden = ConfigDict(config)
    for item in request["set"]:
        override(overridden, item)
    return to_dict(overridden)


def override(config: ConfigDict, item: str) -> None:
    """Set one field, KEY=VALUE; a key without a dot is a field of the network, unless the config has it."""
    key, equals, text = item.partition("=")
    if not (key and equals):
        raise ValueError(f"--set: expected KEY=VALUE, found {item!r}")
    path = key if "." in key or key in config else f"model.network.{key}"
    apply_override(config, Override(path, text))


def dataset_of(name: str, shape: tuple[int, ...], batch: int) -> Dataset:
    """Return a data set whose test split has at most four batches."""
    if name == "synthetic":
        shape = (max(2048, 4 * batch), *shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        train = Split(images, "train")
        dataset = array_dataset("synthetic", version="1", levels=256, train=train, test=train)
    else:
        dataset = load_dataset(name)
    test = dataset.test
    images = test.images[np.arange(min(4 * batch, len(test.images)))]
    return dataset._replace(test=Split(images, test.name))


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def residual_bytes(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> int:
    """Return the bytes that a loss keeps for its backward pass; compute and compile nothing."""

    def backward(params, batch):
        return jax.vjp(lambda p: loss(p, batch), params)[1]

    return tree_bytes(jax.eval_shape(backward, params, batch))


def memory_here() -> int:
    """Return the bytes that a program may use: of the device, or of this machine and its container."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.exists():  # includes memory that the system can reclaim, unlike SC_AVPHYS_PAGES
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(free, int(text)) if text.isdigit() else free


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Store the seconds of the block under `name`."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def matmul_peak(dtype: str, seconds: float = 0.02) -> Callable[[], float]:
    """Return a function that measures this device's FLOP/s, as the best of five matrix products.

    The matrices are large enough for a product to take `seconds`, but at most 8192 × 8192.
    """
    multiply = jax.jit(jnp.matmul)

    def time_product(matrix) -> float:
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        return time.perf_counter() - start

    for side in (512, 1024, 2048, 4096, 8192):
        matrix = jnp.ones((side, side), dtype)
        time_product(matrix)  # compiles
        if time_product(matrix) >= seconds:
            break
    return lambda: 2 * side**3 / min(time_product(matrix) for _ in range(5))


class Case:
    """One size of one variant: a job, its program, its state, and a timer for each part."""

    def __init__(self, request: dict[str, Any]):
        self.request, self.size = request, request["size"]
        size = (QUICK if request["quick"] else SIZES)[self.size]
        self.config = config = config_of(request, size)
        train = config["train"]
        self.batch, self.stack = train["batch_size"], train["steps_per_dispatch"]
        self.layout = make_layout(train["parallel"], train["fsdp"])
        config["evaluate"]["batch_size"] = self.batch
        self.dataset = data = dataset_of(request["data"], size.shape, self.batch)
        # as `runs.setup.statistics_of`, which earlier revisions do not have
        images, options = data.train.images, {"base": config["model"]["base"]}
        if "sample" in inspect.signature(fit_statistics).parameters:  # of earlier revisions
            options["sample"] = images[np.arange(min(1024, len(images)))]
        self.statistics = fit_statistics(level_counts(images, data.levels), **options)
        self.job = Run(resolve(config), self.statistics)
        self.shapes = jax.eval_shape(self.job.start)
        self.batches = next(self.stacks(1))
        self.single = jax.tree.map(lambda leaf: leaf[0], self.batches)
        self.compiled: dict[Any, Any] = {}
        self.repeats: dict[str, int] = {}
        self.compilations_in_rounds = 0

    def stacks(self, count: int) -> Iterator[Any]:
        """Yield the batches of `count` dispatches."""
        options = {"batch_size": self.batch, "stack": self.stack, "start_step": 0}
        return self.job.batches(self.dataset.train, stop_step=count * self.stack, **options)

    def estimate(self) -> dict[str, int]:
        """Estimate the bytes of a train step before it is compiled."""
        key, params = jax.random.key(0), self.shapes.params

        def loss(params, batch):
            state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.shapes.model_state)
            return with_model_state(self.job.model, state).loss(params, key, batch)[0]

        sizes = {
            "residuals": residual_bytes(loss, params, self.single),
            "state": tree_bytes(self.shapes),
            "gradients": tree_bytes(params),
            "data": tree_bytes(self.batches),
        }
        return sizes | {"total": sum(sizes.values()), "here": memory_here()}

    def open(self, log: Callable[[str], None]) -> dict[str, Any]:
        """Compile the train step and, without --compile-only, take the first step.

        Raises:
          ValueError: the step does not fit into the memory.
        """
        estimate, seconds = self.estimate(), {}
        here = f"here are {estimate['here'] / GIB:.2f}"
        message = (
            f"{self.size}: a step of batch {self.batch} needs about {estimate['total'] / GIB:.2f} GiB "
            f"({estimate['residuals'] / GIB:.2f} of residuals), {here}"
        )
        compile_only = self.request["compile_only"]
        # within a factor of 2: the compiler recomputes some residuals and needs memory for loops
        if estimate["total"] > 2 * estimate["here"] and not compile_only:
            raise ValueError(f"{message}: expected a smaller --batch, or --compile-only")
        log(message)
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
        if not compile_only:
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
        memory_by_kind = {kind: getattr(memory, f"{kind}_size_in_bytes", None) for kind in kinds}
        needed = (memory_by_kind["temp"] or 0) + (memory_by_kind["argument"] or 0)
        if needed > estimate["here"] and not compile_only:
            raise ValueError(
                f"{self.size}: the compiled step takes {needed / GIB:.2f} GiB, {here}: "
                "expected a smaller --batch, or --compile-only"
            )
        checks: dict[str, Any] = {}
        if not compile_only:
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
            "estimate": estimate,
            "seconds": {name: [value] for name, value in seconds.items()},
            "flops": {"step": self.step_flops, "compiled": _flops(program)},
            "memory": memory_by_kind,
            "checks": checks,
            "cache": {"hits": EVENTS[HITS], "misses": EVENTS[MISSES]},
            "device": jax.devices()[0].device_kind,
            "package": vdm_jax.__file__,
            "versions": library_versions(),
        }

    def flops(self) -> float | None:
        """Return the FLOPs of one plain step."""
        config = copy.deepcopy(self.config)
        for name in ("scan", "remat"):
            config["model"]["network"].pop(name, None)
        plain = Run(resolve(config), self.statistics)
        step = plain.step(self.layout)
        return _flops(jax.jit(step).lower(jax.eval_shape(plain.start), self.single))

    def warm(self, part: str) -> dict[str, Any]:
        """Compile the programs of a part, and choose its repeats so that a round takes `seconds`."""
        if part == "train":
            self.peak = matmul_peak(self.config["model"]["network"].get("dtype", "float32"))
        for name in (part, "forward") if part in ("evaluate", "sample") else (part,):
            measure = getattr(self, name)
            if name != "train":  # `open` has compiled the train step
                measure(1)
            start = time.perf_counter()
            measure(1)
            seconds = max(time.perf_counter() - start, 1e-6)
            self.repeats[name] = int(np.clip(round(self.request["seconds"] / seconds), 1, 1000))
        return {}

    def round(self, part: str) -> dict[str, Any]:
        """Measure a part once: seconds of a step, a call of the network or an image, and their shares."""
        before = EVENTS[COMPILED]
        measurement = self.measure(part)
        self.compilations_in_rounds += EVENTS[COMPILED] - before
        return measurement

    def measure(self, part: str) -> dict[str, Any]:
        """Return the seconds of a part, and their shares of reference times."""
        seconds = getattr(self, part)(self.repeats[part])
        if part == "train":
            peak = self.peak()
            shares = {"matmul, GFLOP/s": peak / 1e9}
            if self.step_flops:
                shares["share of matmul peak"] = self.step_flops / seconds / peak
            return {"seconds": {"train": seconds}, "shares": shares}
        if part == "data":
            loop, waited, alone = seconds
            return {
                "seconds": {"image": alone},
                "shares": {"share waiting for data": waited / loop},
            }
        forward = self.forward(self.repeats["forward"])
        shares = {f"{part}, per forward pass": seconds / forward}
        return {"seconds": {part: seconds, f"forward beside {part}": forward}, "shares": shares}

    def train(self, count: int) -> float:
        """Return the seconds of a step, over `count` dispatches of the same batches."""
        start = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.run(self.state, self.batches)
        jax.block_until_ready((self.state.params, metrics))
        return (time.perf_counter() - start) / (count * self.stack)

    def forward(self, count: int) -> float:
        """Return the seconds of a call of the network alone, without dropout, on one batch."""
        if "forward" not in self.compiled:
            model, statistics = self.config["model"], self.statistics._asdict()
            network = build(NETS, model["network"], "config.model.network")
            extra = build(BASES, model["base"], "config.model.base", **statistics).informative
            self.compiled["forward"] = jax.jit(
                lambda params, x, gamma: network.apply(params, x, gamma, x if extra else None)
            )
            self.inputs = jnp.zeros((self.batch, *self.dataset.shape)), jnp.zeros(self.batch)
        apply, params = self.compiled["forward"], self.state.ema_params["network"]
        start = time.perf_counter()
        for _ in range(count):
            output = apply(params, *self.inputs)
        jax.block_until_ready(output)
        return (time.perf_counter() - start) / count

    def trained(self) -> TrainedModel:
        """Return the run in its present state, with the programs that were compiled before."""
        workdir = Path(os.devnull)
        parts = self.job.model, self.statistics, self.state, workdir, self.layout, self.compiled
        trained = TrainedModel(resolve(self.config), *parts)
        trained.__dict__["dataset"] = self.dataset  # loaded already
        return trained

    def evaluate(self, count: int) -> float:
        """Return the seconds of the bound of the whole test split, per call of the network."""
        trained, draws = self.trained(), self.config["evaluate"]["draws"]
        calls = draws * -(-len(self.dataset.test.images) // self.batch)
        start = time.perf_counter()
        for _ in range(count):
            trained.evaluate("test")
        return (time.perf_counter() - start) / (count * calls)

    def sample(self, count: int) -> float:
        """Return the seconds of sampling, per call of the network."""
        trained = self.trained()
        calls = self.config["sample"]["steps"] + 1  # the last one is the step to the data
        key = jax.random.key(0)
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(trained.sample(key, self.batch))
        return (time.perf_counter() - start) / (count * calls)

    def data(self, count: int) -> tuple[float, float, float]:
        """Return the seconds of a training loop, of its waits for data, and of an image without training."""
        stacks, waited, last = self.stacks(count + 1), 0.0, None
        self.state, _ = self.run(self.state, next(stacks))  # starts the pipeline's threads
        jax.block_until_ready(self.state.params)
        start = time.perf_counter()
        for _ in range(count):  # one dispatch ahead, as in `training.loop`
            requested = time.perf_counter()
            stack = next(stacks)
            waited += time.perf_counter() - requested
            self.state, metrics = self.run(self.state, stack)
            if last is not None:
                jax.device_get(last)
            last = metrics
        jax.block_until_ready((self.state.params, last))
        loop = time.perf_counter() - start
        start, images = time.perf_counter(), 0
        for stack in self.stacks(1000):
            images += stack.index.size
            if time.perf_counter() - start > 0.25 * self.request["seconds"]:
                break
        return loop, waited, (time.perf_counter() - start) / images

    def close(self) -> dict[str, Any]:
        """Return the peak memory and the number of compilations in rounds."""
        stats = jax.devices()[0].memory_stats() or {}
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = {"rss": rss * (1 if sys.platform == "darwin" else 1024)}
        if "peak_bytes_in_use" in stats:
            peak["device"] = stats["peak_bytes_in_use"]
        return {"peak": peak, "compilations in rounds": self.compilations_in_rounds}


def _flops(stage: Any) -> float | None:
    """Return XLA's count, or None if the backend has none."""
    costs = stage.cost_analysis() or {}
    return (costs if isinstance(costs, dict) else costs[0]).get("flops")


def serve(request: dict[str, Any]) -> None:
    """Answer commands on standard input until it ends; each answer and each error is one JSON line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output goes to standard error, so that it is not read as an answer

    def answer(value: dict[str, Any]) -> None:
        try:
            print(json.dumps(value), file=answers, flush=True)
        except BrokenPipeError:  # `benchmark.py` has ended
            os._exit(0)

    jax.monitoring.register_event_duration_secs_listener(_count_duration)
    jax.monitoring.register_event_listener(_count)
    case = None
    for line in sys.stdin:
        try:
            command, *arguments = line.split()
            if command == "open":
                case = Case(request)
                answer(case.open(lambda text: answer({"log": text})))
            else:
                answer(getattr(case, command)(*arguments))
        except Exception as error:
            if os.environ.get("VDM_JAX_DEBUG"):
                raise
            text = next(iter(str(error).strip().splitlines()), "")
            user_error = isinstance(error, ValueError | TypeError | OSError)
            kind = "" if user_error else f"{type(error).__name__}: "
            answer({"error": f"{kind}{text}"})


def _count(event: str, **about: Any) -> None:
    del about
    EVENTS[event] += 1


def _count_duration(event: str, duration_secs: float, **about: Any) -> None:
    del duration_secs
    _count(event, **about)
