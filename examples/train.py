"""Trains DETRPose on a dataset in COCO's or YOLO's keypoint format.

    accelerate launch examples/train.py --model detrpose-l-init --recipe coco \\
        --train-images train2017 --train-annotations person_keypoints_train2017.json \\
        --val-images val2017 --val-annotations person_keypoints_val2017.json \\
        --output detrpose-l-coco
    accelerate launch examples/train.py --model detrpose-l --train-data birds/data.yaml --output birds-l

The model is a folder or Hub id to fine-tune (new keypoints or categories get new heads), or a variant (n, s, m, l, x)
to start from random weights, which needs `--unfreeze-backbone-norms`. The skeleton and the categories are read from the
training annotations; `--schema` gives what these lack. `--recipe` trains as the published model of this size was
trained, which leaves out images without people; explicit options override it. Without it, the defaults suit small
datasets.

The output folder holds, always in a complete version: `last` and `best` (averaged weights, for `from_pretrained`),
`metrics.jsonl` (one line per evaluation) and `state`, from which `--resume` continues: exactly on a CPU, and up
to the order in which some gradients are summed on a GPU. Ctrl-C and SIGTERM save the state first.
"""

import argparse
import logging
import math
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import IMAGE_PROCESSOR_NAME

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor, KeypointSchema
from transformers_detrpose.commands.command_line import CommandError, run_command
from transformers_detrpose.commands.train_arguments import parse_arguments
from transformers_detrpose.configuration_detrpose import GAUSSIAN_RADII
from transformers_detrpose.data import (
    CocoAnnotations,
    CocoPoseDataset,
    check_dataset,
    evaluation_dataloader,
    read_annotations,
    read_schema,
    train_dataloader,
)
from transformers_detrpose.data.augmentation import UNCHANGED, seed_for
from transformers_detrpose.evaluation import METRICS, KeypointMetric, evaluate_model
from transformers_detrpose.evaluation.keypoint_metrics import Poses
from transformers_detrpose.files import check_new_folder
from transformers_detrpose.loading import first_line, load_config, load_image_processor, load_model
from transformers_detrpose.training import (
    FINE_TUNING,
    RECIPES,
    Checkpoints,
    Interrupted,
    LoadingError,
    Progress,
    Recipe,
    Settings,
    SignalWatch,
    StepReport,
    StepReports,
    WeightAverage,
    batches_by_step,
    build_optimizer,
    build_scheduler,
    convert_sync_batch_norms,
    loaded,
    on_first_process,
    prepare_inputs,
    step_if_finite,
    variant_of,
)

logger = logging.getLogger("transformers_detrpose.train")


def get_annotations(args: argparse.Namespace) -> tuple[CocoAnnotations, CocoAnnotations]:
    """Returns the training and validation annotations."""
    schema = read_schema(args.schema)
    train_annotations = read_annotations(args.train_annotations, schema, "train", not args.no_share_keypoints)
    val_annotations = read_annotations(args.val_annotations, train_annotations.schema, "val")
    return train_annotations.located(args.train_images), val_annotations.located(args.val_images)


def get_datasets(
    args: argparse.Namespace, accelerator: Accelerator, annotations: tuple[CocoAnnotations, CocoAnnotations]
) -> tuple[CocoPoseDataset, CocoPoseDataset]:
    """Returns the training and validation datasets, both checked."""
    # The published models were trained on images with people only.
    train_dataset = CocoPoseDataset(None, annotations[0], only_with_people=bool(args.recipe))
    val_dataset = CocoPoseDataset(None, annotations[1])
    for dataset in (train_dataset, val_dataset):
        on_first_process(accelerator, lambda dataset=dataset: check(dataset, args))
    if args.recipe:
        left_out = len(train_dataset.image_ids) - len(train_dataset)
        logger.info("--recipe %s: %d images without people are left out", args.recipe, left_out)
    return train_dataset, val_dataset


def check(dataset: CocoPoseDataset, args: argparse.Namespace):
    """Checks all images and annotations of a dataset."""
    try:
        report = check_dataset(dataset, "decode" if args.decode_images else "header")
    except ValueError as error:
        raise CommandError(f"{dataset.image_folder}: {' '.join(str(error).split())}") from error
    if not report.num_people:
        raise CommandError(f"{dataset.image_folder}: its {report.num_images} images have no labelled keypoints")


