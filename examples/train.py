"""Trains DETRPose on a dataset in COCO's keypoint format.

    accelerate launch examples/train.py --model detrpose-l-init --recipe coco \\
        --train-images train2017 --train-annotations person_keypoints_train2017.json \\
        --val-images val2017 --val-annotations person_keypoints_val2017.json \\
        --output detrpose-l-coco

The model is a folder or Hub id to go on from (other keypoints or classes than its own get fresh heads), or a variant
(n, s, m, l, x) to start from random weights, which needs `--unfreeze-backbone-norms`. The skeleton and the classes are
those of the training annotations. `--recipe` trains as the published model of this size was trained, for which images
without people are left out; any option given besides wins over it. Without it, the defaults suit small datasets.

The output folder holds, always complete: `last` and `best` (averaged weights, for `from_pretrained`), `metrics.jsonl`
(a line per evaluation) and `state`, from which `--resume` goes on exactly as if nothing had happened.
"""

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands.command_line import CommandError, count, field_value, number, run_command
from transformers_detrpose.data import CocoPoseDataset, check_dataset, evaluation_dataloader, train_dataloader
from transformers_detrpose.data.augmentation import UNCHANGED, seed_for
from transformers_detrpose.evaluation import METRICS, KeypointMetric, evaluate_model
from transformers_detrpose.files import check_new_folder
from transformers_detrpose.loading import load_config, load_model
from transformers_detrpose.training import (
    FINE_TUNING,
    RECIPES,
    Checkpoints,
    Progress,
    Recipe,
    build_average,
    build_optimizer,
    build_scheduler,
    convert_sync_batch_norms,
    variant_of,
)

logger = logging.getLogger("transformers_detrpose.train")


def get_datasets(args: argparse.Namespace, accelerator: Accelerator) -> tuple[CocoPoseDataset, CocoPoseDataset]:
    """Returns the images to learn from and the images to be measured on, both checked."""
    # The published models have seen images with people only.
    train_dataset = CocoPoseDataset(args.train_images, args.train_annotations, only_with_people=bool(args.recipe))
    val_dataset = CocoPoseDataset(args.val_images, args.val_annotations)
    for dataset in (train_dataset, val_dataset):
        images = "decode" if args.decode_images else "header"
        try:
            report = check_dataset(dataset, images, progress=accelerator.is_main_process)
        except ValueError as error:
            raise CommandError(f"{dataset.image_folder}: {' '.join(str(error).split())}") from error
        if not report.num_people:
            raise CommandError(f"{dataset.image_folder}: its {report.num_images} images have no labelled keypoints")
    if args.recipe:
        left_out = len(train_dataset.image_ids) - len(train_dataset)
        logger.info("--recipe %s: %d images without people are left out", args.recipe, left_out)
    return train_dataset, val_dataset


def get_model(args: argparse.Namespace, dataset: CocoPoseDataset) -> DETRPoseForPoseEstimation:
    """Returns the model to train, with the skeleton and the classes of the dataset."""
    changes = {**args.set, "keypoint_schema": dataset.schema, "id2label": dataset.id2label}
    if args.unfreeze_backbone_norms:
        changes["freeze_backbone_batch_norms"] = False
    return load_model(args.model, load_config(args.model, **changes))


def get_recipe(args: argparse.Namespace, config: DETRPoseConfig) -> Recipe:
    """Returns the recipe that was asked for, with the options that were given."""
    recipe = FINE_TUNING
    if args.recipe:
        variant = variant_of(config)
        if variant is None:
            raise CommandError(f"--recipe {args.recipe}: the model has none of the sizes {', '.join(RECIPES['coco'])}")
        recipe = RECIPES[args.recipe][variant]
    return recipe.changed(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        backbone_lr=args.backbone_lr,
        lr_drop_epoch=args.lr_drop_epoch,
        base_size_repeats=args.multi_scale_repeats,
    )


def get_dataloaders(
    args: argparse.Namespace,
    accelerator: Accelerator,
    recipe: Recipe,
    datasets: tuple[CocoPoseDataset, CocoPoseDataset],
    image_processor: DETRPoseImageProcessor,
) -> tuple[DataLoader, DataLoader]:
    """Returns the loaders of training and evaluation; accelerate shares their batches among the processes."""
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
    )
    return train_loader, evaluation_dataloader(datasets[1], args.eval_batch_size, image_processor, args.num_workers)


@dataclass
class Training:
    """What the functions below work on, all of it prepared by accelerate where it has to be."""

    args: argparse.Namespace
    accelerator: Accelerator
    recipe: Recipe
    model: torch.nn.Module
    average: torch.optim.swa_utils.AveragedModel
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train_loader: DataLoader
    val_loader: DataLoader
    image_processor: DETRPoseImageProcessor
    metric: KeypointMetric
    progress: Progress
    checkpoints: Checkpoints
    steps_per_epoch: int


