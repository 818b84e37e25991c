"""Whether float32 products on a GPU may be computed in TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Enables or disables TF32, which rounds the factors of float32 products on a GPU to ten bits.

    Args:
        enabled: whether matrix products and convolutions may use it.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = enabled
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
