"""What the commands of this folder share."""

import argparse

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class CommandError(Exception):
    """Something the user can put right; the message is all they need to see."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def count(text: str) -> int:
    """Reads a whole number of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)
