"""Drawing poses on images. Inputs are never modified."""

from collections.abc import Mapping, Sequence

import numpy as np
import supervision as sv
from PIL import Image

from .keypoint_schemas import VISIBILITIES, KeypointSchema

# Adjacent colors are easy to tell apart, and each contrasts with skin, grass, sky and asphalt.
PALETTE = sv.ColorPalette.from_hex(
    ["#FF9500", "#1E90FF", "#2ECC40", "#F012BE", "#FFE000", "#00E5FF", "#FF4136", "#A56BFF", "#B6FF00", "#FF8FC7"]
)
# supervision draws on BGR images. Exchanging red and blue in colors is faster than in every image.
PALETTE_ON_RGB = sv.ColorPalette([sv.Color(r=color.b, g=color.g, b=color.r) for color in PALETTE.colors])
OUTLINE = sv.Color(r=20, g=20, b=20)
ELLIPSE_OPACITY = 0.3


def to_supervision(
    result: Mapping,
    keypoint_threshold: float = 0.0,
    id2label: Mapping[int, str] | None = None,
    schema: KeypointSchema | None = None,
) -> sv.KeyPoints:
    """Converts the poses of one image to `supervision.KeyPoints`, for its annotators, metrics and trackers.

    Args:
        result: Poses of one image as `post_process_keypoint_detection` returns them, tensors or arrays: `scores` (n,),
            `labels` (n,), `keypoints` (n, K, 2) as x, y in pixels, `keypoint_scores` (n, K), and `boxes` (n, 4) as
            x1, y1, x2, y2 in pixels; optionally `keypoint_std` (n, K, 2), standard deviations in x and y in pixels,
            `keypoint_visibility` (n, K) and `track_id` (n,).
        keypoint_threshold: Keypoints with a lower score or with coordinates that are not finite are marked as not
            visible, which keeps annotators from drawing them; so are absent ones, but not occluded ones.
        id2label: Names of the labels; if given, stored as `data["class_name"]`.
        schema: The keypoint schema, `model.config.keypoint_schema`; needed only if classes have different keypoints:
            those that the class of a pose lacks are marked as not visible.

    Returns:
        `supervision.KeyPoints` of n poses in the same order, with the boxes as `data["xyxy"]`, track ids, if there are
        any, as `data["track_id"]` and, if there are standard deviations, `data["covariance"]` (n, K, 2, 2), which
        supervision's ellipse annotators draw; with a visibility head, `data["visibility"]` (n, K), 0 absent, 1 occluded
        or 2 visible.
    """
    scores, labels, keypoints, keypoint_scores, boxes = (
        _to_numpy(result[key]) for key in ("scores", "labels", "keypoints", "keypoint_scores", "boxes")
    )
    data = {"xyxy": boxes.astype(np.float32)}
    if "track_id" in result:
        data["track_id"] = _to_numpy(result["track_id"]).astype(int)
    if "keypoint_std" in result:
        variances = _to_numpy(result["keypoint_std"]).astype(np.float32) ** 2
        data["covariance"] = variances[..., None] * np.eye(2, dtype=np.float32)
    is_shown = (keypoint_scores >= keypoint_threshold) & np.isfinite(keypoints).all(axis=-1)
    if "keypoint_visibility" in result:
        data["visibility"] = _to_numpy(result["keypoint_visibility"]).astype(int)
        is_shown &= data["visibility"] != VISIBILITIES.index("absent")
    if id2label is not None:
        data["class_name"] = np.array([id2label[int(label)] for label in labels], dtype=str)
    if schema is not None and schema.classes is not None:
        is_shown &= schema.by_label(labels)[1]
    return sv.KeyPoints(
        xy=keypoints.astype(np.float32),
        class_id=labels.astype(int),
        keypoint_confidence=keypoint_scores.astype(np.float32),
        detection_confidence=scores.astype(np.float32),
        visible=is_shown,
        data=data,
    )