def get_model(args: argparse.Namespace, dataset: CocoPoseDataset) -> DETRPoseForPoseEstimation:
    """Returns the model to train, with the skeleton and the categories of the dataset."""
    changes = {**args.set, "keypoint_schema": dataset.schema, "id2label": dataset.id2label}
    if args.unfreeze_backbone_norms:
        changes["freeze_backbone_batch_norms"] = False
    # Training would invalidate it.
    changes |= {"use_calibration": False, "ellipse_radii": GAUSSIAN_RADII}
    return load_model(args.model, load_config(args.model, **changes))


def get_image_processor(args: argparse.Namespace, schema: KeypointSchema) -> DETRPoseImageProcessor:
    """Returns the image processor of the training, which normalizes images if that of the model does."""
    changes: dict[str, Any] = {}
    if Path(args.model).is_dir() and not (Path(args.model) / IMAGE_PROCESSOR_NAME).is_file():
        logger.warning("%s has no %s: images are not normalized", args.model, IMAGE_PROCESSOR_NAME)
    else:
        own = load_image_processor(args.model)
        changes = {name: getattr(own, name) for name in ("do_normalize", "image_mean", "image_std")}
    return DETRPoseImageProcessor(keypoint_schema=schema, size={"height": args.size, "width": args.size}, **changes)


def get_recipe(args: argparse.Namespace, config: DETRPoseConfig) -> Recipe:
    """Returns the requested recipe, with explicit options overriding it."""
    recipe = FINE_TUNING
    if args.recipe:
        recipes, variant = RECIPES[args.recipe], variant_of(config)
        if variant not in recipes:
            raise CommandError(f"--recipe {args.recipe}: the model has none of the sizes {', '.join(recipes)}")
        recipe = recipes[variant]
    return recipe.changed(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        backbone_lr=args.backbone_lr,
        lr_drop_epoch=args.lr_drop_epoch,
        base_size_repeats=args.multi_scale_repeats,
        weight_decay=args.weight_decay,
        mixup=args.mixup,
        copy_paste=args.copy_paste,
    )


def get_dataloaders(
    args: argparse.Namespace,
    accelerator: Accelerator,
    recipe: Recipe,
    datasets: tuple[CocoPoseDataset, CocoPoseDataset],
    image_processor: DETRPoseImageProcessor,
) -> tuple[DataLoader, DataLoader]:
    """Returns the data loaders for training and evaluation; accelerate distributes their batches among the processes.

    Images are copied to the device as uint8; scaled and normalized there.
    """
    pin_memory = accelerator.device.type == "cuda"
    shares = accelerator.num_processes * args.gradient_accumulation_steps
    if recipe.batch_size % shares:
        raise CommandError(
            f"--batch-size {recipe.batch_size} cannot be shared by {accelerator.num_processes} processes in "
            f"{args.gradient_accumulation_steps} steps each"
        )
    train_loader = train_dataloader(
        datasets[0],
        recipe.batch_size // shares,
        args.size,
        UNCHANGED if args.no_augment else recipe.phases(),
        recipe.base_size_repeats,
        args.seed,
        args.num_workers,
        accelerator.num_processes,
        pin_memory,
        scaled=False,
    )
    val_loader = evaluation_dataloader(
        datasets[1], args.eval_batch_size, image_processor, args.num_workers, pin_memory, scaled=False
    )
    return train_loader, val_loader


