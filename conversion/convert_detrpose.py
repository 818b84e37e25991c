"""Converts an official DETRPose checkpoint into a folder that `from_pretrained` loads."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