def draw_poses(
    image: Image.Image | np.ndarray,
    result: Mapping,
    schema: KeypointSchema,
    id2label: Mapping[int, str] | None = None,
    keypoint_threshold: float = 0.0,
    thickness: int | None = None,
    color_indices: Sequence[int] | None = None,
    ellipse_radii: Sequence[float] = (),
) -> Image.Image | np.ndarray:
    """Draws the poses of one image, the best on top, each in its own color.

    With `keypoint_visibility`, occluded keypoints are hollow, and absent ones and their edges are not drawn.

    Args:
        image: PIL image, or RGB array of shape (height, width, 3) and type uint8.
        result: Poses of this image as `post_process_keypoint_detection` returns them (see `to_supervision`).
        schema: The keypoint schema, `model.config.keypoint_schema`; lines are drawn along its edges, or those of the
            class of each pose.
        id2label: Names of the labels, `model.config.id2label`. If given, each pose is annotated with its label and
            score, and its track id if there is one.
        keypoint_threshold: Keypoints with a lower score, and their edges, are not drawn.
        thickness: Width of the lines in pixels; by default chosen from the sizes of the image and of each pose.
        color_indices: Nonnegative integers, one per pose, that select the colors. By default the pose's track id, which
            keeps a person's color throughout a video, or without tracks the pose's index. Poses that have a negative
            one, because they belong to no track, are gray.
        ellipse_radii: Radii of the ellipses that show the uncertainty of each keypoint, in standard deviations, such as
            `model.config.ellipse_radii`. By default none are drawn.

    Returns:
        A new RGB image with the poses, of the same type as `image`.

    Raises:
        ValueError: if the image is an array of another shape or type, the result does not match the schema, or
            ellipses are requested but the result has no standard deviations.
    """
    _check_schema(result, schema)
    poses = to_supervision(result, keypoint_threshold, id2label, schema)
    if ellipse_radii and "covariance" not in poses.data:
        raise ValueError("`ellipse_radii` need the `keypoint_std` of a model with FDR heads, but the result has none.")
    if color_indices is None:
        color_indices = poses.data.get("track_id", range(len(poses)))
    colors = [PALETTE_ON_RGB.by_idx(int(index)) if index >= 0 else sv.Color.GREY for index in color_indices]
    scene = _rgb_copy(image)
    for index in reversed(range(len(poses))):
        width = thickness or _line_thickness(scene.shape[:2], poses.data["xyxy"][index])
        _draw_ellipses(scene, poses[index], colors[index], ellipse_radii)
        edges = schema.of_class(int(poses.class_id[index])).edges
        _draw_pose(scene, poses[index], colors[index], edges, width)
    if id2label is not None and len(poses):
        _draw_labels(scene, poses, colors)
    return scene if isinstance(image, np.ndarray) else Image.fromarray(scene)


