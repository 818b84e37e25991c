"""Small COCO-format datasets of three kinds of figures, with different keypoints: people, dogs and balls.

The people are the generator's. Dogs are seen from the side: their near legs are light, their far legs dark, so that
left and right depend on where they look.
"""

import json

import numpy as np
from PIL import ImageDraw

from transformers_detrpose import COCO_PERSON, KeypointSchema, unite_schemas
from transformers_detrpose.synthetic.pictures import generate_picture

PERSON, DOG, BALL = 1, 2, 4  # category ids
NAMES = {PERSON: "person", DOG: "dog", BALL: "ball"}
DOG_SCHEMA = KeypointSchema(
    # In another order than a person's, and the nose is shared with them.
    names=("tail", "nose", "left_front_paw", "right_front_paw", "left_hind_paw", "right_hind_paw"),
    edges=((0, 1), (1, 2), (1, 3), (0, 4), (0, 5)),
    flip_pairs=((2, 3), (4, 5)),
)
BALL_SCHEMA = KeypointSchema(names=("center",))
SCHEMAS = {PERSON: COCO_PERSON, DOG: DOG_SCHEMA, BALL: BALL_SCHEMA}
# 17 of the person, 5 of the dog, whose nose is the person's, and 1 of the ball.
SCHEMA = unite_schemas(SCHEMAS, NAMES)
CATEGORIES = [{"id": label, "name": name, **SCHEMAS[label].to_coco()} for label, name in NAMES.items()]


def draw_dog(draw, rng, size):
    """Draws a dog; returns its keypoints (6, 3), box and area."""
    length = rng.uniform(0.25, 0.4) * size
    height, direction = 0.4 * length, rng.choice([-1, 1])
    middle = np.array([rng.uniform(length, size - length), rng.uniform(length, size - length)])

    def place(forward, down):
        return middle + (direction * forward * length, down * height)

    coat = np.array(rng.integers(90, 190, 3))
    paws = {
        (end, side): place((0.35 if end == "front" else -0.35) + rng.uniform(-0.12, 0.12), 1.2)
        for end in ("front", "hind")
        for side in ("near", "far")
    }
    width = max(2, round(0.08 * length))
    for (end, side), paw in paws.items():
        color = tuple((coat + (60 if side == "near" else -60)).tolist())
        draw.line([*place(0.35 if end == "front" else -0.35, 0.3), *paw], color, width)
    nose, tail = place(0.85, -0.5), place(-0.85, rng.uniform(-1, 0))
    draw.line([*place(0.4, -0.1), *nose], tuple(coat.tolist()), 2 * width)
    draw.line([*place(-0.45, -0.2), *tail], tuple(coat.tolist()), width)
    draw.ellipse([*(middle - (0.5 * length, 0.4 * height)), *(middle + (0.5 * length, 0.4 * height))], tuple(coat))
    draw.circle(nose, width, "black")
    near, far = ("left", "right") if direction < 0 else ("right", "left")
    named = {f"{near if side == 'near' else far}_{end}_paw": paw for (end, side), paw in paws.items()}
    points = np.array([{"tail": tail, "nose": nose, **named}[name] for name in DOG_SCHEMA.names])
    box = [*points.min(0), *np.ptp(points, axis=0)]
    return points, box, 0.5 * box[2] * box[3]


def draw_ball(draw, rng, size):
    """Draws a ball; returns its keypoint (1, 2), box and area."""
    radius = rng.uniform(0.06, 0.1) * size
    center = rng.uniform(radius, size - radius, 2)
    draw.circle(center, radius, tuple(rng.integers(150, 256, 3).tolist()), "white", 2)
    draw.line([*(center - (radius, 0)), *(center + (radius, 0))], "white", 1)
    return center[None], [*(center - radius), 2 * radius, 2 * radius], float(np.pi * radius**2)


def draw_figures(index, size, seed=0):
    """Returns an image of up to one person, one dog and two balls, and their annotations without ids."""
    rng = np.random.default_rng([seed, index, 3])
    image, people = generate_picture(seed, index, size, max_people=1, min_height=0.5, plain=True, upright=True)
    figures = [{**person, "category_id": PERSON} for person in people]
    draw = ImageDraw.Draw(image)
    kinds = [(DOG, draw_dog)] * int(rng.integers(2)) + [(BALL, draw_ball)] * int(rng.integers(3))
    for label, draw_figure in kinds:
        points, box, area = draw_figure(draw, rng, size)
        keypoints = [value for x, y in points.tolist() for value in (round(x, 2), round(y, 2), 2)]
        box = [round(float(value), 2) for value in box]
        figures.append({"category_id": label, "keypoints": keypoints, "bbox": box, "area": area, "iscrowd": 0})
    return image, figures


def write_figures(folder, indices, size, seed=0):
    """Writes images and a file; returns the folder of images and the file."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in indices:
        image, figures = draw_figures(index, size, seed)
        image.save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": size, "height": size})
        annotations += [{**figure, "image_id": index} for figure in figures]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "figures.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "images", folder / "figures.json"
