"""Work that one process does for all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")


def on_first_process(accelerator: "Accelerator", function: Callable[[], Result]) -> Result:
    """Calls a function on the first process and returns its result on all; must be called by all processes.

    Args:
        accelerator: the accelerator of the processes.
        function: the function to call; its result is sent to the other processes.

    Raises:
        Exception: whatever the function raised, on the first process.
        SystemExit: with exit code 1 on the others.
    """
    from accelerate.utils import broadcast_object_list

    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, has_failed = broadcast_object_list([result, error is not None])
    if error is not None:
        raise error
    if has_failed:
        raise SystemExit(1)
    return result
