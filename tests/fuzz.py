"""Looks for inputs that are accepted in silence, or end in anything but an error that says what is wrong.

    python tests/fuzz.py --minutes 60

The properties of `test_properties.py` are tried on new random examples, and commands are run on damaged files, in turn,
until the time is up. A counterexample is printed, made as small as possible; the exit code is then 1. The examples
found are kept in `.hypothesis` and tried first the next time. Not collected by pytest.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: E402
from PIL import Image  # noqa: E402

import test_properties  # noqa: E402
from saved_model import save_tiny_model  # noqa: E402
from transformers_detrpose.commands import evaluate, predict  # noqa: E402
from transformers_detrpose.keypoint_schemas import COCO_PERSON  # noqa: E402

EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(".hypothesis/examples"),
    phases=list(Phase),
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TOKENS = [b"NaN", b"null", b"-1", b"1e400", b"[]", b"{}", b'"x"', b"9" * 400, b"[" * 10_000]
MOST_LINES = 20  # that a command may say about mistakes


def write_inputs(folder: Path):
    """Writes a model, two images and their annotations."""
    save_tiny_model(folder / "model")
    (folder / "images").mkdir()
    names = ["1.jpg", "2.png"]
    for name in names:
        Image.effect_noise((60, 40), 50).convert("RGB").save(folder / "images" / name)
    person = {"keypoints": [10, 10, 2] * COCO_PERSON.num_keypoints, "bbox": [5, 5, 20, 20], "area": 300, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}],
        "annotations": [{**person, "id": i, "image_id": i, "category_id": 1} for i in range(2)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def damage(path: Path, source: random.Random) -> str:
    """Damages a file, and returns how."""
    content = bytearray(path.read_bytes())
    kind = source.choice(["cut", "bytes", "token"])
    if kind == "cut":
        del content[source.randrange(len(content)) :]
    elif kind == "bytes":
        for _ in range(source.randint(1, 20)):
            content[source.randrange(len(content))] = source.randrange(256)
    else:  # another number or word in place of one
        tokens = content.split(b" ")
        index = source.randrange(len(tokens))
        tokens[index] = source.choice(
            [b"NaN", b"null", b"-1", b"1e400", b"[]", b"{}", b'"x"', b"9" * 400, b"[" * 10000]
        )
        content = bytearray(b" ".join(tokens))
    path.write_bytes(content)
    return f"{kind} in {path.name}"


def try_commands(seed: int):
    """Runs commands on inputs of which one file is damaged; raises what they raise."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        names = ["model/config.json", "model/preprocessor_config.json", "model/model.safetensors", "annotations.json"]
        damaged = damage(folder / source.choice([*names, "images/1.jpg", "images/2.png"]), source)
        model, images = ["--model", str(folder / "model")], str(folder / "images")
        annotations = ["--annotations", str(folder / "annotations.json")]
        commands = {
            predict.main: [*model, "--input", images, "--output", str(folder / "out"), *annotations, "--device", "cpu"],
            evaluate.main: [*model, "--images", images, *annotations, "--num-workers", "0"],
        }
        for main, arguments in commands.items():
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = main(arguments)
            lines = [line for line in said.getvalue().splitlines() if "it/s]" not in line and "?" not in line]
            assert code in (0, 1), f"exit code {code} after {damaged}, seed {seed}"
            assert code == 0 or 1 <= len(lines) <= MOST_LINES, f"{len(lines)} lines after {damaged}, seed {seed}"


def main() -> int:
    """Runs until the time is up; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long to look")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the damaged files")
    arguments = parser.parse_args()
    for logger in ("transformers", "transformers_detrpose.data"):  # warnings about what is accepted
        logging.getLogger(logger).setLevel(logging.ERROR)
    end = time.monotonic() + 60 * arguments.minutes
    properties = {name: EXAMPLES(f) for name, f in vars(test_properties).items() if name.startswith("test_")}
    failures, rounds, seed = {}, 0, arguments.seed
    while time.monotonic() < end:
        for name in [*["commands"] * 20, *properties]:
            if name in failures or time.monotonic() > end:
                continue
            seed += 1
            try:
                try_commands(seed) if name == "commands" else properties[name]()
            except Exception:
                failures[name] = seed
                print(f"== {name}, seed {seed}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        rounds += 1
    print(f"{rounds} rounds, {len(properties)} properties, failed: {', '.join(failures) or 'none'}")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