def get_settings(
    args: argparse.Namespace,
    accelerator: Accelerator,
    recipe: Recipe,
    datasets: tuple[CocoPoseDataset, CocoPoseDataset],
) -> Settings:
    """Returns the settings that `--resume` compares; folders are not among them, as they may have moved."""
    files = (args.train_annotations, args.val_annotations)
    train_data, val_data = (f"{file.name} ({len(data)} images)" for file, data in zip(files, datasets, strict=True))
    changes = {"model": Path(args.model).name, "train_annotations": train_data, "val_annotations": val_data}
    changes["schema"] = args.schema and Path(args.schema).name
    changes |= {"mixed_precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes}
    return Settings.of({**vars(args), **asdict(recipe), **changes})


@dataclass
class Training:
    """Everything a training run needs, prepared by accelerate where necessary."""

    args: argparse.Namespace
    accelerator: Accelerator
    recipe: Recipe
    model: torch.nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train_loader: DataLoader
    val_loader: DataLoader
    image_processor: DETRPoseImageProcessor
    metric: KeypointMetric
    progress: Progress
    checkpoints: Checkpoints
    steps_per_epoch: int
    watch: SignalWatch
    reports: StepReports


def prepare(args: argparse.Namespace, accelerator: Accelerator) -> Training:
    """Checks and builds everything the training run needs."""
    annotations = get_annotations(args)
    datasets = get_datasets(args, accelerator, annotations)
    model = get_model(args, datasets[0])
    recipe = get_recipe(args, model.config)
    schema = model.config.keypoint_schema
    image_processor = get_image_processor(args, schema)
    metric = METRICS[args.metric](annotations[1], schema)
    loaders = get_dataloaders(args, accelerator, recipe, datasets, image_processor)
    optimizer = build_optimizer(
        model, recipe.lr, recipe.backbone_lr, recipe.weight_decay, recipe.decay_norms_and_biases
    )
    model = convert_sync_batch_norms(model, accelerator.num_processes, accelerator.device).to(accelerator.device)
    average = WeightAverage(model, args.ema_decay)
    # Batches stay on the host, where checking their labels does not wait for a GPU.
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        model, optimizer, *loaders, device_placement=[True, True, False, False]
    )
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    warmup_steps = recipe.warmup_steps(steps_per_epoch) if args.warmup_steps is None else args.warmup_steps
    drop_step = None if recipe.lr_drop_epoch is None else recipe.lr_drop_epoch * steps_per_epoch
    # Not prepared: accelerate would step it once for each process.
    scheduler = build_scheduler(optimizer, warmup_steps, drop_step)
    progress, watch = Progress(), SignalWatch()
    settings = get_settings(args, accelerator, recipe, datasets)
    checkpoints = Checkpoints(args.output, accelerator, average, scheduler, progress, settings)
    logger.info("%d epochs of %d steps, of which %d warm up", recipe.epochs, steps_per_epoch, warmup_steps)
    return Training(
        args, accelerator, recipe, model, average, optimizer, scheduler, train_loader, val_loader, image_processor,
        metric, progress, checkpoints, steps_per_epoch, watch, StepReports(accelerator, progress, watch),
    )  # fmt: skip


def training_function(training: Training):
    """Trains epoch by epoch; evaluates and saves every `--eval-epochs` epochs and after the last."""
    args, recipe, progress = training.args, training.recipe, training.progress
    total = training.steps_per_epoch * recipe.epochs
    hidden = not training.accelerator.is_main_process
    with tqdm(total=total, initial=progress.step, desc="training", unit="step", disable=hidden) as bar, training.watch:
        while progress.epoch < recipe.epochs:
            train_epoch(training, bar)
            if (progress.epoch + 1) % args.eval_epochs == 0 or progress.epoch + 1 == recipe.epochs:
                save_state(training)  # if the evaluation is interrupted, the epoch is not lost
                evaluate_and_save(training)
            else:
                progress.count_epoch()


def train_epoch(training: Training, bar: tqdm):
    """Trains to the end of the current epoch."""
    args, progress = training.args, training.progress
    if progress.epoch_step == training.steps_per_epoch:  # resumed before its evaluation
        return
    if progress.epoch_step == 0:
        progress.begin_epoch()
    training.model.train()
    training.train_loader.set_epoch(progress.epoch)
    num_seen = progress.epoch_step * args.gradient_accumulation_steps
    loader = skip_first_batches(training.train_loader, num_seen) if num_seen else training.train_loader
    for batches in batches_by_step(loader, args.gradient_accumulation_steps):
        report = train_step(training, batches)
        show(training, report, bar)
        if training.reports.must_stop:
            save_state(training)
            raise training.watch.interruption(progress)
        if args.save_steps and progress.step % args.save_steps == 0:
            save_state(training)
    training.reports.receive()


def train_step(training: Training, batches: list[dict[str, Any]]) -> StepReport | None:
    """Takes one optimizer step on the gradients of all batches; returns the report of the previous step."""
    args, accelerator, progress, model = training.args, training.accelerator, training.progress, training.model
    first = progress.epoch_step * args.gradient_accumulation_steps
    image_ids = [int(label["image_id"]) for batch in batches for label in batch["labels"]]
    losses: dict[str, torch.Tensor] = {}
    try:
        inputs = prepare_inputs(accelerator.unwrap_model(model), batches, training.image_processor)
        for index, batch in enumerate(inputs):
            # The noise of the denoising queries depends on nothing but the batch, so that resuming repeats it.
            torch.manual_seed(seed_for(args.seed, accelerator.process_index, progress.epoch, first + index))
            with nullcontext() if index + 1 == len(inputs) else accelerator.no_sync(model):
                batch_losses = compute_losses(training, batch)
                accelerator.backward(batch_losses["loss"])
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in batch_losses.items()}
    except ValueError as error:  # predictions that cannot be matched, because they are not finite
        raise CommandError(f"epoch {progress.epoch}, step {progress.step}, images {image_ids}: {error}") from error
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
    step_if_finite(accelerator, training.optimizer, grad_norm)
    training.scheduler.step()
    training.average.update_parameters(accelerator.unwrap_model(model))
    progress.count_step()
    return training.reports.send(progress.step, image_ids, losses, grad_norm)


