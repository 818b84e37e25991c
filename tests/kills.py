"""Kills that a test can survive: from a given file operation on, a process does nothing any more."""

import sys

# What changes files, as Python's audit events name it.
_OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class Killed(BaseException):
    """Takes the place of the end of a process; nothing but a test catches it."""


class Kill:
    """While it is entered, the file operation of a given number fails, and every later one, so that nothing is tidied.

    Args:
        operation: number of the first one that does not happen, from 0.
    """

    _active: "Kill | None" = None

    def __init__(self, operation: int):
        self.operation = operation
        self.count = 0

    def __enter__(self) -> "Kill":
        Kill._active = self
        return self

    def __exit__(self, *exception):
        Kill._active = None

    @staticmethod
    def audit(event: str, arguments: tuple):
        """Audit hooks are called before the operation, and stay for the life of a process."""
        kill = Kill._active
        if kill is None or not (event in _OPERATIONS or event == "open" and _writes(arguments)):
            return
        kill.count += 1
        if kill.count > kill.operation:
            raise Killed(event)


def _writes(arguments: tuple) -> bool:
    mode = arguments[1]
    return isinstance(mode, str) and any(letter in mode for letter in "wax+")


sys.addaudithook(Kill.audit)
