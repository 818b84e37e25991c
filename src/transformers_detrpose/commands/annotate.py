"""Predicts poses in any number of images, on one machine or many, and writes them as Parquet, one row per image.

    detrpose annotate --model detrpose-l --input photos --output poses
    detrpose annotate --model detrpose-l --input owner/dataset --split train --output poses --coco poses.json
    detrpose annotate --model detrpose-l --input /shared/photos --output /shared/poses \\
        --ray auto --workers 16 --gpus-per-worker 1

The input is a folder of images, a Parquet file or a folder of them, a folder written by `Dataset.save_to_disk`, or the
id of a dataset on the Hub. The output folder holds `annotate.json`, the settings, and `data/*.parquet`, each with the
rows of --shard-size images: `id` (the path relative to the input, the value in --id-column, or the number of the row),
`width` and `height`, `scores` (n,), `labels` (n,), `keypoints` (n, K, 2), `keypoint_scores` (n, K), `keypoint_std`
(n, K, 2) and `boxes` (n, 4) as in the README, in pixels after EXIF rotation, and `error`: why an image could not be
read, else null.

Files are written whole or not at all. The same command again does what is missing, so that every image has exactly one
row, whatever was interrupted or killed. With another model or input, it is an error.

--ray shares the work out among processes, here or on a cluster. All its machines must see input, output and model under
the same paths.

--coco also writes a COCO keypoint dataset for annotation tools: keypoints below --keypoint-threshold are marked as
hidden, poses below --review-below have the attribute `review`.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ..annotation.jobs import Job, begin_or_resume, read_settings
from ..annotation.preannotation import write_coco
from ..annotation.shards import Counts, Shard, missing_shards
from ..loading import load_config
from ..prediction.models import find_model
from .command_line import (
    CommandError,
    add_max_pixels,
    add_tiles,
    check_device,
    count,
    number,
    read_tiles,
    run_command,
    show_log,
)


def annotate(arguments: argparse.Namespace):
    """Annotates what is missing, and prints a summary."""
    check_paths(arguments)
    if arguments.ray is None:
        check_device(arguments.device)
    job = make_job(arguments)
    if arguments.measure:
        return measure_speed(job, arguments)
    pictures = job.open()
    config = load_config(job.model)
    described = {"keypoint_schema": config.keypoint_schema.to_dict(), "id2label": dict(config.id2label)}
    begin_or_resume(job.output, job.settings(pictures), described)
    shards = missing_shards(job.shards(pictures), job.folder)
    num_left = sum(shard.stop - shard.start for shard in shards)
    total, start = Counts(), time.perf_counter()
    if shards:
        with tqdm(total=len(pictures), initial=len(pictures) - num_left, unit="image") as progress:
            run = annotate_here if arguments.ray is None else annotate_with_ray
            for counts in run(job, pictures, shards, arguments, progress):
                total = total.plus(counts)
    seconds = time.perf_counter() - start
    print(f"{num_left} of {len(pictures)} images annotated, the others before", end=": ")
    print(f"{total.poses} poses, {total.broken} images that could not be read, {num_left / seconds:.1f} images/s")
    if arguments.coco:
        settings = read_settings(job.output)
        write_coco(arguments.coco, job.output, settings, arguments.keypoint_threshold, arguments.review_below)
        print(f"COCO dataset written to {arguments.coco}")


def measure_speed(job: Job, arguments: argparse.Namespace):
    """Prints how fast images are read and annotated, and writes nothing."""
    from ..annotation.measuring import measure

    rates = measure(job, arguments.device, arguments.measure)
    print(f"{arguments.measure} images: reading alone {rates['reading']:.1f}", end=", ")
    print(f"annotating {rates['annotating']:.1f} images/s on {arguments.device}")


def check_paths(arguments: argparse.Namespace):
    """Raises an error for outputs that cannot or must not be written."""
    output, source = arguments.output.resolve(), Path(arguments.input).resolve()
    if output.exists() and not output.is_dir():
        raise CommandError(f"--output {arguments.output} is a file, not a folder")
    if source.is_dir() and (output == source or source in output.parents):
        raise CommandError(f"--output {arguments.output} lies in the input, {arguments.input}: choose another folder")
    coco = arguments.coco and arguments.coco.resolve()
    if coco and (coco.is_dir() or not coco.parent.is_dir()):
        raise CommandError(f"--coco {arguments.coco} must be a file in an existing folder")
    if coco and (coco == source or source in coco.parents):
        raise CommandError(f"--coco {arguments.coco} would be written into the input: choose another file")


def make_job(arguments: argparse.Namespace) -> Job:
    """Returns what the arguments ask for; paths are absolute, for processes that start elsewhere."""
    model = find_model(arguments.model)
    return Job(
        input=_absolute(arguments.input),
        output=Path(os.path.abspath(arguments.output)),
        model=_absolute(model),
        split=arguments.split,
        image_column=arguments.image_column,
        id_column=arguments.id_column,
        dtype=arguments.dtype,
        threshold=arguments.threshold,
        duplicate_similarity=arguments.remove_duplicates,
        max_people=arguments.max_people,
        tiles=read_tiles(arguments),
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_workers,
        max_pixels=arguments.max_pixels,
    )


def _absolute(name: str) -> str:
    """Returns the absolute path of an existing file or folder; ids of the Hub stay as they are."""
    return os.path.abspath(name) if Path(name).exists() else name


def annotate_here(
    job: Job, pictures, shards: list[Shard], arguments: argparse.Namespace, progress: tqdm
) -> Iterator[Counts]:
    """Writes the files of some ranges of images in this process, and yields the counts of each."""
    predictor = job.load_model(arguments.device)
    for shard in shards:
        yield job.write(predictor, pictures, shard, progress.update)


def annotate_with_ray(
    job: Job, pictures, shards: list[Shard], arguments: argparse.Namespace, progress: tqdm
) -> Iterator[Counts]:
    """Writes the files of some ranges of images in the processes of a cluster, and yields the counts of each."""
    from ..annotation.on_ray import annotate_on_ray  # an optional dependency

    workers = arguments.workers, arguments.gpus_per_worker, arguments.cpus_per_worker
    for counts in annotate_on_ray(job, shards, arguments.ray or None, *workers):
        progress.update(counts.images)
        yield counts


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    fraction = number(0, 1)
    parser = argparse.ArgumentParser(
        prog="detrpose annotate",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}  # hides the default in the help text
    parser.add_argument("--model", help="as for detrpose predict: a folder, a Hub id, or n, s, m, l, x")
    text = "folder of images, Parquet file or folder of them, folder of save_to_disk, or Hub id of a dataset"
    parser.add_argument("--input", **required, metavar="DIR_OR_FILE_OR_ID", help=text)
    parser.add_argument("--output", type=Path, **required, metavar="DIR", help="folder to write to, or to complete")
    parser.add_argument("--split", default="train", help="split of a dataset on the Hub")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="column of the images")
    parser.add_argument("--id-column", metavar="NAME", help="column of their names; row numbers if not given")
    parser.add_argument("--threshold", type=fraction, default=0.3, help="minimum score of a pose")
    text = "minimum keypoint similarity, 0 to 1, of two poses that count as one; all are kept if not given"
    parser.add_argument("--remove-duplicates", type=fraction, metavar="SIMILARITY", help=text)
    parser.add_argument("--max-people", type=count, metavar="N", help="maximum number of poses per image")
    add_tiles(parser)
    add_max_pixels(parser)
    parser.add_argument("--shard-size", type=count, default=1000, metavar="N", help="images per Parquet file")
    parser.add_argument("--batch-size", type=count, default=8, help="images or tiles per batch")
    parser.add_argument("--num-workers", type=count, default=2, help="threads that decode images, per model")
    text = "only measure how many images per second are read and annotated, with the first N images; write nothing"
    parser.add_argument("--measure", type=count, metavar="N", help=text)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device; with --ray, see --gpus-per-worker")
    precisions = ("float32", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=precisions, default="float32", help="precision of the model")
    add_ray(parser.add_argument_group("Ray"))
    add_coco(parser.add_argument_group("COCO dataset"))
    return parser.parse_args(argv)


def add_ray(group: argparse._ArgumentGroup):
    """Adds the options of `annotate_with_ray`."""
    text = "use Ray: a cluster on this machine, or that at ADDRESS (auto, HOST:PORT, ray://HOST:PORT)"
    group.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=text)
    group.add_argument("--workers", type=count, default=2, metavar="N", help="processes with a model")
    group.add_argument("--gpus-per-worker", type=number(0), default=0, metavar="N", help="GPUs of each, or a fraction")
    group.add_argument("--cpus-per-worker", type=number(0), default=1, metavar="N", help="CPUs of each")


def add_coco(group: argparse._ArgumentGroup):
    """Adds the options of `write_coco`."""
    fraction = number(0, 1)
    group.add_argument("--coco", type=Path, metavar="FILE", help="JSON file of all poses, for annotation tools")
    text = "minimum score of a keypoint that is not marked as hidden"
    group.add_argument("--keypoint-threshold", type=fraction, default=0.2, help=text)
    text = "minimum score of a pose without the attribute `review`"
    group.add_argument("--review-below", type=fraction, default=0.7, metavar="SCORE", help=text)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    show_log()
    logging.getLogger("transformers_detrpose.conversion").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose annotate", annotate, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
