"""Counts the parameters and floating-point operations of the published models, fused for deployment."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sizes", *sys.argv[1:]]))
