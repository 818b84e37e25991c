"""Batches of images or frames that fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# 4096 x 4096: batches stop growing there, so that eight large images take no more memory than one. The model itself
# gets all of them in one size.
MAX_BATCH_PIXELS = 2**24

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int, num_pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yields the items in lists of at most `size`, which end early at the item that reaches `MAX_BATCH_PIXELS`.

    Args:
        items: Images or frames.
        size: Maximum number of items in a list.
        num_pixels: Returns the number of pixels of an item.
    """
    batch, total = [], 0
    for item in items:
        batch.append(item)
        total += num_pixels(item)
        if len(batch) == size or total >= MAX_BATCH_PIXELS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
