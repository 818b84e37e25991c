"""Computes a model's average precision and recall on COCO, CrowdPose or any dataset in COCO's or YOLO's format.

    detrpose evaluate --model detrpose-l --images val2017 --annotations person_keypoints_val2017.json
    accelerate launch -m transformers_detrpose evaluate --model detrpose-l-crowdpose --images images \\
        --annotations test.json --metric crowdpose
    detrpose evaluate --model birds --annotations birds/data.yaml --split test

`accelerate launch` distributes the images over all GPUs. `--results` writes the best 20 poses of each image and
category in COCO's results format, for a test server or other tools; for a test set without annotations, it is required.

`--report` writes a page, `index.html`: how far the scores can be trusted, average precision by size, visible keypoints
and crowding, the errors in each keypoint and what they cost, and the worst images beside their truth.

Average precision and recall are averaged over OKS thresholds of 0.50 to 0.95, or are at 0.50 (AP50) or 0.75 (AP75). APM
and APL are for people of 32² to 96² pixels and of more; AP_easy, AP_medium and AP_hard are for CrowdPose's images by
crowd index. If the file has several categories with keypoints, the first row is the mean over them, and each has a row
of its own. EXIF rotation is applied, and images must have the size given in the file.
"""

import argparse
import json
import os
import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from ..data import CocoAnnotations, CocoPoseDataset, evaluation_dataloader, read_annotations
from ..evaluation import METRICS, KeypointMetric, evaluate_model, write_coco_results
from ..files import check_new_folder, check_outputs, whole_file
from ..keypoint_schemas import KeypointSchema
from ..loading import load_image_processor, load_pose_estimator, model_files
from ..memory import keep_freed_memory
from .command_line import (
    CommandError,
    add_max_pixels,
    add_num_workers,
    add_schema,
    add_split,
    add_tiles,
    count,
    locate_images,
    read_tiles,
    run_command,
    schema_of_model,
)


def load_metric(
    arguments: argparse.Namespace, annotations: CocoAnnotations, config, schema: KeypointSchema
) -> KeypointMetric:
    """Returns the metric for the images to evaluate."""
    metric = METRICS[arguments.metric](annotations, schema)
    if arguments.report and not metric.has_annotations:
        raise CommandError(f"--annotations {arguments.annotations} has no annotations, which --report needs")
    if not (metric.has_annotations or arguments.results):
        raise CommandError(f"--annotations {arguments.annotations} has no annotations to score against: give --results")
    unknown = sorted(set(metric.category_ids) - set(config.id2label))
    if metric.has_annotations and unknown:
        raise CommandError(
            f"--annotations {arguments.annotations} has the categories {unknown}, but the model's labels are "
            f"{dict(config.id2label)}"
        )
    return metric


