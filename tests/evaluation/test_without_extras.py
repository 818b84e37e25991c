"""Inference works without the packages of the extra [train], and error messages say how to install them."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("accelerate", "datasets", "evaluate", "faster_coco_eval", "pycocotools"):
    sys.modules[name] = None  # as if it were not installed

import transformers_detrpose.commands.predict
import transformers_detrpose.training
from transformers_detrpose.evaluation import METRICS

for metric in METRICS.values():
    try:
        metric({"images": [], "categories": []}, "coco")
    except ImportError as error:
        print(error.name, error)
"""


def test_inference_needs_no_metrics():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[0].partition(".")[0] for line in lines] == ["pycocotools", "faster_coco_eval"]
    assert all('pip install "transformers-detrpose[train]"' in line for line in lines)
