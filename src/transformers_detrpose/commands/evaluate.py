"""Measures a model's average precision and recall on COCO, CrowdPose or your own dataset in COCO's format.

    python examples/evaluate.py --model detrpose-l --images val2017 --annotations person_keypoints_val2017.json
    accelerate launch examples/evaluate.py --model detrpose-l-crowdpose --images images --annotations test.json \\
        --metric crowdpose

`accelerate launch` spreads the images over all GPUs. `--results` writes the poses in COCO's results format, the best 20
of each image and category, for a test server or for other tools; from a test set, whose file has no annotations, there
is nothing else to get.

Average precision and recall are over keypoint similarities of 0.50 to 0.95, or of 0.50 (AP50) or 0.75 (AP75) alone. APM
and APL are for people of 32² to 96² pixels and of more; AP_easy, AP_medium and AP_hard for CrowdPose's images by how
crowded they are. Images are taken upright, and must have the size that the file gives.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForKeypointDetection
from transformers.utils import logging as transformers_logging

from .. import DETRPoseConfig  # noqa: F401 - registers the model with transformers
from ..evaluation import (
    CocoKeypoints,
    CrowdPoseKeypoints,
    KeypointMetric,
    read_annotations,
    write_coco_results,
)
from ..images import load_rgb_image
from .command_line import CommandError, count

METRICS = {"coco": CocoKeypoints, "crowdpose": CrowdPoseKeypoints}

# transformers 4 advises a fast image processor; there is only one, and it is fast.
logging.getLogger("transformers.models.auto.image_processing_auto").setLevel(logging.ERROR)


class ImageDataset(Dataset):
    """Images as the model sees them, with their ids and sizes.

    Args:
        folder: Folder that the images' `file_name` is relative to.
        images: Entries of a COCO file's `images`.
        processor: The model's image processor.
    """

    def __init__(self, folder: Path, images: list[dict[str, Any]], processor):
        self.folder = folder
        self.images = images
        self.processor = processor
        for image in images:
            name = image.get("file_name")
            if name is None or not (folder / name).is_file():
                raise CommandError(f"--images {folder}: no file {name} for image {image['id']}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `pixel_values` (3, height, width), `image_id` and `orig_size` (2,), height and width in pixels."""
        image = self.images[index]
        path = self.folder / image["file_name"]
        try:
            picture = load_rgb_image(path)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise CommandError(f"cannot read image {path}: {one_line(error)}") from error
        size = (picture.height, picture.width)
        expected = (image.get("height", size[0]), image.get("width", size[1]))
        if size != expected:
            raise CommandError(f"image {path} has the height and width {size}, but {expected} in the annotations")
        pixel_values = self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "image_id": image["id"], "orig_size": torch.tensor(size)}


