"""A server that runs the command line in processes forked after all imports.

For each JSON line {"argv", "code", "cwd", "env", "out", "err", "limit"}, it answers the exit status, or null
if the process exceeded the limit. `code` is Python to run instead of the command line, or null. Saves the time
of starting an interpreter for each of many cases.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings

for name in (
    "vdm_jax.main",
    "vdm_jax.runs.train",
    "sklearn.datasets",
    "tensorflow_datasets",
    "matplotlib.figure",
):
    importlib.import_module(name)
warnings.filterwarnings("ignore", message=r".*os\.fork", category=RuntimeWarning)


def child(order):
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.close(0)
    from vdm_jax import main

    sys.argv = order["argv"]
    status = 0
    try:
        exec(order["code"], {}) if order["code"] else main.cli()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if not pid:
        child(order)
    until, status = time.monotonic() + order["limit"], None
    while status is None and time.monotonic() < until:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(json.dumps(status), flush=True)
