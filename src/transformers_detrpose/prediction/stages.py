"""Stages that work at the same time, each in a thread: decoding, preparing, the network, drawing."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

CHECK_SECONDS = 0.1  # how often a waiting stage looks whether all shall end


class Stages:
    """Context manager in which iterators run ahead in threads of their own; leaving it ends all of them.

    A stage is an iterator that takes the items of another one. An error in a stage is raised in the next one, and so
    reaches whoever takes the items of the last.

    Example:

    ```python
    >>> with Stages() as stages:
    ...     frames = stages.run(decode(path), ahead=4)
    ...     for drawn in stages.run(map(draw, frames), ahead=2):
    ...         write(drawn)
    ```
    """

    def __init__(self):
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *error):
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def run(self, items: Iterable[Item], ahead: int, drop_oldest: bool = False) -> Iterator[Item]:
        """Starts a stage and yields its items.

        Args:
            items: Iterated over in a thread.
            ahead: Maximum number of items that are ready. Then the stage waits until one is taken.
            drop_oldest: Whether it drops the oldest instead of waiting, for a source that does not wait either.

        Raises:
            BaseException: any that `items` raises, after the items before it.
        """
        ready: queue.Queue = queue.Queue(ahead)
        thread = threading.Thread(target=self._work, args=(items, ready, drop_oldest), daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._take(ready)

    def _work(self, items: Iterable, ready: queue.Queue, drop_oldest: bool):
        with suppress(_Over):
            end = _End(None)
            try:
                for item in items:
                    if drop_oldest and ready.full():
                        with suppress(queue.Empty):  # if it has just been taken
                            ready.get_nowait()
                    self._put(ready, item)
            except _Over:
                raise
            except BaseException as error:  # also an interruption: it belongs to whoever takes the items
                end = _End(error)
            self._put(ready, end)

    def _put(self, ready: queue.Queue, item):
        while not self._is_over.is_set():
            try:
                return ready.put(item, timeout=CHECK_SECONDS)
            except queue.Full:
                continue
        raise _Over

    def _take(self, ready: queue.Queue) -> Iterator:
        while not self._is_over.is_set():
            try:
                item = ready.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                return
            else:
                raise item.error
        raise _Over


class _End(NamedTuple):
    """The last item of a stage."""

    error: BaseException | None


class _Over(Exception):
    """Ends the stages when nobody takes their items any more."""
