"""The page of a report: its measurements as tables."""

from typing import Any

from .measuring import format_table

Rows = list[dict[str, Any]]
PARTS = {
    "backbone": "backbone",
    "encoder": "encoder",
    "query_selection": "query selection",
    "decoder": "decoder",
    "post_processing": "post-processing",
}


def format_page(results: dict[str, Any]) -> str:
    """Returns the page in Markdown.

    Args:
        results: as `Report.results` returns them.
    """
    machine = results["machine"]
    lines = [f"# DETRPose on {machine['device']}", describe(results)]
    for part, section in SECTIONS.items():
        if rows := results["parts"].get(part):
            lines += section(rows)
    if results["skipped"]:
        items = [f"- {item['part']}, {item['job']}: {item['reason']}" for item in results["skipped"]]
        lines += ["## Not measured", "\n".join(items)]
    return "\n\n".join(lines) + "\n"


def describe(results: dict[str, Any]) -> str:
    """Returns the machine, the versions and the conditions."""
    machine = results["machine"]
    cuda = f", CUDA {machine['cuda']}" if machine["cuda"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    sizes = ", ".join(f"{name} {size}x{size}" for name, size in results["sizes"].items())
    selection = "" if machine["cuda"] else " On a CPU, the selection is smaller by default."
    return (
        f"{machine['system']}, {machine['threads']} CPU threads{cuda}; {versions}.\n\n"
        f"Measured in {results['seconds']:.0f} s, of {results['limit_seconds']:.0f} s allowed.{selection} "
        f"Images: {sizes}. Variants have random weights. Times are medians with quartiles, in milliseconds per batch; "
        f"backends take turns, in {results['rounds']} rounds. On a GPU, float32 uses the libraries' defaults for TF32 "
        "outside the first two tables."
    )


def precision_section(rows: Rows) -> list[str]:
    """Returns the errors of each precision, stage by stage."""
    header = ["model", "precision", "backbone", "encoder", "selection, logits", "decoder, logits", "keypoints, px"]
    names = ("backbone", "encoder", "selection_logits", "logits")
    cells = [
        [row["model"], row["precision"], *(f"{row[name]:.1e}" for name in names)]
        + [f"{row['keypoints_median']:.4f}, {row['keypoints_largest']:.4f}"]
        for row in rows
    ]
    text = (
        "Errors against float64 on the CPU, of each stage given the exact input: relative for feature maps, largest "
        "for logits, median and largest for keypoints."
    )
    return ["## Precision", text, format_table(header, cells)]


def poses_section(rows: Rows) -> list[str]:
    """Returns the agreement of the demonstration model's poses."""
    text = (
        "The demonstration model, which is trained, on its picture: the lowest keypoint similarity of a pose to its "
        "counterpart in float32 on the CPU."
    )
    cells = [[row["precision"], f"{row['similarity']:.6f}", str(row["poses"])] for row in rows]
    return [text, format_table(["precision", "similarity", "comparisons"], cells)]


def latency_section(rows: Rows) -> list[str]:
    """Returns the latencies."""
    return ["## Latency", latency_table(rows)]


def compile_section(rows: Rows) -> list[str]:
    """Returns the latencies of compiled models beside those of fused ones in the same rounds."""
    return ["## Latency with `torch.compile`", latency_table(rows)]


def latency_table(rows: Rows) -> str:
    """Returns a table with a row per setting and a column per backend."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    settings: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        settings.setdefault((row["model"], row["precision"], row["batch_size"]), {})[row["backend"]] = row
    cells = [
        [*map(str, setting), *(format_timing(found[name]["latency"]) if name in found else "-" for name in backends)]
        + [f"{max(row['images_per_second'] for row in found.values()):.1f}"]
        for setting, found in settings.items()
    ]
    return format_table(["model", "precision", "batch", *backends, "images/s, best"], cells)


def training_section(rows: Rows) -> list[str]:
    """Returns the time and memory of training steps."""
    header = ["model", "mixed precision", "batch", "step", "steps/s", "images/s", "peak memory, MiB"]
    text = (
        "A step is the forward pass, matching and losses, the backward pass, the optimizer and averaged weights, "
        "without loading data. Memory is that of tensors on a GPU, and of the whole process on a CPU."
    )
    cells = [
        [row["model"], row["precision"], str(row["batch_size"]), format_timing(row["milliseconds"]["step"])]
        + [f"{row['steps_per_second']:.2f}", f"{row['images_per_second']:.1f}", f"{row['peak_memory_mib']:.0f}"]
        for row in rows
    ]
    return ["## Training", text, format_table(header, cells)]


def shares_section(rows: Rows) -> list[str]:
    """Returns the share of each part."""
    header = ["model", "precision", "batch", "total", *PARTS.values()]
    text = (
        "Fused, and waiting for each part, which takes longer than the whole at once; post-processing keeps all poses."
    )
    cells = [
        [row["model"], row["precision"], str(row["batch_size"]), format_timing(row["total"]), *shares(row["parts"])]
        for row in rows
    ]
    return ["## Parts of the model", text, format_table(header, cells)]


def shares(parts: dict[str, dict[str, float]]) -> list[str]:
    """Returns the share of each part in the sum of all."""
    total = sum(part["median"] for part in parts.values())
    return [f"{parts[name]['median'] / total:.0%}" for name in PARTS]


def format_timing(values: dict[str, float]) -> str:
    """Returns a median with its quartiles."""
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


SECTIONS = {
    "precision": precision_section,
    "poses": poses_section,
    "latency": latency_section,
    "compile": compile_section,
    "training": training_section,
    "shares": shares_section,
}
