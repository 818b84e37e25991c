"""Repeats the paper's ablation study (table 4): trains a model with more and more of its components.

    python examples/generate_people.py --output people --size 192 --max-people 2 --min-height 0.6 --plain --upright
    python examples/ablation.py --data people --output ablation --set feature_strides=[8,16]

The components are cumulative: denoising, then heads with distributions (FDR), then the keypoint similarity varifocal
loss (KSVF), then Pose-LQE. The last row is the full method, but with keypoints moved only right and down in denoising,
as in the official code. All models start from the same weights (random, or those of `--model`), see the same training
images in the same order, and are evaluated by COCO's AP on the same validation images. Finished runs are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from tqdm import tqdm

NUM_DENOISING = 4  # fewer than the default, 20, as images have at most two people
TRAIN = Path(__file__).with_name("train.py")
BASELINE = {
    "num_denoising": 0,
    "use_fdr_heads": False,
    "classification_loss": "focal",
    "use_pose_lqe": False,
    "denoising_max_angle": 360,
}
STEPS = {
    "baseline": {},
    "+ pose denoising": {"num_denoising": NUM_DENOISING},
    "+ FDR heads": {"use_fdr_heads": True},
    "+ KSVF loss": {"classification_loss": "ksvf"},
    "+ Pose-LQE": {"use_pose_lqe": True},
    "full, but denoising right and down": {"denoising_max_angle": 90},
}


def configurations() -> dict[str, dict]:
    """Returns the configuration fields of each step by name: its own and those of the preceding steps."""
    fields, steps = dict(BASELINE), {}
    for name, changes in STEPS.items():
        fields = {**fields, **changes}
        steps[name] = fields
    return steps


def train(args: argparse.Namespace, fields: dict, seed: int, output: Path) -> dict[str, float]:
    """Trains one model, unless it is finished already, and returns its last scores."""
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    if not lines or json.loads(lines[-1])["epoch"] < args.epochs:
        settings = [f"{field}={json.dumps(value)}" for field, value in fields.items()]
        command = [sys.executable, str(TRAIN), "--model", args.model, "--unfreeze-backbone-norms", "--no-augment"]
        for split in ("train", "val"):
            command += [f"--{split}-images", str(args.data / split)]
            command += [f"--{split}-annotations", str(args.data / f"{split}.json")]
        for option in ("size", "epochs", "batch_size", "lr", "warmup_steps", "num_workers"):
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        command += ["--backbone-lr", str(args.lr), "--seed", str(seed), "--output", str(output)]
        command += ["--resume"] if (output / "state").is_dir() else []
        command += ["--set", f"num_queries={args.num_queries}", *args.set, *settings]
        output.mkdir(parents=True, exist_ok=True)
        with open(output.with_suffix(".log"), "a", encoding="utf-8") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        lines = metrics.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])


def main(argv: list[str] | None = None) -> int:
    """Trains all models, prints the table in Markdown, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    required = {"required": True, "type": Path, "metavar": "DIR", "default": argparse.SUPPRESS}
    parser.add_argument("--data", **required, help="folder written by generate_people.py")
    parser.add_argument("--output", **required, help="folder for the checkpoints and logs of all runs")
    parser.add_argument("--model", default="n", help="model folder, or n, s, m, l or x for random weights")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of all configurations")
    parser.add_argument("--size", type=int, default=192, help="height and width of the images in pixels")
    parser.add_argument("--num-queries", type=int, default=6, help="maximum number of people found in an image")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--warmup-steps", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each; scores are averaged")
    args = parser.parse_args(argv)

    rows = []
    for name, fields in tqdm(configurations().items(), desc="steps"):
        output = args.output / name.strip("+ ").replace(",", "").replace(" ", "-").lower()
        try:
            scores = [train(args, fields, seed, output / f"seed-{seed}") for seed in args.seeds]
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"ablation.py: error: {name}: {error}; its log is in {output}", file=sys.stderr)
            return 1
        averages = [mean(score[metric] for score in scores) for metric in ("AP", "AP50", "AP75", "AR")]
        rows.append("| ".join([f"| {name} ", *(f"{average:.3f} " for average in averages)]) + "|")
    print("| step | AP | AP50 | AP75 | AR |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
