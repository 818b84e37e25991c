"""Converts a dataset from COCO's format to that of YOLO poses, or back."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert-dataset", *sys.argv[1:]]))