def format_table(scores: Mapping[str, float], classes: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Returns a table of scores in percent, and of those of each class, if there are any; "-" without ground truth."""
    widths = [max(len(name), 5) for name in scores]
    rows = [list(scores)]
    for found in (scores, *(classes or {}).values()):
        rows.append([f"{100 * found[name]:.1f}" if found[name] >= 0 else "-" for name in scores])
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    if classes:
        titles = ["", "all", *classes]
        width = max(map(len, titles))
        lines = [f"{title.ljust(width)}  {line}" for title, line in zip(titles, lines, strict=True)]
    return "\n".join(lines)


def check_paths(arguments: argparse.Namespace):
    """Raises an error if the folder of images does not exist, or if files cannot or must not be written."""
    if arguments.images and not arguments.images.is_dir():
        raise CommandError(f"--images {arguments.images}: no such folder")
    for option in ("results", "scores"):
        path = getattr(arguments, option)
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise CommandError(f"--{option} {path} must be a file in an existing folder")
    outputs = [path for path in (arguments.results, arguments.scores) if path]
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise CommandError(f"--results and --scores are the same file, {arguments.results}")
    if arguments.report:
        check_report(arguments.report, outputs)
    inputs = [arguments.annotations, *model_files(arguments.model)]
    check_outputs(outputs, chain(inputs, arguments.images.rglob("*") if arguments.images else ()))


def check_report(folder: Path, outputs: list[Path]):
    """Raises an error if the folder of the report cannot be created, or if other outputs lie in it."""
    check_new_folder(folder)
    for path in outputs:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise CommandError(f"--report {folder} must be a folder of its own, without {path}")


def evaluate(arguments: argparse.Namespace):
    """Evaluates the model, and prints and saves the results."""
    accelerator = Accelerator()
    check_paths(arguments)
    keep_freed_memory()
    model = load_pose_estimator(arguments.model, accelerator.device, getattr(torch, arguments.dtype))
    image_processor = load_image_processor(arguments.model)
    schema = schema_of_model(model.config, arguments.schema)
    annotations = read_annotations(arguments.annotations, schema, arguments.split).first_images(arguments.max_images)
    if not annotations.images:
        raise CommandError(f"--annotations {arguments.annotations} lists no images")
    annotations = locate_images(arguments.images, annotations)
    check_outputs(filter(None, (arguments.results, arguments.scores)), Path(annotations.image_folder).rglob("*"))
    metric = load_metric(arguments, annotations, model.config, schema)
    dataset = CocoPoseDataset(None, annotations)
    # Each process gets a share of the batches, on its device.
    tiles = read_tiles(arguments)
    loader = accelerator.prepare(
        evaluation_dataloader(
            dataset,
            arguments.batch_size if tiles is None else 1,
            image_processor,
            arguments.num_workers,
            crop=None if tiles is None else tiles.crops,
        )
    )
    show = accelerator.is_main_process
    predictions = evaluate_model(model, image_processor, loader, metric, show, tiles, arguments.batch_size)
    if accelerator.is_main_process:
        report(arguments, metric, predictions, dataset.image_folder)
    accelerator.end_training()


def report(
    arguments: argparse.Namespace,
    metric: KeypointMetric,
    predictions: Mapping[int, Mapping[str, Any]],
    image_folder: str,
):
    """Writes the requested files, and prints the table."""
    if arguments.results:
        write_coco_results(arguments.results, predictions, metric.keypoint_schema)
        print(f"poses in {len(predictions)} images written to {arguments.results}")
    if metric.has_annotations:
        scores, classes = metric.score(predictions), metric.score_classes(predictions)
        print(f"{arguments.model} on {len(predictions)} images of {arguments.annotations}, in percent:")
        print(format_table(scores, classes))
        if arguments.scores:
            content = {**scores, "classes": classes} if classes else scores
            with whole_file(arguments.scores) as path:
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if arguments.report:
        warnings.filterwarnings("ignore", message="OpenCV .* is not installed")
        from ..evaluation.report import write_report  # drawing takes long to import

        heading = f"{arguments.model} on {arguments.annotations}"
        write_report(arguments.report, metric, predictions, image_folder, heading)
        print(f"report written to {arguments.report / 'index.html'}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose evaluate",
        description="Computes a model's average precision and recall on a dataset in COCO's or YOLO's format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # Hides the default of required arguments in the help text.
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--model", **required, help="model folder or Hub id")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images; not for a YOLO dataset")
    parser.add_argument(
        "--annotations", type=Path, **required, metavar="FILE", help="COCO-format JSON file, or data.yaml of YOLO"
    )
    add_split(parser, "val")
    add_schema(parser, "the model's")
    parser.add_argument("--metric", choices=METRICS, default="coco", help="definition of the metrics")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="file to write the poses to, in COCO's results format"
    )
    parser.add_argument("--scores", type=Path, metavar="FILE", help="JSON file to write the scores to, from 0 to 1")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder to create for a page about the errors, with pictures"
    )
    parser.add_argument("--batch-size", type=count, default=16, help="images, or tiles, per batch and process")
    add_tiles(parser)
    add_num_workers(parser, "processes that load images, for each that evaluates")
    add_max_pixels(parser)
    parser.add_argument("--max-images", type=count, help="evaluate only the first images of the file")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="precision of the model"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose evaluate", evaluate, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
