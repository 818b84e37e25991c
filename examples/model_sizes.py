"""Counts parameters and floating-point operations of the published models, as they are deployed."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sizes", *sys.argv[1:]]))
