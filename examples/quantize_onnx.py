"""Quantizes an exported model to 8 bits: a smaller file that runs faster on CPUs, with slightly different poses."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["quantize", *sys.argv[1:]]))
