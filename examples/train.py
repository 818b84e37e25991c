"""Trains DETRPose on a dataset in COCO's keypoint format.

    accelerate launch examples/train.py --model detrpose-l-init --recipe coco \\
        --train-images train2017 --train-annotations person_keypoints_train2017.json \\
        --val-images val2017 --val-annotations person_keypoints_val2017.json \\
        --output detrpose-l-coco

The model is a folder or Hub id to go on from (other keypoints or classes than its own get fresh heads), or a variant
(n, s, m, l, x) to start from random weights, which needs `--unfreeze-backbone-norms`. The skeleton and the classes are
those of the training annotations. `--recipe` sets the paper's epochs, batch size and learning rates for the model's
size; any option given besides wins over it.

The output folder holds, always complete: `last` and `best` (averaged weights, for `from_pretrained`), `metrics.jsonl`
(a line per evaluation) and `state`, from which `--resume` goes on exactly as if nothing had happened.
"""

import argparse
import json
import logging
import math
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import ProjectConfiguration, set_seed
from torch.distributed.nn.functional import all_reduce  # differentiable, unlike torch.distributed's
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers import AutoConfig

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.commands.command_line import CommandError, count
from transformers_detrpose.configuration_detrpose import VARIANTS
from transformers_detrpose.data import (
    BASE_SIZE_REPEATS,
    CocoPoseDataset,
    check_dataset,
    evaluation_dataloader,
    paper_phases,
    train_dataloader,
)
from transformers_detrpose.data.augmentation import UNCHANGED, seed_for
from transformers_detrpose.evaluation import CocoKeypoints, CrowdPoseKeypoints
from transformers_detrpose.model_card import model_card

logger = logging.getLogger("train")

METRICS_FILE = "metrics.jsonl"
METRICS = {"coco": CocoKeypoints, "crowdpose": CrowdPoseKeypoints}


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a size is trained; the rest is the same for all (paper, section 4.1)."""

    epochs: int
    backbone_lr: float
    lr: float = 1e-4
    lr_drop_epoch: int | None = None  # the first epoch at a tenth of the learning rates
    batch_size: int = 16  # of all processes together


RECIPES = {
    "coco": {
        "n": Recipe(160, 1e-4),
        "s": Recipe(100, 1e-4),
        "m": Recipe(64, 1e-5, lr_drop_epoch=15),
        "l": Recipe(52, 1e-5),
        "x": Recipe(52, 5e-5),
    },
    # N is trained for 284 epochs there; the others longer in the same proportion.
    "crowdpose": {
        "n": Recipe(284, 1e-4),
        "s": Recipe(178, 1e-4),
        "m": Recipe(114, 1e-5, lr_drop_epoch=27),
        "l": Recipe(92, 1e-5),
        "x": Recipe(92, 5e-5),
    },
}


@dataclass
class Progress:
    """Where the training is: epochs done, steps done in the current epoch, steps done in all, the best AP so far."""

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best_ap: float = -1.0

    def state_dict(self) -> dict[str, Any]:
        """Returns what `accelerate` saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]):
        """Takes over what `accelerate` has saved."""
        self.__dict__.update(state)


def load_model(args: argparse.Namespace, dataset: CocoPoseDataset) -> DETRPoseForPoseEstimation:
    """Builds the model to train, with the skeleton and the classes of the dataset."""
    changes = {**args.set, "keypoint_schema": dataset.schema, "id2label": dataset.id2label}
    if args.unfreeze_backbone_norms:
        changes["freeze_backbone_batch_norms"] = False
    if args.model in VARIANTS:
        schema = changes.pop("keypoint_schema")
        return DETRPoseForPoseEstimation(DETRPoseConfig.from_variant(args.model, skeleton=schema, **changes))
    config = AutoConfig.from_pretrained(args.model)
    fields = {**config.to_dict(), **changes}
    fields.pop("label2id", None)
    config = DETRPoseConfig.from_dict(fields)
    return DETRPoseForPoseEstimation.from_pretrained(args.model, config=config, ignore_mismatched_sizes=True)


def variant_of(config: DETRPoseConfig) -> str | None:
    """Returns the published size that a configuration has, or None."""

    def shape(config):
        backbone = config.backbone_config.to_dict()
        return config.d_model, config.decoder_layers, config.depth_mult, backbone.get("stage_mid_channels")

    shapes = {variant: shape(DETRPoseConfig.from_variant(variant)) for variant in VARIANTS}
    return next((variant for variant in VARIANTS if shapes[variant] == shape(config)), None)


