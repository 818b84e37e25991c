"""Jobs that are done within a time limit, in the order of their importance."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ...loading import first_line


@dataclass(frozen=True)
class Job:
    """A measurement.

    Args:
        part: the part of the report that it belongs to.
        name: what is measured, such as "n, float16, batch 8".
        measure: returns the rows of the report; one with the key "skipped" only says why there is none.
        seconds: expected duration, until a job of the same part has been done.
    """

    part: str
    name: str
    measure: Callable[[], Iterable[dict[str, Any]]]
    seconds: float


@dataclass
class Schedule:
    """Does jobs until the time is up, and records what was skipped.

    A job is skipped if it would probably not end in time: if it may take half as long again as the longest job of its
    part so far.

    Args:
        limit: seconds for all jobs.
        started: when the time started, on `time.monotonic`'s clock.
    """

    limit: float
    started: float = field(default_factory=time.monotonic)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self.limit - self.elapsed

    def run(self, jobs: list[Job], done: Callable[[], None]):
        """Does the jobs in order, and calls `done` after each of them."""
        for job in tqdm(jobs, desc="report", unit="job", leave=False):
            expected = 1.5 * self.longest[job.part] if job.part in self.longest else job.seconds
            if expected > self.left:
                self.skip(job, f"it may take {expected:.0f} s, but only {max(0.0, self.left):.0f} s were left")
                continue
            start = time.monotonic()
            rows = self.rows.setdefault(job.part, [])
            try:
                for row in job.measure():
                    if "skipped" in row:
                        self.skip(job, row["skipped"])
                    else:
                        rows.append(row)
            except Exception as error:  # no failure may stop the other jobs
                self.skip(job, first_line(error))
            self.longest[job.part] = max(self.longest.get(job.part, 0.0), time.monotonic() - start)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            done()

    def skip(self, job: Job, reason: str):
        """Records a job that was not done, or not to its end."""
        self.skipped.append({"part": job.part, "job": job.name, "reason": reason})
