"""Converts a dataset from COCO's format to that of YOLO poses, or back.

    detrpose convert-dataset train.json val.json --images train val --output yolo
    detrpose convert-dataset yolo/data.yaml --schema yolo/schema.json --output coco

COCO files become `train`, `val` and `test` of the YOLO dataset, in this order; a `data.yaml` becomes one COCO file and
one folder of images for each of its splits. The output appears only once it is complete. What the other format does
not carry is left out, and said in one line each; edges and sigmas, which YOLO lacks, are kept in `schema.json`, for
`--schema`.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from ..data import read_schema
from ..data.dataset_conversion import coco_to_yolo, yolo_to_coco
from ..data.yolo_files import SPLITS, YOLO_SUFFIXES
from ..files import check_new_folder
from .command_line import CommandError, add_schema, run_command, show_log


def convert(arguments: argparse.Namespace):
    """Converts the dataset, and prints what is lost."""
    show_log()
    check_new_folder(arguments.output)
    schema, files = read_schema(arguments.schema), arguments.input
    if any(file.suffix.lower() in YOLO_SUFFIXES for file in files):
        if len(files) > 1:
            raise CommandError(f"one data.yaml is converted at a time, but got {len(files)} files")
        if arguments.images:
            raise CommandError(f"{files[0]} says where its images are, so --images cannot be given")
        lines = yolo_to_coco(arguments.output, files[0], schema, arguments.link)
    else:
        lines = coco_to_yolo(arguments.output, read_splits(arguments), schema, arguments.link)
    for line in lines:
        tqdm.write(line)
    print(f"{arguments.output}: {'COCO' if files[0].suffix.lower() in YOLO_SUFFIXES else 'YOLO'} dataset written")


def read_splits(arguments: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Returns the COCO file and the folder of images of each split."""
    files, folders = arguments.input, arguments.images or []
    if len(files) > len(SPLITS):
        raise CommandError(f"COCO files are those of {', '.join(SPLITS)}, but got {len(files)}")
    if len(folders) == 1:
        folders = folders * len(files)
    if len(folders) != len(files):
        raise CommandError(
            f"--images must be one folder, or one for each of {len(files)} files, but got {len(folders)}"
        )
    return dict(zip(SPLITS[: len(files)], zip(files, folders, strict=True), strict=True))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose convert-dataset",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "input", type=Path, nargs="+", help="data.yaml of a YOLO dataset, or COCO files of train, val and test"
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", metavar="DIR", help="folder of the images of each COCO file, or of all"
    )
    add_schema(parser)
    parser.add_argument(
        "--output", type=Path, required=True, default=argparse.SUPPRESS, metavar="DIR", help="folder to create"
    )
    parser.add_argument("--link", action="store_true", help="make symbolic links to the images instead of copies")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command("detrpose convert-dataset", convert, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
