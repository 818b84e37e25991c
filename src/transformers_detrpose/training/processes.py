"""What one process does for all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")


def on_first_process(accelerator: "Accelerator", function: Callable[[], Result]) -> Result:
    """Calls a function on the first process and returns its result on all of them; all have to call this.

    Args:
        accelerator: knows the processes.
        function: what to do; its result travels to the other processes.

    Raises:
        Exception: what the function has raised, on the first process.
        SystemExit: with the exit code 1 on the others, which have nothing to add.
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