def prepare(args: argparse.Namespace, accelerator: Accelerator) -> Training:
    """Checks and builds everything that a training needs."""
    datasets = get_datasets(args, accelerator)
    model = get_model(args, datasets[0])
    recipe = get_recipe(args, model.config)
    schema = model.config.keypoint_schema
    image_processor = DETRPoseImageProcessor(keypoint_schema=schema, size={"height": args.size, "width": args.size})
    metric = METRICS[args.metric](args.val_annotations, schema)
    loaders = get_dataloaders(args, accelerator, recipe, datasets, image_processor)
    optimizer = build_optimizer(model, recipe.lr, recipe.backbone_lr, args.weight_decay)
    model = convert_sync_batch_norms(model, accelerator.num_processes, accelerator.device).to(accelerator.device)
    average = build_average(model, args.ema_decay)
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, *loaders)
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    warmup_steps = recipe.warmup_steps(steps_per_epoch) if args.warmup_steps is None else args.warmup_steps
    drop_step = None if recipe.lr_drop_epoch is None else recipe.lr_drop_epoch * steps_per_epoch
    # Not prepared: accelerate would step it once for each process.
    scheduler = build_scheduler(optimizer, warmup_steps, drop_step)
    progress = Progress()
    checkpoints = Checkpoints(args.output, accelerator, average, scheduler, progress)
    logger.info("%d epochs of %d steps, of which %d warm up", recipe.epochs, steps_per_epoch, warmup_steps)
    return Training(
        args, accelerator, recipe, model, average, optimizer, scheduler, train_loader, val_loader, image_processor,
        metric, progress, checkpoints, steps_per_epoch,
    )  # fmt: skip


def training_function(training: Training):
    """Trains epoch by epoch; evaluates and saves after every `--eval-epochs` of them and the last."""
    args, recipe, progress = training.args, training.recipe, training.progress
    total = training.steps_per_epoch * recipe.epochs
    hidden = not training.accelerator.is_main_process
    with tqdm(total=total, initial=progress.step, desc="training", unit="step", disable=hidden) as bar:
        while progress.epoch < recipe.epochs:
            train_epoch(training, bar)
            progress.count_epoch()
            if progress.epoch % args.eval_epochs == 0 or progress.epoch == recipe.epochs:
                evaluate_and_save(training)