def apply_recipe(args: argparse.Namespace, variant: str | None):
    """Fills the options that were not given from the recipe, or with modest values where there is none."""
    if args.recipe and variant is None:
        raise CommandError(f"--recipe {args.recipe}: the model has none of the sizes {', '.join(VARIANTS)}")
    recipe = RECIPES[args.recipe][variant] if args.recipe else Recipe(epochs=20, backbone_lr=1e-4)
    for field, value in asdict(recipe).items():
        if getattr(args, field) is None:
            setattr(args, field, value)
    if args.multi_scale_repeats is None:
        args.multi_scale_repeats = BASE_SIZE_REPEATS[variant] if args.recipe else 0


class SyncedBatchNorm2d(torch.nn.BatchNorm2d):
    """Batch norm over the batches of all processes; PyTorch's own, `SyncBatchNorm`, needs a GPU."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(hidden_state)
        local_count = hidden_state.new_full((1,), hidden_state.numel() / hidden_state.shape[1])
        sums, count = all_reduce(torch.cat((hidden_state.sum((0, 2, 3)), local_count))).split((self.num_features, 1))
        mean = sums / count
        centered = hidden_state - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centered * scale[:, None, None] + self.bias[:, None, None]


def sync_batch_norms(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Makes batch norms see the batches of all processes; frozen ones stay as they are."""
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type != "cpu":
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is torch.nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return model


