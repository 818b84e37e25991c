"""Benchmark results as text, JSON and a plot."""

from pathlib import Path
from typing import Any

from .measuring import Timing, format_table


def to_json(value: Any) -> Any:
    """Converts the timings in a row to dictionaries, in milliseconds."""
    if isinstance(value, Timing):
        return value.to_dict()
    return {key: to_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def title(result: dict[str, Any]) -> str:
    """Returns the title: the model and the machine."""
    machine = result["machine"]
    size, threads = result["size"], machine["threads"]
    figures = (
        f"{result['parameters'] / 1e6:.2f} M parameters, {result['operations_per_image'] / 1e9:.2f} GFLOPs per image"
    )
    return f"{result['arguments']['model']} at {size}x{size}, {figures}\n{machine['device']}, {threads} CPU threads"


def format_report(result: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the report: the machine, the table, and what was skipped."""
    header = ["backend", "precision", "batch", "model, ms", "images/s", "end to end, ms", "images/s"]
    header += ["decode + prepare + post-process, ms", "agreement"]
    lines = [table_row(row) for row in rows if "skipped" not in row]
    text = [title(result), ", ".join(f"{name} {version}" for name, version in result["machine"]["versions"].items())]
    if lines:
        rounds = result["arguments"]["rounds"]
        text.append(f"Medians of {rounds} interleaved rounds, with quartiles; times are per batch.")
        text.append(format_table(header, lines))
    for row in rows:
        if "skipped" in row:
            text.append(f"skipped: {row['backend']} {row['precision']}, batch {row['batch_size']}: {row['skipped']}")
    return "\n".join(text)


def table_row(row: dict[str, Any]) -> list[str]:
    """Returns the table cells of a row that was measured."""
    parts = " + ".join(f"{row['parts'][name].median:.2f}" for name in ("decode", "prepare", "post_process"))
    return [
        row["backend"],
        row["precision"],
        str(row["batch_size"]),
        str(row["model"]),
        f"{row['images_per_second']:.1f}",
        str(row["end_to_end"]),
        f"{row['end_to_end_images_per_second']:.1f}",
        parts,
        "-" if row["agreement"] is None else f"{row['agreement']:.4f}",
    ]


def plot(rows: list[dict[str, Any]], file: Path, heading: str):
    """Draws a bar chart of the time per image, end to end and of the model with its quartiles.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if "skipped" not in row]
    names = [f"{row['backend']}, {row['precision']}, batch {row['batch_size']}" for row in rows]
    model = [row["model"].median / row["batch_size"] for row in rows]
    spread = [
        [(row["model"].median - row["model"].low) / row["batch_size"] for row in rows],
        [(row["model"].high - row["model"].median) / row["batch_size"] for row in rows],
    ]
    whole = [row["end_to_end"].median / row["batch_size"] for row in rows]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(names, whole, color="lightgray", label="end to end")
    axes.barh(names, model, height=0.5, xerr=spread, color="tab:blue", label="model, with quartiles")
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per image")
    axes.set_title(heading, fontsize="small")
    axes.legend()
    figure.savefig(file, dpi=120)