def _to_numpy(values) -> np.ndarray:
    """Converts a tensor (on any device, of any floating-point type) or an array to an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _rgb_copy(image: Image.Image | np.ndarray) -> np.ndarray:
    """Returns a copy of an RGB image as an array (height, width, 3)."""
    if not isinstance(image, np.ndarray):
        image = np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "`image` must be a PIL image or an RGB array of shape (height, width, 3) and type uint8, "
            f"but got shape {image.shape} and type {image.dtype}."
        )
    return np.array(image, order="C")


def _check_schema(result: Mapping, schema: KeypointSchema):
    num_poses, num_keypoints = result["keypoints"].shape[:2]
    if num_poses and num_keypoints != schema.num_keypoints:
        raise ValueError(
            f"`schema` has {schema.num_keypoints} keypoints, but the poses of `result` have {num_keypoints}."
        )


def _line_thickness(size_hw: tuple[int, int], box_xyxy: np.ndarray) -> int:
    """Returns a line width in pixels for the size of the image, thinner for small poses."""
    for_image = max(2, round(0.0025 * sum(size_hw)))
    extent = float(max(box_xyxy[2:] - box_xyxy[:2]))
    # A pose without extent is a single point, without lines that could merge.
    return round(min(for_image, max(1, 0.02 * extent))) if extent > 0 else for_image


def _draw_pose(scene: np.ndarray, pose: sv.KeyPoints, color: sv.Color, edges, thickness: int):
    """Draws one pose on an RGB array: lines, and points, hollow if occluded, in its color with a dark outline."""
    border = max(1, round(thickness / 3))
    radius = round(1.2 * thickness)
    window, pose = _cut_out(scene, pose, margin=radius + border + 1)
    if window.size == 0:
        return
    lines = [(OUTLINE, thickness + 2 * border), (color, thickness)] if edges else []
    points = [(OUTLINE, radius + border), (color, radius)]
    # supervision counts keypoints from 1, and guesses a skeleton if there are no edges.
    edges = [(start + 1, end + 1) for start, end in edges]
    annotators = [sv.EdgeAnnotator(line_color, width, edges) for line_color, width in lines]
    annotators += [sv.VertexAnnotator(point_color, size) for point_color, size in points]
    drawn = window.copy()
    for annotator in annotators:
        drawn = annotator.annotate(drawn, pose)
    if "visibility" in pose.data:
        is_occluded = pose.data["visibility"] == VISIBILITIES.index("occluded")
        occluded = sv.KeyPoints(xy=pose.xy, visible=pose.visible & is_occluded)
        drawn = sv.VertexAnnotator(OUTLINE, round(0.6 * radius)).annotate(drawn, occluded)
    window[:] = drawn


def _draw_ellipses(scene: np.ndarray, pose: sv.KeyPoints, color: sv.Color, radii: Sequence[float]):
    """Draws translucent ellipses around the keypoints of one pose on an RGB array, the inner over the outer."""
    if not radii:
        return
    longest = max(scene.shape[:2])
    deviations = np.sqrt(pose.data["covariance"].max(axis=(-2, -1)))
    extent = np.minimum(max(radii) * deviations[pose.visible], longest).max(initial=0)
    window, pose = _cut_out(scene, pose, margin=int(extent) + 2)
    for radius in radii:
        annotator = sv.VertexEllipseAreaAnnotator(radius, color, opacity=ELLIPSE_OPACITY, max_axis=longest)
        window[:] = annotator.annotate(window.copy(), pose)


def _cut_out(scene: np.ndarray, pose: sv.KeyPoints, margin: int) -> tuple[np.ndarray, sv.KeyPoints]:
    """Returns a view of the image around a pose, and the pose in the coordinates of that view.

    Without OpenCV, the time that supervision takes for a line is proportional to the size of the image. The margin, in
    pixels, also keeps keypoints away from (0, 0), which supervision treats as missing.
    """
    xy = np.clip(pose.xy, -1e6, 1e6)  # drawing uses 32-bit integers
    shown = xy[pose.visible] if pose.visible.any() else np.zeros((1, 2))
    x1, y1 = np.maximum(np.floor(shown.min(axis=0)) - margin, 0).astype(int)
    x2, y2 = np.maximum(np.ceil(shown.max(axis=0)) + margin, 0).astype(int)
    data = {name: value for name, value in pose.data.items() if name in ("covariance", "visibility")}
    return scene[y1:y2, x1:x2], sv.KeyPoints(xy=xy - np.array([x1, y1]), visible=pose.visible, data=data)


def _draw_labels(scene: np.ndarray, poses: sv.KeyPoints, colors: list[sv.Color]):
    """Draws the label and score of each pose on an RGB array, at the top left corner of its box."""
    height, width = scene.shape[:2]
    boxes_xyxy = np.clip(np.nan_to_num(poses.data["xyxy"]), 0, (width, height, width, height))
    detections = sv.Detections(xyxy=boxes_xyxy, class_id=poses.class_id)
    names_and_scores = zip(poses.data["class_name"], poses.detection_confidence, strict=True)
    texts = [f"{name} {score:.2f}" for name, score in names_and_scores]
    if "track_id" in poses.data:
        ids = poses.data["track_id"]
        texts = [f"{track_id} {text}" if track_id >= 0 else text for track_id, text in zip(ids, texts, strict=True)]
    text_scale = max(0.35, sv.calculate_optimal_text_scale((width, height)))
    annotator = sv.LabelAnnotator(
        color=sv.ColorPalette(colors),
        color_lookup=sv.ColorLookup.INDEX,
        text_color=OUTLINE,
        text_scale=text_scale,
        text_thickness=max(1, round(1.2 * text_scale)),
        text_padding=round(10 * text_scale),
        smart_position=True,
    )
    scene[:] = annotator.annotate(scene, detections, texts)