def build_optimizer(model: DETRPoseForPoseEstimation, args: argparse.Namespace) -> torch.optim.AdamW:
    """Returns AdamW with a learning rate of its own for the backbone."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if ".backbone." in name], "lr": args.backbone_lr},
        {"params": [p for name, p in named if ".backbone." not in name], "lr": args.lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=args.weight_decay)


def build_scheduler(optimizer, args: argparse.Namespace, steps_per_epoch: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns constant learning rates after a linear warm-up, a tenth of them from `lr_drop_epoch` on."""

    def factor(step: int) -> float:
        dropped = args.lr_drop_epoch is not None and step >= args.lr_drop_epoch * steps_per_epoch
        return min(1.0, (step + 1) / max(1, args.warmup_steps)) * (0.1 if dropped else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def build_average(model: DETRPoseForPoseEstimation, decay: float) -> AveragedModel:
    """Returns the moving average of the weights, which follows quickly at first: decay · (1 - exp(-step / 2000))."""

    def average(averaged: torch.Tensor, current: torch.Tensor, step: torch.Tensor | int) -> torch.Tensor:
        if not averaged.is_floating_point():
            return current
        return averaged.lerp(current, 1 - decay * (1 - math.exp(-(int(step) + 1) / 2000)))

    return AveragedModel(model, avg_fn=average, use_buffers=True)


class Trainer:
    """Everything that one training consists of; `run` does it.

    Args:
        args: the command line, completed by `apply_recipe`.
        accelerator: of this process.
        model: to train.
        train_dataset: what to learn from.
        val_dataset: what to be measured on.
    """

    def __init__(self, args, accelerator: Accelerator, model, train_dataset, val_dataset):
        self.args, self.accelerator = args, accelerator
        processes = accelerator.num_processes
        batch_size = args.batch_size // (processes * args.gradient_accumulation_steps)
        if batch_size * processes * args.gradient_accumulation_steps != args.batch_size:
            raise CommandError(f"--batch-size {args.batch_size} cannot be shared by {processes} processes")
        self.processor = DETRPoseImageProcessor(
            keypoint_schema=model.config.keypoint_schema, size={"height": args.size, "width": args.size}
        )
        self.metric = METRICS[args.metric](args.val_annotations, model.config.keypoint_schema)
        train_loader = train_dataloader(
            train_dataset,
            batch_size,
            args.size,
            paper_phases(args.epochs) if args.augment else UNCHANGED,
            args.multi_scale_repeats,
            args.seed,
            args.num_workers,
            processes,
        )
        val_loader = evaluation_dataloader(val_dataset, args.eval_batch_size, args.size, args.num_workers)
        optimizer = build_optimizer(model, args)
        model = sync_batch_norms(model, accelerator).to(accelerator.device)
        self.average = build_average(model, args.ema_decay)
        self.model, self.optimizer, self.train_loader, self.val_loader = accelerator.prepare(
            model, optimizer, train_loader, val_loader
        )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps)
        # Not prepared: accelerate would step it once for each process.
        self.scheduler = build_scheduler(optimizer, args, self.steps_per_epoch)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.average, self.scheduler, self.progress)

    def run(self):
        """Trains epoch by epoch; evaluates and saves after every `--eval-epochs` of them and the last."""
        if self.args.resume:
            self.resume()
        total = self.steps_per_epoch * self.args.epochs
        main = self.accelerator.is_main_process
        with tqdm(total=total, initial=self.progress.step, desc="training", unit="step", disable=not main) as bar:
            while self.progress.epoch < self.args.epochs:
                self.train_epoch(bar)
                self.progress.epoch, self.progress.epoch_step = self.progress.epoch + 1, 0
                if self.progress.epoch % self.args.eval_epochs and self.progress.epoch < self.args.epochs:
                    continue
                scores = self.evaluate()
                self.report(scores)
                is_best = scores["AP"] > self.progress.best_ap
                self.progress.best_ap = max(self.progress.best_ap, scores["AP"])
                self.save_weights("last", scores)
                if is_best:
                    self.save_weights("best", scores)
                self.save_state()
        self.accelerator.end_training()

    def train_epoch(self, bar: tqdm):
        """Trains to the end of the current epoch."""
        self.model.train()
        self.train_loader.set_epoch(self.progress.epoch)
        loader = self.train_loader
        if self.progress.epoch_step:
            done = self.progress.epoch_step * self.args.gradient_accumulation_steps
            loader = skip_first_batches(self.train_loader, done)
        for batch in loader:
            # The noise of the denoising queries depends on nothing but the step, so that resuming repeats it.
            torch.manual_seed(seed_for(self.args.seed, self.accelerator.process_index, self.progress.step))
            with self.accelerator.accumulate(self.model):
                loss = self.compute_loss(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.args.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.after_step(loss, bar)

    def compute_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns the loss of a batch, or stops the training if it is not a finite number."""
        try:
            loss = self.model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        except ValueError as error:  # predictions that cannot be matched, because they are not finite
            raise CommandError(f"{self.describe(batch)}: {error}") from error
        if not torch.isfinite(loss):
            raise CommandError(f"{self.describe(batch)}: the loss is {loss.item()}")
        return loss

    def describe(self, batch: dict[str, Any]) -> str:
        """Says which images a batch has, for an error message."""
        ids = [int(label["image_id"]) for label in batch["labels"]]
        return f"epoch {self.progress.epoch}, step {self.progress.step}, images {ids}"

    def after_step(self, loss: torch.Tensor, bar: tqdm):
        """Averages, counts, shows and, where asked to, saves."""
        self.scheduler.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        self.progress.step += 1
        self.progress.epoch_step += 1
        bar.update()
        lr = self.scheduler.get_last_lr()[-1]
        bar.set_postfix(epoch=self.progress.epoch, loss=f"{loss.item():.3f}", lr=f"{lr:.1e}")
        if self.args.report_to:
            self.accelerator.log({"loss": loss.item(), "lr": lr}, step=self.progress.step)
        if self.args.save_steps and self.progress.step % self.args.save_steps == 0:
            self.save_state()

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Returns the scores of the averaged weights, the same on every process."""
        model = self.average.module.eval()
        self.metric.reset()
        for batch in tqdm(
            self.val_loader, desc="evaluating", leave=False, disable=not self.accelerator.is_main_process
        ):
            outputs = model(batch["pixel_values"])
            sizes = torch.stack([label["orig_size"] for label in batch["labels"]])
            poses = self.processor.post_process_keypoint_detection(outputs, threshold=0.0, target_sizes=sizes)
            self.metric.update([int(label["image_id"]) for label in batch["labels"]], poses)
        return self.metric.compute()

    def report(self, scores: dict[str, float]):
        """Writes the scores of an epoch to `metrics.jsonl`, the trackers and the screen."""
        if not self.accelerator.is_main_process:
            return
        line = {"epoch": self.progress.epoch, "step": self.progress.step, **scores}
        with open(self.args.output / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
        if self.args.report_to:
            self.accelerator.log(scores, step=self.progress.step)

    def save_weights(self, name: str, scores: dict[str, float]):
        """Writes the averaged weights into a folder for `from_pretrained`, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        partial = self.args.output / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        model = self.average.module
        model.save_pretrained(partial)
        self.processor.save_pretrained(partial)
        origin = f"Trained for {self.progress.epoch} epochs on {self.args.train_annotations.name}."
        card = model_card(model.config, str(self.args.output / name), origin, metrics=scores)
        (partial / "README.md").write_text(card, encoding="utf-8")
        replace_folder(partial, self.args.output / name)

    def save_state(self):
        """Writes everything that resuming needs, whole or not at all."""
        partial = self.args.output / ".state"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            replace_folder(partial, self.args.output / "state")
        self.accelerator.wait_for_everyone()

    def resume(self):
        """Goes back to the last saved state."""
        state = self.args.output / "state"
        if not state.is_dir():  # killed while the folder was being replaced
            state = self.args.output / ".old-state"
        if not state.is_dir():
            raise CommandError(f"--resume: {self.args.output} holds no state to resume from")
        self.accelerator.load_state(state)
        self.forget_later_scores()
        logger.info("resumed after epoch %d, step %d", self.progress.epoch, self.progress.step)

    def forget_later_scores(self):
        """Drops the scores of epochs after the resumed state, which a kill before saving it has left behind."""
        metrics = self.args.output / METRICS_FILE
        if self.accelerator.is_main_process and metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = (line for line in lines if json.loads(line)["epoch"] <= self.progress.epoch)
            metrics.write_text("".join(kept), encoding="utf-8")


def replace_folder(partial: Path, target: Path):
    """Puts a complete folder in the place of another; a kill in between leaves at least one of them complete."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def field_value(text: str) -> tuple[str, Any]:
    """Reads FIELD=VALUE, the value as JSON where it is JSON."""
    field, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError:
        return field, value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains DETRPose on a dataset in COCO's keypoint format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--model", **required, help="folder or Hub id to go on from, or n, s, m, l, x to start fresh")
    parser.add_argument("--train-images", type=Path, **required, metavar="DIR", help="folder of the training images")
    parser.add_argument(
        "--train-annotations", type=Path, **required, metavar="FILE", help="their COCO-format JSON file"
    )
    parser.add_argument("--val-images", type=Path, **required, metavar="DIR", help="folder of the validation images")
    parser.add_argument("--val-annotations", type=Path, **required, metavar="FILE", help="their COCO-format JSON file")
    parser.add_argument("--output", type=Path, **required, metavar="DIR", help="folder for checkpoints and metrics")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument("--recipe", choices=list(RECIPES), help="the paper's recipe for the model's size")
    parser.add_argument("--metric", choices=list(METRICS), default="coco", help="whose definition of the scores")

    recipe = parser.add_argument_group("set by --recipe unless given")
    recipe.add_argument("--epochs", type=count, help="passes over the training images; 20 without a recipe")
    recipe.add_argument(
        "--batch-size", type=count, help="images per step, of all processes together; 16 without a recipe"
    )
    recipe.add_argument("--lr", type=float, help="learning rate; 1e-4 without a recipe")
    recipe.add_argument("--backbone-lr", type=float, help="learning rate of the backbone; 1e-4 without a recipe")
    recipe.add_argument("--lr-drop-epoch", type=int, help="first epoch at a tenth of the learning rates")
    recipe.add_argument(
        "--multi-scale-repeats", type=int, help="how often --size is among the sizes of batches; 0 for no other size"
    )

    parser.add_argument("--size", type=count, default=640, help="height and width of the images in pixels")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="of AdamW")
    parser.add_argument("--warmup-steps", type=int, default=500, help="steps of linear warm-up")
    parser.add_argument("--max-grad-norm", type=float, default=0.1, help="gradients are clipped to this norm; 0: never")
    parser.add_argument("--ema-decay", type=float, default=0.9999, help="decay of the averaged weights per step")
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="only resize the training images")
    parser.add_argument(
        "--unfreeze-backbone-norms", action="store_true", help="train the backbone's norms, as random weights need"
    )
    parser.add_argument(
        "--set", type=field_value, nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the configuration"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation and noise")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that load images, for each that trains")
    parser.add_argument("--eval-batch-size", type=count, default=16, help="images per process in evaluation")
    parser.add_argument("--eval-epochs", type=count, default=1, help="epochs between evaluations, and saved states")
    parser.add_argument("--gradient-accumulation-steps", type=count, default=1, help="backward passes per step")
    parser.add_argument("--mixed-precision", choices=["no", "fp16", "bf16"], default="no", help="precision of training")
    parser.add_argument("--save-steps", type=int, default=0, help="steps between saved states; 0: with evaluations")
    parser.add_argument("--report-to", help="tracker that accelerate knows, such as tensorboard or wandb")
    parser.add_argument("--decode-images", action="store_true", help="decode all images once to find broken ones first")
    args = parser.parse_args(argv)
    args.set = dict(args.set)
    return args


def train(args: argparse.Namespace):
    """Checks everything first, then trains."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output),
    )
    set_seed(args.seed)
    if args.output.exists() and any(args.output.iterdir()) and not args.resume:
        raise CommandError(f"--output {args.output}: not empty; give --resume or another folder")
    # The paper learns from the images with people alone.
    train_dataset = CocoPoseDataset(args.train_images, args.train_annotations, only_with_people=bool(args.recipe))
    val_dataset = CocoPoseDataset(args.val_images, args.val_annotations)
    for dataset in (train_dataset, val_dataset):
        check_dataset(dataset, "decode" if args.decode_images else "header", progress=accelerator.is_main_process)
    model = load_model(args, train_dataset)
    apply_recipe(args, variant_of(model.config))
    args.output.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("detrpose", {key: str(value) for key, value in vars(args).items()})
    Trainer(args, accelerator, model, train_dataset, val_dataset).run()


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it would name every file that it saves
    args = parse_arguments(argv)
    try:
        train(args)
    except (CommandError, ValueError, OSError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