def load_model(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """Returns the model, fused, and its image processor."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise CommandError(f"--model {name}: no such folder, nor an id on the Hub (owner/name)")
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModelForKeypointDetection.from_pretrained(name, dtype=dtype)
    except Exception as error:  # transformers, safetensors and the Hub all raise their own kinds
        raise CommandError(f"cannot load --model {name}: {one_line(error)}") from error
    if not hasattr(model.config, "keypoint_schema"):
        raise CommandError(f"--model {name} is a {model.config.model_type} model, not a DETRPose model")
    return model.fuse().to(device), processor


def load_metric(arguments: argparse.Namespace, config) -> KeypointMetric:
    """Returns the metric for the images to evaluate."""
    content = dict(read_annotations(arguments.annotations))
    content["images"] = content["images"][: arguments.max_images]
    metric = METRICS[arguments.metric](content, config.keypoint_schema)
    if not metric.images:
        raise CommandError(f"--annotations {arguments.annotations} lists no images")
    if not (metric.has_annotations or arguments.results):
        raise CommandError(f"--annotations {arguments.annotations} has no annotations to score against: give --results")
    unknown = sorted(set(metric.category_ids) - set(config.id2label))
    if metric.has_annotations and unknown:
        raise CommandError(
            f"--annotations {arguments.annotations} has the categories {unknown}, but the model's labels are "
            f"{dict(config.id2label)}"
        )
    return metric


@torch.inference_mode()
def predict_images(accelerator: Accelerator, model, processor, loader: DataLoader, metric: KeypointMetric):
    """Predicts this process's share of the images and hands the poses to the metric."""
    for batch in tqdm(loader, unit="batch", disable=not accelerator.is_main_process):
        outputs = model(batch["pixel_values"].to(model.dtype))
        # Average precision needs the doubtful poses too.
        poses = processor.post_process_keypoint_detection(outputs, threshold=0, target_sizes=batch["orig_size"])
        metric.update(batch["image_id"].tolist(), poses)


def format_table(scores: Mapping[str, float]) -> str:
    """Returns names above scores in percent; "-" where there was nobody to be found."""
    columns = [(name, f"{100 * score:.1f}" if score >= 0 else "-") for name, score in scores.items()]
    widths = [max(len(name), 5) for name in scores]
    rows = zip(*columns, strict=True)
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def evaluate(arguments: argparse.Namespace):
    """Does what the command line asks and prints the table."""
    accelerator = Accelerator()
    if not arguments.images.is_dir():
        raise CommandError(f"--images {arguments.images}: no such folder")
    for option in ("results", "scores"):
        path = getattr(arguments, option)
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise CommandError(f"--{option} {path} must be a file in an existing folder")
    model, processor = load_model(arguments.model, getattr(torch, arguments.dtype), accelerator.device)
    metric = load_metric(arguments, model.config)
    dataset = ImageDataset(arguments.images, list(metric.images.values()), processor)
    # Each process gets its share of the batches, on its device. To even the shares some images come twice, which the
    # metric does not mind.
    loader = accelerator.prepare(
        DataLoader(dataset, batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    )
    predict_images(accelerator, model, processor, loader, metric)

    predictions = metric.gather()
    if accelerator.is_main_process and arguments.results:
        write_coco_results(arguments.results, predictions)
        print(f"poses in {len(predictions)} images written to {arguments.results}")
    if accelerator.is_main_process and metric.has_annotations:
        print(f"{arguments.model} on {len(predictions)} images of {arguments.annotations}, in percent:")
        scores = metric.score(predictions)
        print(format_table(scores))
        if arguments.scores:
            arguments.scores.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    accelerator.end_training()


def one_line(error: Exception) -> str:
    """Returns the line of an error's message that matters, or its kind where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What went wrong in a process of the data loader comes as a traceback, the message last.
    return lines[-1].partition(": ")[2] if "DataLoader worker" in lines[0] and len(lines) > 1 else lines[0]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Measures a model's average precision and recall on a dataset in COCO's format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # A required argument has no default to show in the help text.
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--model", **required, help="model folder or Hub id")
    parser.add_argument("--images", type=Path, **required, metavar="DIR", help="folder of the images")
    parser.add_argument("--annotations", type=Path, **required, metavar="FILE", help="COCO-format JSON file")
    parser.add_argument("--metric", choices=METRICS, default="coco", help="whose definition of the scores")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="file to write the poses to, in COCO's results format"
    )
    parser.add_argument("--scores", type=Path, metavar="FILE", help="file to write the table to, as JSON from 0 to 1")
    parser.add_argument("--batch-size", type=count, default=16, help="images predicted at once, on each process")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that load images, for each that predicts")
    parser.add_argument("--max-images", type=count, help="evaluate only the first images of the file")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of the model's numbers"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # the bar of loading weights; this command has its own
    try:
        evaluate(arguments)
        return 0
    except (CommandError, ValueError, OSError) as error:  # the metric says what is wrong in ValueErrors
        message = one_line(error)
    except torch.cuda.OutOfMemoryError as error:
        message = f"{one_line(error)} A smaller --batch-size needs less memory."
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"evaluate.py: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
