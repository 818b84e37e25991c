"""Calibrates a model: scores become the keypoint similarity to expect, and standard deviations those of real errors.

    detrpose calibrate --model detrpose-l --images val2017 --annotations person_keypoints_val2017.json \\
        --max-images 1000 --output detrpose-l-calibrated

A few hundred images are enough. They should be similar to those that the model will be used on, and must not be those
that it was trained on, where its errors are smaller. The weights of the network do not change; what is fitted is stored
beside them and used wherever the model is, also after an export. The order of scores, and so average precision, stays
the same. A calibrated model is calibrated anew.

With --visibility, the model also gets a head that says whether each keypoint is visible or occluded, if the annotations
do. By default keypoints with visibility 0 are left out, because it often means that nobody labeled them. Where it means
that a keypoint is not in the image, --predict-absent-keypoints makes that a third answer, "absent".

Printed is the expected calibration error of the scores, and the part of the keypoints within the ellipses that should
contain 50 % and 90 % of them; with `--val-images` and `--val-annotations` on those images, which is the honest way.
"""

import argparse
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from ..configuration_detrpose import GAUSSIAN_RADII, DETRPoseConfig
from ..data import CocoAnnotations, CocoPoseDataset, evaluation_dataloader, read_annotations
from ..evaluation import CocoKeypoints, evaluate_model
from ..evaluation.calibrating import (
    Observations,
    PoseTokens,
    calibrated,
    calibrated_confidence,
    fit_calibration,
    fit_radii,
    measure,
    observe,
    uncalibrated_confidence,
)
from ..evaluation.calibrating_visibility import (
    VisibilityMeasures,
    fit_visibility,
    known_visibility,
    measure_visibility,
    with_visibility,
)
from ..evaluation.matching import match_poses
from ..files import check_new_folder, whole_folder
from ..image_processing_detrpose import DETRPoseImageProcessor
from ..keypoint_schemas import KeypointSchema
from ..loading import load_config, load_image_processor, load_model
from ..modeling_detrpose import DETRPoseForPoseEstimation
from .command_line import (
    CommandError,
    add_device,
    add_max_pixels,
    add_num_workers,
    add_schema,
    add_split,
    check_device,
    count,
    locate_images,
    run_command,
    schema_of_model,
)

# What is printed of the result of `measure`.
ROWS = {
    "pose_error": "calibration error of pose scores",
    "keypoint_error": "calibration error of keypoint scores",
    "mean_score": "mean keypoint score",
    "mean_similarity": "mean keypoint similarity",
    "auc": "area under curve, similarity > 0.5",
    "coverage_50": "part within the 50 % ellipses",
    "coverage_90": "part within the 90 % ellipses",
}
# And of `measure_visibility`.
VISIBILITY_ROWS = {
    "accuracy": "part predicted correctly",
    "balanced_accuracy": "the same, mean over visibilities",
    "majority": "part with the most frequent one",
    "auc": "area under curve, visible",
}


def calibrate(arguments: argparse.Namespace):
    """Calibrates the model, and prints how well."""
    check(arguments)
    device = check_device(arguments.device)
    model = load_model(arguments.model, uncalibrated_config(arguments)).eval().to(device)
    sets = {"annotations": read(arguments, model)}
    if arguments.val_annotations:
        sets["val-annotations"] = read(arguments, model, "val_")

    poses = {name: match(arguments, model, *data) for name, data in sets.items()}
    fitted = fit_calibration(poses["annotations"])
    radii = fit_radii(poses["annotations"], fitted)
    visibility = fit_and_measure_visibility(model, visibility_config(arguments), poses) if arguments.visibility else {}
    save(arguments, calibrated(model, fitted, radii))
    print(f"{arguments.output}: 50 % and 90 % ellipses have radii of {radii[0]:.2f} and {radii[1]:.2f} deviations")
    for name, part in poses.items():
        print(f"{len(part.matched_logits)} people found in the images of --{name}")
        report(part, fitted, radii)
        if name in visibility:
            report_visibility(visibility[name])


def check(arguments: argparse.Namespace):
    """Checks the options, before anything is loaded."""
    if arguments.val_images and not arguments.val_annotations:
        raise CommandError("--val-images and --val-annotations must be given together")
    if arguments.predict_absent_keypoints and not arguments.visibility:
        raise CommandError("--predict-absent-keypoints must be given together with --visibility")
    check_new_folder(arguments.output)
    if (Path(arguments.model) / "model.onnx").is_file():
        raise CommandError(f"--model {arguments.model} is an exported model: calibrate the model that it was made from")


def uncalibrated_config(arguments: argparse.Namespace, **changes) -> DETRPoseConfig:
    """Returns the configuration of the model without what is fitted here, an earlier one of which is replaced."""
    schema = schema_of_model(load_config(arguments.model), arguments.schema)
    changes |= {"keypoint_schema": schema.to_dict(), "use_calibration": False, "ellipse_radii": GAUSSIAN_RADII}
    if arguments.visibility:
        changes = {"use_visibility_head": False, "predict_absent_keypoints": False, **changes}
    config = load_config(arguments.model, **changes)
    if not config.use_fdr_heads:
        raise CommandError(f"--model {arguments.model} has no FDR heads, and so no standard deviations to calibrate")
    return config


