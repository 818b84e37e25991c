"""The evaluation report: a page for the browser, with its pictures beside it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_folder
from ..keypoint_schemas import KeypointSchema
from .analysis import Analysis, analyze
from .comparison_pictures import draw_beside_truth
from .keypoint_errors import NAMES
from .keypoint_metrics import UNDEFINED, KeypointMetric, Poses
from .matching import MATCHING_OKS
from .plots import plot_coverage, plot_kinds, plot_precision_recall, plot_reliability
from .reliability import LEVELS, Reliability

NUM_WORST = 20
DRAWN_SCORE = 0.5  # as `detrpose predict` draws by default

_STYLE = """
body { font-family: sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.4; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; }
td + td, th + th { text-align: right; } img { max-width: 100%; } figure { margin: 1.5rem 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figcaption { font-size: 0.9rem; }
"""


def write_report(
    folder: str | os.PathLike,
    metric: KeypointMetric,
    predictions: Mapping[int, Poses],
    images: str | os.PathLike,
    heading: str,
    progress: bool = True,
) -> Analysis:
    """Analyzes the poses of a model and writes a report.

    The folder gets `index.html`, the plots, `scores.json` with the numbers behind them, and pictures of the twenty
    worst images. It appears once it is complete.

    Args:
        folder: folder to create.
        metric: the metric with its ground truth; its `images` must have a `file_name`.
        predictions: the result of `evaluate_model`.
        images: folder of the images.
        heading: what was evaluated, in one line.
        progress: whether to show a progress bar.

    Returns:
        The analysis.

    Raises:
        FileExistsError: if the folder exists and is not empty.
        ValueError: if there are no images or no annotations, or an image cannot be read.
    """
    schema = metric.keypoint_schema
    with whole_folder(folder) as unfinished:
        analysis = analyze(metric, predictions, progress)
        _write_plots(unfinished, analysis, schema)
        worst = _write_worst(unfinished, analysis, metric, Path(images))
        page = _page(heading, analysis, schema, worst)
        (unfinished / "index.html").write_text(page, encoding="utf-8")
        numbers = json.dumps(_finite(summarize(analysis, schema)), indent=2)
        (unfinished / "scores.json").write_text(numbers + "\n", encoding="utf-8")
    return analysis


def summarize(analysis: Analysis, schema: KeypointSchema) -> dict[str, Any]:
    """Returns the numbers of an analysis as plain lists and dictionaries; NaN or -1 without ground truth."""
    kinds, coverage = NAMES[1:], analysis.coverage
    thresholds = analysis.curves.thresholds
    return {
        "scores": analysis.scores,
        "rescored_by_keypoints": analysis.rescored,
        "rescored_ideally": analysis.ideal,
        "pose_calibration_error": analysis.pose_reliability.calibration_error,
        "keypoint_calibration_error": getattr(analysis.keypoint_reliability, "calibration_error", None),
        "coverage": None if coverage is None else _at_levels(coverage.levels, coverage.fractions),
        "keypoint_coverage": None if coverage is None else coverage.of_keypoints,
        "AP_by_OKS": {f"{oks:.2f}": analysis.curves.average_precision(oks) for oks in thresholds},
        "groups": {name: [vars(group) for group in groups] for name, groups in analysis.groups.items()},
        "errors": [vars(cost) for cost in analysis.costs],
        "keypoints": {
            name: {
                "count": dict(zip(NAMES, analysis.kinds[k].tolist(), strict=True)),
                "AP_gain": dict(zip(kinds, analysis.keypoint_costs[k].tolist(), strict=True)),
            }
            for k, name in enumerate(schema.names)
        },
        "worst_images": dict(list(analysis.image_costs.items())[:NUM_WORST]),
    }


def _at_levels(levels: Sequence[float], fractions: Sequence[float]) -> dict[str, float]:
    """Returns the coverage at the levels in `LEVELS`."""
    return {f"{level:.2f}": fraction for level, fraction in zip(levels, fractions, strict=True) if level in LEVELS}


def _finite(value: Any) -> Any:
    """Replaces NaN, which JSON lacks, by `None`."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_plots(folder: Path, analysis: Analysis, schema: KeypointSchema):
    plot_reliability(analysis.pose_reliability, folder / "poses.png", "score of the pose", "OKS")
    if analysis.keypoint_reliability is not None:
        plot_reliability(analysis.keypoint_reliability, folder / "keypoints.png", "score of the keypoint", "KS")
    if analysis.coverage is not None:
        plot_coverage(analysis.coverage, folder / "coverage.png")
    plot_precision_recall(analysis.curves, folder / "precision_recall.png")
    plot_kinds(analysis.kinds, schema.names, folder / "errors.png")


def _write_worst(folder: Path, analysis: Analysis, metric: KeypointMetric, images: Path) -> list[tuple[str, str]]:
    """Draws the worst images, and returns the file and the caption of each."""
    worst = [(image_id, cost) for image_id, cost in analysis.image_costs.items() if cost > 0][:NUM_WORST]
    pictures = []
    for number, (image_id, cost) in enumerate(worst, start=1):
        file_name = metric.images[image_id]["file_name"]
        people = analysis.matches.people
        picture, num_drawn = draw_beside_truth(
            images / file_name, analysis.matches, image_id, metric.keypoint_schema, DRAWN_SCORE
        )
        name = f"worst_{number:02d}.jpg"
        picture.save(folder / name, quality=90)
        num_people = int((people.is_counted & (people.image_ids == image_id)).sum())
        pictures.append((name, f"{number}. {file_name}: badness {cost:.2f}, {num_drawn} poses, {num_people} people"))
    return pictures


def _page(heading: str, analysis: Analysis, schema: KeypointSchema, worst: list[tuple[str, str]]) -> str:
    sections = [
        _scores_section(analysis),
        _confidence_section(analysis),
        _groups_section(analysis),
        _errors_section(analysis, schema),
        _worst_section(worst),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(heading)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(heading)}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _scores_section(analysis: Analysis) -> str:
    rows = [("as they are", analysis.scores)]
    if analysis.rescored is not None:
        rows.append(("mean score of the keypoints", analysis.rescored))
    rows.append(("OKS reached", analysis.ideal))
    table = _table(
        ["scores of the poses", *analysis.scores], [[name, *map(_percent, scores.values())] for name, scores in rows]
    )
    return (
        "<h2>Average precision and recall</h2>\n<p>In percent. The other rows keep the poses and replace their scores: "
        "by the mean of their keypoint scores, and by the OKS that they reach, which shows how much a better "
        f"confidence could gain.</p>\n{table}\n"
        + _figure("precision_recall.png", "Precision and recall at each OKS threshold.")
    )


def _confidence_section(analysis: Analysis) -> str:
    pose, keypoint, coverage = analysis.pose_reliability, analysis.keypoint_reliability, analysis.coverage
    rows = [_reliability_row("poses: OKS, 0 without a person", pose)]
    figures = [_figure("poses.png", "Poses: what their scores promise, and the OKS reached.")]
    if keypoint is not None:
        rows.append(_reliability_row("keypoints of matched poses: KS", keypoint))
        figures.append(_figure("keypoints.png", "Keypoints: what their scores promise, and the KS reached."))
    text = _table(["", "number", "mean score", "mean reached", "calibration error"], rows)
    if coverage is not None:
        figures.append(_figure("coverage.png", "Keypoints inside the ellipses of their predicted distribution."))
        overall = _at_levels(coverage.levels, coverage.fractions)
        rows = [["all", *map(_percent, overall.values())]]
        rows += [[name, *map(_percent, fractions)] for name, fractions in coverage.of_keypoints.items()]
        details = _table(["keypoint", *(f"inside the {level:.0%} ellipse" for level in LEVELS)], rows)
    else:
        details = "<p>This model predicts no distributions of keypoints.</p>"
    return (
        "<h2>Can the scores be trusted?</h2>\n<p>A score promises a similarity: the OKS of the pose, or the KS of the "
        "keypoint. The expected calibration error is the mean difference in 15 bins. A pose matches a person at an OKS "
        f'of at least {MATCHING_OKS}.</p>\n{text}\n<div class="row">{"".join(figures)}</div>\n{details}'
    )


def _reliability_row(name: str, found: Reliability) -> list[str]:
    numbers = (found.mean_score, found.mean_outcome, found.calibration_error)
    return [name, str(int(found.counts.sum())), *(_number(value, "{:.3f}") for value in numbers)]


def _groups_section(analysis: Analysis) -> str:
    titles = {
        "size": "area of the person, in square pixels",
        "visible keypoints": "visible keypoints",
        "crowding": "largest overlap (IoU) with another box",
    }
    tables = [
        _table(
            [titles[name], "people", "AP", "AR"],
            [[g.name, str(g.num_people), _percent(g.average_precision), _percent(g.average_recall)] for g in groups],
        )
        for name, groups in analysis.groups.items()
    ]
    return (
        "<h2>For whom it works</h2>\n<p>People outside the group are ignored. Wrong poses of the same size count by "
        "size, all wrong poses in the other tables: there AP is low for small groups, and AR tells more when groups "
        "are compared.</p>\n" + "\n".join(tables)
    )


def _errors_section(analysis: Analysis, schema: KeypointSchema) -> str:
    gains = _table(
        ["error", "number", "gain in AP", "in AP50", "in AP75"],
        [[cost.name, str(cost.count), *map(_gain, cost.gains.values())] for cost in analysis.costs],
    )
    keypoints = _table(
        ["keypoint", *NAMES[1:]],
        [[name, *map(_gain, row)] for name, row in zip(schema.names, analysis.keypoint_costs.tolist(), strict=True)],
    )
    return (
        "<h2>What goes wrong</h2>\n<p>Keypoints of matched poses are good with a KS of at least 0.85. Jitter: at least "
        "0.5. Inversion: at the mirrored keypoint of the same person. Swap: at the keypoint of somebody else. Miss: "
        "none of these (Ronchi and Perona, 2017). The tables show the gain, in percentage points, if only these errors "
        "were corrected: keypoints moved to the truth, poses of nobody removed, people without a pose ignored.</p>\n"
        f"{gains}\n{_figure('errors.png', 'How often each keypoint goes wrong.')}\n<p>Gain in AP for each "
        f"keypoint:</p>\n{keypoints}"
    )


def _worst_section(worst: list[tuple[str, str]]) -> str:
    figures = "\n".join(_figure(name, caption) for name, caption in worst)
    return (
        f"<h2>The worst images</h2>\n<p>Predicted poses with a score of at least {DRAWN_SCORE} on the left, the truth "
        "on the right, where people have the color of their pose. Each person adds 1 - score · OKS of the pose to the "
        f"badness, each pose without a person its score.</p>\n{figures or '<p>None is bad.</p>'}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _figure(file: str, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img src="{file}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _percent(value: float) -> str:
    return _number(100 * value if value != UNDEFINED else math.nan, "{:.1f}")


def _gain(value: float) -> str:
    return _number(100 * value, "{:+.2f}") if value else "0"


def _number(value: float, pattern: str) -> str:
    return "-" if np.isnan(value) else pattern.format(value)
