"""The plots of the evaluation report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .analysis import Coverage
from .keypoint_errors import NAMES
from .precision_recall import PrecisionRecall
from .reliability import Reliability

_KIND_COLORS = ("#2E9E5B", "#F2C14E", "#4E79A7", "#B07AA1", "#D1495B")


def plot_reliability(found: Reliability, file: Path, score_name: str, outcome_name: str):
    """Plots the mean outcome of each bin of scores beside what it should be, above the number of scores."""
    figure = Figure(figsize=(4.5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / len(found.counts)
    centers = (np.arange(len(found.counts)) + 0.5) * width
    upper.bar(centers, np.nan_to_num(found.outcomes), width, edgecolor="white", color="#4E79A7", label="reached")
    upper.plot([0, 1], [0, 1], "--", color="black", label="promised")
    upper.set(ylabel=f"mean {outcome_name}", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    lower.bar(centers, found.counts, width, edgecolor="white", color="gray")
    lower.set(xlabel=score_name, ylabel="number")
    figure.savefig(file, dpi=100)


def plot_coverage(coverage: Coverage, file: Path):
    """Plots the fraction of keypoints inside the ellipses that should contain a given fraction."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(coverage.levels, coverage.fractions, "o-", color="#4E79A7", label="reached")
    axes.plot([0, 1], [0, 1], "--", color="black", label="promised")
    axes.set(xlabel="level of the ellipse", ylabel="keypoints inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    figure.savefig(file, dpi=100)


def plot_precision_recall(curves: PrecisionRecall, file: Path):
    """Plots precision over recall at each OKS threshold."""
    from matplotlib import colormaps

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(curves.thresholds)))
    for threshold, precision, color in zip(curves.thresholds, curves.curves(), colors, strict=True):
        average = curves.average_precision(threshold)
        if average >= 0:
            axes.plot(curves.recalls, precision, color=color, label=f"OKS {threshold:.2f}: AP {100 * average:.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=100)


def plot_kinds(kinds: np.ndarray, names: Sequence[str], file: Path):
    """Plots the share of good, jittered, inverted, swapped and missed keypoints (K, 5)."""
    figure = Figure(figsize=(8, 1.3 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    shares = 100 * kinds / np.maximum(kinds.sum(axis=1, keepdims=True), 1)
    starts = np.zeros(len(names))
    for kind, (name, color) in enumerate(zip(NAMES, _KIND_COLORS, strict=True)):
        axes.barh(names, shares[:, kind], left=starts, color=color, label=name)
        starts += shares[:, kind]
    axes.invert_yaxis()
    axes.set(xlabel="percent of the keypoints of matched poses", xlim=(0, 100))
    figure.legend(loc="outside upper center", ncols=len(NAMES))
    figure.savefig(file, dpi=100)