def visibility_config(arguments: argparse.Namespace) -> DETRPoseConfig:
    """Returns the same with the visibility head to fit."""
    is_absent = arguments.predict_absent_keypoints
    return uncalibrated_config(arguments, use_visibility_head=True, predict_absent_keypoints=is_absent)


def fit_and_measure_visibility(
    model: DETRPoseForPoseEstimation, config: DETRPoseConfig, poses: dict[str, Observations]
) -> dict[str, VisibilityMeasures]:
    """Gives the model a visibility head fitted to the poses of --annotations, and measures it on all of them."""
    head = fit_visibility(config, *known_visibility(config, poses["annotations"]))
    measures = {name: measure_visibility(head, *known_visibility(config, part)) for name, part in poses.items()}
    with_visibility(model, head)
    return measures


def read(arguments: argparse.Namespace, model: DETRPoseForPoseEstimation, prefix: str = "") -> tuple:
    """Returns annotations and their images, given by the options with this prefix."""
    path, folder, split = (getattr(arguments, prefix + name) for name in ("annotations", "images", "split"))
    option = "--" + prefix.replace("_", "-")
    annotations = read_annotations(path, model.config.keypoint_schema, split).first_images(arguments.max_images)
    if not annotations.images or annotations.instances is None:
        missing = "images" if not annotations.images else "annotations"
        raise CommandError(f"{option}annotations {path} has no {missing}")
    annotations = locate_images(folder, annotations, f"{option}images")
    return annotations, CocoPoseDataset(None, annotations)


def match(
    arguments: argparse.Namespace,
    model: DETRPoseForPoseEstimation,
    annotations: CocoAnnotations,
    dataset: CocoPoseDataset,
) -> Observations:
    """Predicts the poses in some images and matches them to the people."""
    schema = model.config.keypoint_schema
    processor = unscaled_processor(arguments.model, schema)
    metric = CocoKeypoints(annotations, schema, max_poses=model.config.num_queries)
    loader = evaluation_dataloader(dataset, arguments.batch_size, processor, arguments.num_workers)
    tokens = PoseTokens()
    predictions = evaluate_model(model.fuse(), processor, loader, metric, observe=tokens.observe)
    return observe(match_poses(metric, predictions), schema, tokens.gather(predictions))


def unscaled_processor(name: str, schema: KeypointSchema) -> DETRPoseImageProcessor:
    """Returns the image processor of a calibrated model with this schema."""
    processor = load_image_processor(name)
    processor.keypoint_schema = schema
    processor.do_scale_deviations = False
    return processor


def save(arguments: argparse.Namespace, model: DETRPoseForPoseEstimation):
    """Writes the folder of the calibrated model, in the precision of the original."""
    files = [path for path in (Path(arguments.model) / "README.md",) if path.is_file()]
    with whole_folder(arguments.output) as folder:
        model.to(load_config(arguments.model).dtype or torch.float32).save_pretrained(folder)
        unscaled_processor(arguments.model, model.config.keypoint_schema).save_pretrained(folder)
        for path in files:
            (folder / path.name).write_bytes(path.read_bytes())


def report(poses: Observations, fitted: dict[str, torch.Tensor], radii: list[float]):
    """Prints how well the confidences agree with the annotations, before and after."""
    before = measure(poses, *uncalibrated_confidence(poses), GAUSSIAN_RADII)
    after = measure(poses, *calibrated_confidence(poses, fitted), radii)
    print(f"{'':36}  before   after")
    for name, text in ROWS.items():
        print(f"{text:36}  {before[name]:6.3f}  {after[name]:6.3f}")


def report_visibility(found: VisibilityMeasures):
    """Prints how often the visibility of keypoints is predicted."""
    print(f"visibility of {found.count} keypoints")
    for name, text in VISIBILITY_ROWS.items():
        print(f"{text:36}  {'':6}  {getattr(found, name):6.3f}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose calibrate",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--model", **required, help="model folder or Hub id")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images to fit to; not for YOLO")
    parser.add_argument(
        "--annotations", type=Path, **required, metavar="FILE", help="their COCO-format JSON file, or data.yaml of YOLO"
    )
    parser.add_argument("--output", type=Path, **required, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="folder of other images, to measure on")
    parser.add_argument("--val-annotations", type=Path, metavar="FILE", help="their annotations, as --annotations")
    add_split(parser, "val")
    add_split(parser, "test", "--val-split", "--val-annotations")
    add_schema(parser, "the model's, also in the calibrated model")
    parser.add_argument("--visibility", action="store_true", help="also fit a head for the visibility of keypoints")
    parser.add_argument(
        "--predict-absent-keypoints",
        action="store_true",
        help='with --visibility: learn visibility 0 as "absent", where it does not mean "not labeled"',
    )
    parser.add_argument("--batch-size", type=count, default=16, help="images per batch")
    add_num_workers(parser)
    parser.add_argument("--max-images", type=count, help="use only the first images of each file")
    add_max_pixels(parser)
    add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = parse_arguments(argv)
    transformers_logging.disable_progress_bar()  # of loading weights; this command has its own
    return run_command("detrpose calibrate", calibrate, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
