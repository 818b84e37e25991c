"""The same on a Ray cluster: each worker loads the model once and takes one range of images after another.

A worker that dies is replaced by Ray, and its range begun anew. Nothing but the numbers of a range and the counts
travels through Ray: workers read the images and write the files themselves, so that all machines must see both under
the same paths.
"""

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from ..loading import first_line
from .jobs import Job
from .shards import Counts, Shard

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts

import ray  # noqa: E402
import ray.data  # noqa: E402


class Worker:
    """A process with the model, in which Ray Data calls it.

    Args:
        job: What to do.
        device: Name of the torch device.
    """

    def __init__(self, job: Job, device: str):
        self.job = job
        self.pictures = job.open()
        self.predictor = job.load_model(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shards = [Shard(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        counts = [self.job.write(self.predictor, self.pictures, shard) for shard in shards]
        return {name: [getattr(count, name) for count in counts] for name in Counts._fields}


def annotate_on_ray(
    job: Job, shards: list[Shard], address: str | None, num_workers: int, gpus_per_worker: float, cpus_per_worker: float
) -> Iterator[Counts]:
    """Writes the files of some ranges of images, and yields the counts of each as it is done.

    Args:
        job: What to do.
        shards: The ranges.
        address: Address of a cluster; one is started on this machine if not given.
        num_workers: Number of processes with a model.
        gpus_per_worker: GPUs that Ray reserves for each, possibly a fraction; the model is on a GPU if not 0.
        cpus_per_worker: CPUs that Ray reserves for each, which are also its threads.

    Raises:
        ValueError: if there is no cluster at the address, or a worker fails otherwise than by dying.
    """
    local = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, round(num_workers * cpus_per_worker))}
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(address=address, **quiet, **({} if address else local))
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the command reports errors and progress itself
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        ranges = ray.data.from_items([shard._asdict() for shard in shards], override_num_blocks=len(shards))
        done = ranges.map_batches(
            Worker,
            fn_constructor_args=(job, "cuda" if gpus_per_worker else "cpu"),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_gpus=gpus_per_worker,
            num_cpus=cpus_per_worker,
        )
        for row in done.iter_rows():
            yield Counts(**{name: int(row[name]) for name in Counts._fields})
    except ray.exceptions.RayError as error:
        raise ValueError(f"a worker failed: {_root_cause(error)}") from error
    finally:
        ray.shutdown()


def _root_cause(error: BaseException) -> str:
    """Returns the first error in a text that holds the worker's traceback and those of Ray, which followed from it."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])