def train_epoch(training: Training, bar: tqdm):
    """Trains to the end of the current epoch."""
    args, accelerator, progress = training.args, training.accelerator, training.progress
    training.model.train()
    training.train_loader.set_epoch(progress.epoch)
    loader = training.train_loader
    num_seen = progress.epoch_step * args.gradient_accumulation_steps
    if num_seen:  # resumed in the midst of an epoch
        loader = skip_first_batches(loader, num_seen)
    for index, batch in enumerate(loader, num_seen):
        # The noise of the denoising queries depends on nothing but the batch, so that resuming repeats it.
        torch.manual_seed(seed_for(args.seed, accelerator.process_index, progress.epoch, index))
        with accelerator.accumulate(training.model):
            loss = compute_loss(training, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients and args.max_grad_norm:
                accelerator.clip_grad_norm_(training.model.parameters(), args.max_grad_norm)
            training.optimizer.step()
            training.optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        training.scheduler.step()
        training.average.update_parameters(accelerator.unwrap_model(training.model))
        progress.count_step()
        show(training, loss, bar)
        if args.save_steps and progress.step % args.save_steps == 0:
            training.checkpoints.save_state()


def compute_loss(training: Training, batch: dict[str, Any]) -> torch.Tensor:
    """Returns the loss of a batch, or stops the training if it is not a finite number."""
    try:
        loss = training.model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        problem = None if torch.isfinite(loss) else f"the loss is {loss.item()}"
    except ValueError as error:  # predictions that cannot be matched, because they are not finite
        problem = str(error)
    if problem:
        ids = [int(label["image_id"]) for label in batch["labels"]]
        raise CommandError(f"epoch {training.progress.epoch}, step {training.progress.step}, images {ids}: {problem}")
    return loss


def show(training: Training, loss: torch.Tensor, bar: tqdm):
    """Shows a step in the progress bar and to the trackers."""
    rate = training.scheduler.get_last_lr()[-1]
    bar.update()
    bar.set_postfix(epoch=training.progress.epoch, loss=f"{loss.item():.3f}", lr=f"{rate:.1e}")
    if training.args.report_to:
        training.accelerator.log({"loss": loss.item(), "lr": rate}, step=training.progress.step)


def evaluate_and_save(training: Training):
    """Measures the averaged weights, and saves scores, weights and state."""
    args, accelerator, progress = training.args, training.accelerator, training.progress
    model, processor, checkpoints = training.average.module.eval(), training.image_processor, training.checkpoints
    poses = evaluate_model(model, processor, training.val_loader, training.metric, accelerator.is_main_process)
    scores = training.metric.score(poses)  # on every process the same
    line = checkpoints.add_scores(scores)
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


def train(args: argparse.Namespace):
    """Checks everything first, then trains."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output),
    )
    set_seed(args.seed)
    if not accelerator.is_main_process:  # the first process says everything
        logging.getLogger("transformers_detrpose").setLevel(logging.ERROR)
    try:
        if not args.resume:
            check_new_folder(args.output)
    except FileExistsError as error:
        raise CommandError(f"--output {args.output}: not empty; give --resume or another folder") from error
    accelerator.wait_for_everyone()  # before the first process makes it
    training = prepare(args, accelerator)
    args.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("detrpose", {key: str(value) for key, value in vars(args).items()})
    if args.resume:
        training.checkpoints.load_state()
        progress = training.progress
        finished = progress.epoch >= training.recipe.epochs
        state = "finished already: nothing to do" if finished else "resumed"
        logger.info("%s after epoch %d, step %d", state, progress.epoch, progress.step)
    training_function(training)
    accelerator.end_training()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="detrpose train",
        description="Trains DETRPose on a dataset in COCO's keypoint format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    whole = number(0, kind=int)
    required = {"required": True, "default": argparse.SUPPRESS}
    folder = {"type": Path, "metavar": "DIR", **required}
    file = {"type": Path, "metavar": "FILE", **required}
    parser.add_argument("--model", **required, help="folder or Hub id to go on from, or n, s, m, l, x to start fresh")
    parser.add_argument("--train-images", **folder, help="folder of the training images")
    parser.add_argument("--train-annotations", **file, help="their COCO-format JSON file")
    parser.add_argument("--val-images", **folder, help="folder of the validation images")
    parser.add_argument("--val-annotations", **file, help="their COCO-format JSON file")
    parser.add_argument("--output", **folder, help="folder for checkpoints and metrics")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="train as the published model of this size and dataset was trained; leaves out images without people",
    )
    parser.add_argument("--metric", choices=list(METRICS), default="coco", help="whose definition of the scores")

    default = FINE_TUNING
    recipe = parser.add_argument_group("set by --recipe unless given")
    recipe.add_argument("--epochs", type=count, help=f"passes over the images; {default.epochs} without a recipe")
    recipe.add_argument(
        "--batch-size", type=count, help=f"images per step, of all processes; {default.batch_size} without a recipe"
    )
    recipe.add_argument("--lr", type=number(0), help=f"learning rate; {default.lr} without a recipe")
    recipe.add_argument("--backbone-lr", type=number(0), help=f"the backbone's; {default.backbone_lr} without a recipe")
    recipe.add_argument("--lr-drop-epoch", type=count, help="first epoch at a tenth of the learning rates")
    recipe.add_argument(
        "--multi-scale-repeats",
        type=whole,
        help="how often --size is among the sizes of batches; 0 for no other size",
    )
    recipe.add_argument(
        "--warmup-steps",
        type=whole,
        help=f"steps of linear warm-up; without a recipe a tenth of all, at most {default.max_warmup_steps}",
    )

    parser.add_argument("--size", type=count, default=640, help="height and width of the images in pixels")
    parser.add_argument("--weight-decay", type=number(0), default=1e-4, help="of AdamW")
    parser.add_argument("--max-grad-norm", type=number(0), default=0.1, help="gradients are clipped to it; 0: never")
    parser.add_argument("--ema-decay", type=number(0, 1), default=0.9999, help="decay of the averaged weights per step")
    parser.add_argument("--no-augment", action="store_true", help="only resize the training images")
    parser.add_argument(
        "--unfreeze-backbone-norms", action="store_true", help="train the backbone's norms, as random weights need"
    )
    parser.add_argument(
        "--set",
        type=field_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the configuration",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of weights, order, augmentation and noise")
    parser.add_argument("--num-workers", type=whole, default=4, help="processes that load images, for each that trains")
    parser.add_argument("--eval-batch-size", type=count, default=16, help="images per process in evaluation")
    parser.add_argument("--eval-epochs", type=count, default=1, help="epochs between evaluations, and saved states")
    parser.add_argument("--gradient-accumulation-steps", type=count, default=1, help="backward passes per step")
    parser.add_argument(
        "--mixed-precision",
        choices=["no", "fp16", "bf16"],
        help="of training; as `accelerate launch` says if not given",
    )
    parser.add_argument("--save-steps", type=whole, default=0, help="steps between saved states; 0: with evaluations")
    parser.add_argument("--report-to", help="tracker that accelerate knows, such as tensorboard or wandb")
    parser.add_argument("--decode-images", action="store_true", help="decode all images once to find broken ones first")
    args = parser.parse_args(argv)
    args.set = dict(args.set)
    return args


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it would name every file that it saves
    return run_command("detrpose train", train, parse_arguments(argv))


if __name__ == "__main__":
    raise SystemExit(main())
