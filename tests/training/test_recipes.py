"""The published recipes, and what options and small datasets make of them."""

import pytest

from transformers_detrpose import DETRPoseConfig
from transformers_detrpose.data import Augmentation
from transformers_detrpose.training import FINE_TUNING, RECIPES, Recipe, variant_of

# epochs | mosaic from, to; all off from | backbone lr | lr drop | base size repeats
TABLE = """
coco      n 160 5  83 156 1e-4 none 0
coco      s 100 5  53  96 1e-4 none 20
coco      m  64 5  35  60 1e-5   15 6
coco      l  52 5  29  48 1e-5 none 4
coco      x  52 5  29  48 5e-5 none 4
crowdpose n 284 5 137 264 1e-5 none 0
crowdpose s 176 5  83 156 1e-5 none 20
crowdpose m  76 5  41  72 1e-5 none 6
crowdpose l  64 5  29  60 1e-5 none 4
crowdpose x  52 5  29  60 1e-5 none 4
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_published_recipes(line):
    dataset, variant, *numbers = line.split()
    recipe = RECIPES[dataset][variant]
    starts = [phase.first_epoch for phase in recipe.phases()]
    assert [recipe.epochs, *starts] == [int(numbers[0]), 0, *map(int, numbers[1:4])]
    assert recipe.backbone_lr == float(numbers[4])
    assert recipe.lr_drop_epoch == (None if numbers[5] == "none" else int(numbers[5]))
    assert recipe.base_size_repeats == int(numbers[6])
    assert (recipe.lr, recipe.batch_size, recipe.warmup_steps(7000)) == (1e-4, 16, 0)


def test_there_is_no_other_recipe():
    assert sum(map(len, RECIPES.values())) == len(TABLE.strip().splitlines()) + len(ECPOSE)


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_recipes_of_detrpose_decay_everything_and_blend_nothing(line):
    dataset, variant, *_ = line.split()
    recipe = RECIPES[dataset][variant]
    assert (recipe.weight_decay, recipe.decay_norms_and_biases) == (1e-4, True)
    phases = recipe.phases()
    assert all(phase.augmentation.mixup == phase.augmentation.copy_paste == 0 for phase in phases)
    assert phases[-1].augmentation == Augmentation(mosaic=0, zoom_out=0, flip=0, jitter=0)


# epochs; mosaic from, to; everything but flip and jitter off from | backbone lr | weight decay
ECPOSE = {
    "ecpose-s": (92, [0, 4, 44, 90], 2.5e-5, 1e-4),
    "ecpose-m": (92, [0, 4, 44, 90], 2.5e-5, 1e-4),
    "ecpose-l": (74, [0, 4, 47, 72], 2.5e-6, 1.25e-4),
    "ecpose-x": (74, [0, 4, 47, 72], 2.5e-6, 1.25e-4),
}


@pytest.mark.parametrize("variant", ECPOSE)
def test_recipes_of_ecpose(variant):
    epochs, starts, backbone_lr, weight_decay = ECPOSE[variant]
    recipe = RECIPES["coco"][variant]
    assert [phase.first_epoch for phase in recipe.phases()] == starts
    assert (recipe.epochs, recipe.backbone_lr, recipe.weight_decay) == (epochs, backbone_lr, weight_decay)
    assert (recipe.lr, recipe.batch_size, recipe.lr_drop_epoch, recipe.base_size_repeats) == (5e-4, 32, None, 0)
    assert recipe.warmup_steps(steps_per_epoch=1768) == 500
    assert not recipe.decay_norms_and_biases
    assert (recipe.mixup, recipe.copy_paste, recipe.final_flip_and_jitter) == (0.25, 0.5, True)


def test_mix_up_and_copy_paste_last_as_long_as_zoom_out():
    recipe = Recipe(92, 2.5e-5, 44, 90, mosaic_start=4, mixup=0.25, copy_paste=0.5, final_flip_and_jitter=True)
    rows = {
        phase.first_epoch: (phase.augmentation.mosaic, phase.augmentation.mixup, phase.augmentation.copy_paste,
                            phase.augmentation.zoom_out, phase.augmentation.flip, phase.augmentation.jitter)
        for phase in recipe.phases()
    }  # fmt: skip
    assert rows == {
        0: (0, 0, 0, 0, 0.5, 0.5),
        4: (0.5, 0.25, 0.5, 0.5, 0.5, 0.5),
        44: (0, 0.25, 0.5, 0.5, 0.5, 0.5),
        90: (0, 0, 0, 0, 0.5, 0.5),
    }


def test_options_win():
    recipe = RECIPES["coco"]["m"].changed(lr=3e-4, batch_size=32, backbone_lr=None, base_size_repeats=0)
    assert (recipe.lr, recipe.batch_size, recipe.backbone_lr, recipe.base_size_repeats) == (3e-4, 32, 1e-5, 0)
    assert recipe.phases() == RECIPES["coco"]["m"].phases()


def test_another_length_moves_phases_and_drop_in_proportion():
    recipe = RECIPES["coco"]["m"].changed(epochs=32)
    assert [phase.first_epoch for phase in recipe.phases()] == [0, 3, 16, 29]
    assert recipe.lr_drop_epoch == 8
    assert RECIPES["coco"]["m"].changed(epochs=32, lr_drop_epoch=20).lr_drop_epoch == 20


@pytest.mark.parametrize(
    ("dataset", "variant", "epochs", "starts"),
    [
        ("coco", "ecpose-s", 50, [0, 4, 25, 48]),  # its own lengths, 4 and 2
        ("coco", "ecpose-l", 20, [0, 2, 10, 18]),
        ("coco", "l", 100, [0, 5, 50, 96]),
        ("crowdpose", "n", 300, [0, 5, 150, 280]),
        ("crowdpose", "x", 40, [0, 4, 20, 48]),  # augmentation never ends
    ],
)
def test_another_length_keeps_the_first_and_the_last_phase(dataset, variant, epochs, starts):
    recipe = RECIPES[dataset][variant].changed(epochs=epochs)
    assert [phase.first_epoch for phase in recipe.phases()] == starts


@pytest.mark.parametrize(("num_images", "expected"), [(60, 35), (8, 5), (2000, 500)])
def test_warm_up_is_at_most_a_tenth_of_a_small_training(num_images, expected):
    steps_per_epoch = num_images // FINE_TUNING.batch_size
    warmup_steps = FINE_TUNING.warmup_steps(steps_per_epoch)
    assert warmup_steps == expected <= steps_per_epoch * FINE_TUNING.epochs / 10


def test_variant_of():
    for variant in RECIPES["crowdpose"]:
        config = DETRPoseConfig.from_variant(variant, "crowdpose", num_queries=7, id2label={0: "bird"})
        assert variant_of(config) == variant
    assert variant_of(DETRPoseConfig.from_variant("s", d_model=128)) is None
