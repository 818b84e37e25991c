"""What holds for any input, found by hypothesis: it is used, or refused by a `ValueError`; nothing else happens.

`python tests/fuzz.py --minutes 60` looks for counterexamples for longer.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tiny import TINY_BACKBONE, tiny_config
from transformers_detrpose import DETRPoseConfig, DETRPoseForPoseEstimation, DETRPoseImageProcessor, KeypointSchema
from transformers_detrpose.conversion.checkpoints import read_state_dict
from transformers_detrpose.data import read_annotations
from transformers_detrpose.image_processing_detrpose import image_to_tensor
from transformers_detrpose.labels import prepare_labels
from transformers_detrpose.loss_detrpose import pose_estimation_loss
from transformers_detrpose.pose_targets import validate_labels

# The same examples in every run, and few of them: together they take well under a minute. Those that fail are not made
# smaller, which would take longer.
settings.register_profile(
    "tests", max_examples=100, derandomize=True, deadline=None, database=None, phases=[Phase.generate]
)
settings.load_profile("tests")

CONFIG = tiny_config()
FIELDS = sorted(set(CONFIG.to_diff_dict()) | {"lqe_top_k", "up", "reg_scale"} - {"transformers_version", "model_type"})
# What JSON can hold, with what is nearly right among it.
SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5)
SCALARS |= st.sampled_from([0, 1, 2, 0.5, 1e-45, 1e300, -1, 2**53, "1", "nan"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
SMALL_CONFIGURATIONS = st.fixed_dictionaries(
    {},
    optional={
        "d_model": st.sampled_from([16, 32, 48]),
        "decoder_layers": st.integers(1, 3),
        "num_queries": st.integers(1, 9),
        "num_denoising": st.integers(0, 5),
        "decoder_n_points": st.integers(1, 5),
        "max_num_bins": st.integers(2, 8).map(lambda half: 2 * half),
        "hidden_expansion": st.floats(0.125, 2),
        "depth_mult": st.floats(0.01, 1),
        "reg_scale": st.floats(0.1, 20),
        "up": st.floats(0.01, 2),
        "use_fdr_heads": st.booleans(),
        "use_pose_lqe": st.booleans(),
        "classification_loss": st.sampled_from(["ksvf", "focal"]),
        "freeze_backbone_batch_norms": st.booleans(),
    },
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=2))
def test_configurations_are_refused_by_name(fields):
    try:
        config = DETRPoseConfig(**fields)
    except ValueError as error:
        assert str(error)
    else:
        assert DETRPoseConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


@given(st.integers(1, 20), SMALL_CONFIGURATIONS)
def test_accepted_configurations_make_a_model(num_keypoints, fields):
    config = tiny_config(num_keypoints, backbone_config=TINY_BACKBONE, **fields)
    assert DETRPoseConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    with torch.inference_mode():
        outputs = DETRPoseForPoseEstimation(config).eval()(torch.zeros(1, 3, 64, 64))
    assert outputs.pred_keypoints.shape[2:] == (num_keypoints, 2)
    assert outputs.pred_keypoints.isfinite().all() and outputs.logits.isfinite().all()


@given(st.lists(st.text(max_size=3) | SCALARS, max_size=4), JSON, JSON, JSON)
def test_schemas(names, edges, flip_pairs, sigmas):
    try:
        schema = KeypointSchema(names, edges=edges, flip_pairs=flip_pairs, sigmas=sigmas)
    except ValueError:
        return
    assert KeypointSchema.of(json.loads(json.dumps(schema.to_dict()))) == schema


LABEL_NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, 2.0, 10.0, 1e-20, 1e-12, -1.0])


@st.composite
def labels(draw):
    """Labels of one image, mostly of the right form."""
    count = draw(st.integers(0, 3))
    numbers = LABEL_NUMBERS if draw(st.booleans()) else st.floats(0, 1, width=32)
    keypoints = draw(arrays(np.float32, (count, CONFIG.num_keypoints, 3), elements=numbers))
    if draw(st.booleans()):
        keypoints[..., 2] = keypoints[..., 2] > 0.3
    return {
        "class_labels": torch.from_numpy(draw(arrays(np.int64, (count,), elements=st.integers(-1, 2)))),
        "keypoints": torch.from_numpy(keypoints),
        "area": torch.from_numpy(draw(arrays(np.float32, (count,), elements=numbers))),
    }


@given(st.lists(labels(), min_size=1, max_size=2), st.integers(0, 2**32 - 1))
def test_accepted_labels_have_finite_losses(batch, seed):
    try:
        validate_labels(batch, CONFIG, len(batch))
    except ValueError as error:
        assert "labels[" in str(error)
        return
    generator = torch.Generator().manual_seed(seed)
    shape = (len(batch), CONFIG.num_queries)
    outputs = {
        "logits": torch.randn(*shape, CONFIG.num_labels, generator=generator),
        "pred_keypoints": torch.rand(*shape, CONFIG.num_keypoints, 2, generator=generator),
    }
    for values in outputs.values():
        values.requires_grad_()
    loss, _ = pose_estimation_loss({"": outputs}, batch, CONFIG)
    loss.backward()
    assert math.isfinite(loss.detach())
    assert all(values.grad.isfinite().all() for values in outputs.values())


def annotation_file():
    """Returns the content of a valid annotation file."""
    names = list(CONFIG.keypoint_schema.names)
    person = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "num_keypoints": 2}
    person |= {"keypoints": [10, 10, 2, 20, 30, 1, 0, 0, 0], "bbox": [5, 5, 30, 40], "area": 600.0}
    return {
        "images": [{"id": index, "file_name": f"{index}.jpg", "height": 60, "width": 80} for index in (1, 2)],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}],
        "annotations": [person, {**person, "id": 2}, {**person, "id": 3, "image_id": 2}],
    }


@st.composite
def damaged(draw, content):
    """A JSON value of which one part was replaced or removed."""
    entry = content
    while True:
        keys = list(entry) if isinstance(entry, dict) else list(range(len(entry)))
        key = draw(st.sampled_from(keys))
        if not isinstance(entry[key], (dict, list)) or not entry[key] or draw(st.integers(0, 3)) == 0:
            break
        entry = entry[key]
    if draw(st.booleans()):
        entry[key] = draw(JSON)
    else:
        del entry[key]
    return content


@given(st.builds(annotation_file).flatmap(damaged))
def test_accepted_annotations_make_labels(content):
    try:
        annotations = read_annotations(content, CONFIG.keypoint_schema)
    except ValueError as error:
        assert len(str(error).splitlines()) <= 11
        return
    people = annotations.instances
    if people is not None:
        completed = people[people.is_target].completed()
        assert np.isfinite(completed.keypoints).all() and np.isfinite(completed.boxes).all()
        assert (completed.areas > 0).all()


@given(st.builds(lambda: annotation_file()["annotations"]).flatmap(damaged))
def test_annotations_for_the_processor(annotations):
    try:
        image = {"image_id": 1, "annotations": annotations}
        validate_labels(prepare_labels([image], [(60, 80)], CONFIG.keypoint_schema), CONFIG, 1)
    except ValueError as error:
        assert str(error)


DTYPES = [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64, np.complex64, np.bool_]


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0))))
def test_images_become_rgb(array):
    try:
        image = image_to_tensor(array)
    except ValueError:
        return
    assert image.ndim == 3 and len(image) == 3 and image.isfinite().all()


SETTINGS = ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "size", "rescale_factor", "image_mean"]


@given(st.dictionaries(st.sampled_from([*SETTINGS, "image_std", "keypoint_schema"]), JSON, min_size=1, max_size=2))
def test_settings_of_the_processor(fields):
    try:
        processor = DETRPoseImageProcessor(**fields)
    except ValueError:
        return
    json.loads(processor.to_json_string())


@given(st.builds(lambda: {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).flatmap(damaged))
def test_index_files(content):
    with TemporaryDirectory() as folder:
        Path(folder, "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(ValueError):
            read_state_dict(folder)