def compute_losses(training: Training, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the losses of a batch by name; their sum is "loss"."""
    outputs = training.model(**batch)
    return {"loss": outputs.loss, **outputs.loss_dict}


def show(training: Training, report: StepReport | None, bar: tqdm):
    """Updates the progress bar and the trackers, with the loss of the previous step, which is already available."""
    rate = training.scheduler.get_last_lr()[-1]
    bar.update()
    if report is not None:
        loss = report.losses["loss"]
        bar.set_postfix(epoch=training.progress.epoch, loss=f"{loss:.3f}", lr=f"{rate:.1e}")
        if training.args.report_to:
            training.accelerator.log({**report.losses, "lr": rate}, step=report.step)


def save_state(training: Training):
    """Saves everything that resuming needs, once the last step has finished."""
    training.reports.receive()
    training.checkpoints.save_state()


def evaluate_and_save(training: Training):
    """Evaluates the averaged weights, and saves scores, weights and state."""
    args, accelerator, progress = training.args, training.accelerator, training.progress
    model, processor, checkpoints = training.average.module.eval(), training.image_processor, training.checkpoints
    loader = training.watch.watched(loaded(training.val_loader), progress)
    poses = evaluate_model(model, processor, loader, training.metric, accelerator.is_main_process)
    scores = on_first_process(accelerator, lambda: score(training.metric, poses))
    progress.count_epoch()
    backbone_lr, *_, lr = training.scheduler.get_last_lr()
    rates = {"lr": lr, "backbone_lr": backbone_lr, "skipped_steps": progress.skipped}
    line = checkpoints.add_scores({**progress.mean_losses(), **rates, **scores})
    if accelerator.is_main_process:
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
    if args.report_to:
        accelerator.log(scores, step=progress.step)
    origin = f"Trained for {progress.epoch} epochs on {args.train_annotations.name}."
    checkpoints.save_weights("last", processor, origin, scores)
    if scores["AP"] > progress.best_ap:
        progress.best_ap = scores["AP"]
        checkpoints.save_weights("best", processor, origin, scores)
    checkpoints.save_state()


def score(metric: KeypointMetric, poses: dict[int, Poses]) -> dict[str, float]:
    """Returns the scores of the metric and, if there are several classes, the average precision of each."""
    of_classes = {f"AP {name}": scores["AP"] for name, scores in metric.score_classes(poses).items()}
    return {**metric.score(poses), **of_classes}


def check_output(folder: Path):
    """Raises `CommandError` if the output folder is not empty."""
    try:
        check_new_folder(folder)
    except FileExistsError as error:
        raise CommandError(f"--output {folder}: not empty; give --resume or another folder") from error


def train(args: argparse.Namespace):
    """Checks everything first, then trains."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output),
    )
    set_seed(args.seed)
    if not accelerator.is_main_process:  # only the first process logs
        logging.getLogger("transformers_detrpose").setLevel(logging.ERROR)
    if not args.resume:
        on_first_process(accelerator, lambda: check_output(args.output))
    training = prepare(args, accelerator)
    args.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("detrpose", {key: str(value) for key, value in vars(args).items()})
    if args.resume:
        training.checkpoints.load_state()
        progress = training.progress
        finished = progress.epoch >= training.recipe.epochs
        state = "finished already: nothing to do" if finished else "resumed"
        logger.info("%s after epoch %d, step %d", state, progress.epoch, progress.step)
    try:
        training_function(training)
    except LoadingError as error:
        if accelerator.num_processes == 1:  # the others do not know of it
            save_state(training)
        raise CommandError(f"{error}; --resume goes on after step {training.progress.step}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # PyTorch raises it anywhere, even in the middle of a step, whose state could not be saved.
        raise CommandError(f"{first_line(error)} --resume goes on from {args.output / 'state'}") from error
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file that it saves
    try:
        return run_command("detrpose train", train, parse_arguments(argv))
    except Interrupted as interruption:
        if PartialState().is_main_process:
            tqdm.write(f"detrpose train: {interruption}", file=sys.stderr)
        return interruption.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
