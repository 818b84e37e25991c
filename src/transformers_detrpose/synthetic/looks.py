"""The clothes of figures, and the colors of their skin and hair."""

from dataclasses import dataclass

import numpy as np

from .shapes import Color, sample_color, shade

SKIN_COLORS = (
    (255, 224, 196), (244, 208, 177), (236, 188, 150), (224, 172, 125), (198, 134, 86), (160, 102, 60), (124, 76, 44),
    (92, 56, 36), (66, 42, 30),
)  # fmt: skip
HAIR_COLORS = ((24, 20, 18), (54, 36, 24), (92, 58, 30), (140, 96, 48), (206, 168, 98), (150, 60, 30), (170, 170, 170))


@dataclass(frozen=True)
class Look:
    """Colors and clothes of a figure.

    Args:
        skin, hair, shirt, trousers, shoes: Colors.
        shirt_stripe, trousers_stripe: Colors of stripes, or `None`.
        num_stripes: Stripes on the shirt.
        sleeve, leg_cover: How far the clothes reach: 0 for none, 1 to the elbow or knee, 2 to the wrist or ankle.
        skirt: Length as a fraction of the thigh's, 0 for none.
        hair_style: "bald", "short", "long", "tail" or "hat".
        beard: Whether there is a beard.
        front: The front of the shirt: "plain", "buttons", "logo" or "vest".
        backpack: Color, or `None`.
    """

    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color
    shirt_stripe: Color | None = None
    trousers_stripe: Color | None = None
    num_stripes: int = 5
    sleeve: float = 0.6
    leg_cover: float = 2.0
    skirt: float = 0.0
    hair_style: str = "short"
    beard: bool = False
    front: str = "plain"
    backpack: Color | None = None


def sample_skin(rng: np.random.Generator) -> Color:
    """Returns a random skin color."""
    return shade(SKIN_COLORS[rng.integers(len(SKIN_COLORS))], rng.uniform(0.92, 1.06))


def sample_look(rng: np.random.Generator) -> Look:
    """Returns random colors and clothes."""
    hair_style = str(rng.choice(["short", "long", "tail", "bald", "hat"], p=[0.46, 0.2, 0.1, 0.06, 0.18]))
    natural = hair_style != "hat" and rng.random() < 0.9
    skirted = rng.random() < 0.15
    return Look(
        skin=sample_skin(rng),
        hair=HAIR_COLORS[rng.integers(len(HAIR_COLORS))] if natural else sample_color(rng),
        shirt=sample_color(rng),
        trousers=sample_color(rng, (0.0, 0.7)),
        shoes=sample_color(rng, (0.0, 0.6)),
        shirt_stripe=sample_color(rng) if rng.random() < 0.3 else None,
        trousers_stripe=sample_color(rng) if rng.random() < 0.12 else None,
        num_stripes=int(rng.integers(3, 9)),
        sleeve=float(rng.choice([0.0, rng.uniform(0.4, 0.8), rng.uniform(1.7, 2.0)], p=[0.12, 0.44, 0.44])),
        leg_cover=float(
            rng.choice([rng.uniform(0.3, 0.9), rng.uniform(1.7, 2.0)], p=[0.75, 0.25] if skirted else [0.25, 0.75])
        ),
        skirt=rng.uniform(0.5, 1.2) if skirted else 0.0,
        hair_style=hair_style,
        beard=not skirted and rng.random() < 0.12,
        front=str(rng.choice(["plain", "buttons", "logo", "vest"], p=[0.3, 0.25, 0.25, 0.2])),
        backpack=sample_color(rng) if rng.random() < 0.1 else None,
    )
