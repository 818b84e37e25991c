"""Makes the demonstration model from nothing: generates people, trains on them, and stores the result small.

    python examples/make_demonstration.py --work demonstration --output examples/demonstration_model

It is DETRPose-N at 192 pixels with 12 queries, from random weights. Classification starts with the focal loss: the
keypoint similarity varifocal loss (KSVF) wants scores equal to similarities, and as long as these are near zero it
hardly tells people from background. Once poses fit roughly, KSVF makes the scores say how well. What is stored is in
half precision. Two cores need about two hours; broken off and called again, it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor
from transformers_detrpose.model_card import model_card

EXAMPLES = Path(__file__).parent
PEOPLE = ["--train", "8000", "--val", "200", "--size", "192", "--max-people", "4"]
TRAINING = ["--size", "192", "--no-augment", "--unfreeze-backbone-norms", "--batch-size", "8", "--warmup-steps", "100"]
TRAINING += ["--num-workers", "1", "--save-steps", "500"]
FIELDS = ["num_queries=12", "num_denoising=8"]
# (epochs, learning rate, first epoch at a tenth of it, classification loss) of the trainings, one after the other.
STAGES = ((4, 3e-4, None, "focal"), (2, 3e-4, 1, "ksvf"))

ORIGIN = """This is a demonstration, trained from random weights on 8,000 generated pictures of jointed figures,
{epochs} passes in all, on two processor cores. **It knows nothing of photographs**: for those, convert the published
weights with `python conversion/convert_detrpose.py --variant l --output detrpose-l`. It takes pictures of up to about
four figures; small, crowded and mostly hidden ones it misses. `python examples/make_demonstration.py --work
demonstration --output examples/demonstration_model` makes it again. The scores below are those of the model as it is
stored, in half precision, on 200 pictures that it was not trained on."""


def run(script: str, *arguments: str):
    """Runs another script of this folder to its end."""
    subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], check=True)


def generate(people: Path):
    """Generates the pictures, unless they are there."""
    if not (people / "val.json").exists():
        run("generate_people.py", "--output", str(people), *PEOPLE)


def train(work: Path, people: Path) -> Path:
    """Runs the trainings one after the other and returns the folder of the last weights."""
    model, data = "n", []
    for split in ("train", "val"):
        data += [f"--{split}-images", str(people / split), f"--{split}-annotations", str(people / f"{split}.json")]
    for index, (epochs, lr, lr_drop_epoch, loss) in enumerate(STAGES, start=1):
        output = work / f"stage-{index}"
        options = ["--epochs", str(epochs), "--lr", str(lr), "--backbone-lr", str(lr), "--output", str(output)]
        options += ["--lr-drop-epoch", str(lr_drop_epoch)] if lr_drop_epoch else []
        options += ["--resume"] if (output / "state").is_dir() else []
        run("train.py", "--model", model, *data, *TRAINING, *options, "--set", *FIELDS, f"classification_loss={loss}")
        model = str(output / "last")
    return Path(model)


def store(trained: Path, output: Path, people: Path):
    """Writes the weights in half precision, the image processor and a card with scores; no code, the package has it."""
    DETRPoseForPoseEstimation.from_pretrained(trained, dtype=torch.float16).save_pretrained(output)
    DETRPoseImageProcessor.from_pretrained(trained).save_pretrained(output)
    for code in output.glob("*.py"):
        code.unlink()
    scores = output / "scores.json"
    data = ["--images", str(people / "val"), "--annotations", str(people / "val.json")]
    run("evaluate.py", "--model", str(output), "--scores", str(scores), *data)
    origin = ORIGIN.format(epochs=sum(epochs for epochs, *_ in STAGES))
    card = model_card(
        DETRPoseConfig.from_pretrained(output), output.as_posix(), origin, metrics=json.loads(scores.read_text())
    )
    scores.unlink()
    (output / "README.md").write_text(card, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Reads the command line, makes the model and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    required = {"required": True, "type": Path, "metavar": "DIR", "default": argparse.SUPPRESS}
    parser.add_argument("--work", **required, help="folder for pictures and trainings, 1 GB")
    parser.add_argument("--output", **required, help="folder of the model")
    args = parser.parse_args(argv)
    try:
        people = args.work / "people"
        generate(people)
        store(train(args.work, people), args.output, people)
    except subprocess.CalledProcessError as error:
        print(f"make_demonstration.py: error: {Path(error.cmd[1]).name} failed, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
