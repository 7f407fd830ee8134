"""Several processes of one run on this machine, launched as a user would."""

import os
import socket
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = [
    "--config.train.batch_size=16",
    "--config.train.steps_per_dispatch=4",
    "--config.train.log_every=2",
    "--config.evaluate.draws=1",
    "--config.evaluate.batch_size=100",
    "--config.sample.count=4",
]
SMALL = {
    "smoke": ["--config.model.network.width=8", "--config.sample.steps=2"],
    "vae": ["--config.model.encoder.width=8", "--config.model.decoder.width=8"],
    "mhvae": [
        "--config.model.chain.latents=(4, 4)",
        "--config.model.chain.encoder.width=8",
        "--config.model.chain.decoder.width=8",
        "--config.model.chain.level.width=8",
    ],
}


def free_port():
    with socket.socket() as connection:
        connection.bind(("localhost", 0))
        return connection.getsockname()[1]


class Processes:
    """`count` processes of one run; `flags` of all, `process_flags` and `cwd` of each."""

    def __init__(self, folder, config, *flags, count=2, process_flags=(), cwd=()):
        address = f"localhost:{free_port()}"
        environment = os.environ | {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XDG_CACHE_HOME": str(folder.parent),  # several runs share what they compile
        }
        command = [sys.executable, "-m", "vdm_jax.main", f"--config={CONFIGS / config}.py"]
        command += ["--workdir=run", *SHORT, *SMALL[config], *flags]
        self.folder, self.running = folder, []
        for i in range(count):
            more = ["--distributed", f"--coordinator_address={address}"] if count > 1 else []
            more += [f"--num_processes={count}", f"--process_id={i}"] if count > 1 else []
            more += process_flags[i] if process_flags else []
            with (folder / f"out{i}").open("w") as out, (folder / f"err{i}").open("w") as err:
                process = subprocess.Popen(
                    [*command, *more],
                    cwd=folder / cwd[i] if cwd else folder,
                    env=environment,
                    stdout=out,
                    stderr=err,
                )
            self.running.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def wait(self, seconds=180):
        """Return the exit statuses; raise if a process takes longer than `seconds`."""
        return [process.wait(seconds) for process in self.running]

    def text(self, name):
        return (self.folder / name).read_text()
