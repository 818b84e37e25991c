import base64
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import supervision
import three_kinds
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoImageProcessor

from transformers_detrpose.image_processing_detrpose import (
    DETRPoseImageProcessor,
)
from transformers_detrpose.images import load_rgb_image, resize_with_pillow
from transformers_detrpose.keypoint_schemas import COCO_PERSON, CROWDPOSE_PERSON, DEFAULT_SIGMA, KeypointSchema
from transformers_detrpose.loading import load_image_processor

TRIANGLE = KeypointSchema(names=("top", "left", "right"), sigmas=(0.05, 0.1, 0.1))


def random_image(height=37, width=53, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixels(images, **kwargs):
    return DETRPoseImageProcessor(**kwargs)(images, return_tensors="pt").pixel_values


def pillow_pixels(image, size_hw=(640, 640)):
    resized = np.array(image.convert("RGB").resize(size_hw[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1) * (1 / 255)


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    "height, width",
    [(37, 53), (640, 640), (641, 639), (900, 300), (1, 1), (1, 9), (9, 1), (3, 2), (2, 3)],  # odd, extreme and tiny
)
def test_pixels_are_those_of_pillow(height, width):
    image = random_image(height, width)
    assert torch.equal(pixels(image)[0], pillow_pixels(image))


def test_arrays_and_tensors_give_the_pixels_of_the_image():
    image = random_image()
    array = np.array(image)
    expected = pillow_pixels(image)
    for same in (array, array.transpose(2, 0, 1), torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1)):
        assert torch.equal(pixels(same)[0], expected)
    # OpenCV's order, mirrored to RGB without a copy
    mirrored = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    assert torch.equal(pixels(mirrored)[0], expected)
    # a read-only view of the image's memory
    assert torch.equal(pixels(np.asarray(image))[0], expected)


def test_ambiguous_arrays_need_their_format():
    array = np.array(random_image(height=3, width=7))
    expected = pillow_pixels(Image.fromarray(array))
    assert torch.equal(pixels(array, input_data_format="channels_last")[0], expected)


def test_batch_of_different_sizes_and_types():
    images = [random_image(20, 30, 1), np.array(random_image(20, 30, 2)), random_image(50, 10, 3)]
    batch = pixels(images)
    assert batch.shape == (3, 3, 640, 640) and batch.dtype == torch.float32
    for image, values in zip(images, batch, strict=True):
        assert torch.equal(values, pillow_pixels(Image.fromarray(np.array(image))))


def test_other_size_and_no_rescaling():
    image = random_image()
    batch = pixels(image, size={"height": 96, "width": 64}, do_rescale=False)
    assert batch.shape == (1, 3, 96, 64) and batch.dtype == torch.uint8
    assert torch.equal(batch[0] * (1 / 255), pillow_pixels(image, (96, 64)))


def test_float_images_and_other_filters_use_torchvision():
    image = random_image()
    array = np.array(image).transpose(2, 0, 1)
    from_float = pixels(array.astype(np.float32) / 255, do_rescale=False)[0]
    assert (from_float - pillow_pixels(image)).abs().max() < 2 / 255
    bicubic = np.array(image.resize((640, 640), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    values = pixels(image, resample=Image.Resampling.BICUBIC, do_rescale=False)[0]
    assert np.abs(values.int().numpy() - bicubic).max() <= 2


def test_normalization_is_possible():
    image = random_image()
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    values = pixels(image, do_normalize=True, image_mean=mean, image_std=std)[0]
    expected = (pillow_pixels(image) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(values, expected)


def test_resize_with_pillow_keeps_leading_dimensions():
    images = torch.randint(0, 256, (2, 5, 3, 8, 9), dtype=torch.uint8)
    resized = resize_with_pillow(images, (4, 6))
    assert resized.shape == (2, 5, 3, 4, 6)
    plane = Image.fromarray(images[1, 4, 2].numpy()).resize((6, 4), Image.Resampling.BILINEAR)
    assert torch.equal(resized[1, 4, 2], torch.from_numpy(np.array(plane)))


# ---------------------------------------------------------------- modes, files, orientation

GREY = np.array([[0, 64], [128, 255]], dtype=np.uint8)


def rgb_of(image, **kwargs):
    """What the processor makes of an image, without resizing: (height, width, 3)."""
    values = pixels(image, do_resize=False, do_rescale=False, **kwargs)[0]
    return values.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (2, 2), 7)]),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("RGBA"),
        Image.merge("CMYK", [Image.new("L", (2, 2), 0)] * 3 + [Image.fromarray(255 - GREY)]),
        Image.fromarray(GREY.astype(np.uint16) * 257),  # I;16
        Image.fromarray(GREY.astype(np.int32) * 257),  # I
        Image.fromarray(GREY.astype(np.float32)),  # F
        Image.fromarray(GREY.astype(np.float32) / 255),  # F, as fractions
        GREY[..., None],
        GREY[None],
        GREY[None].astype(np.uint16) * 257,
        torch.from_numpy(GREY)[None],
        np.dstack([GREY] * 3 + [np.zeros_like(GREY)]),  # RGBA, everything transparent
    ],
    ids=lambda image: getattr(image, "mode", None) or str(getattr(image, "shape", "")),
)
def test_grey_in_any_mode(image):
    kwargs = {"input_data_format": "channels_last"} if getattr(image, "shape", ())[-1:] in ((1,), (4,)) else {}
    assert np.array_equal(rgb_of(image, **kwargs), np.dstack([GREY] * 3))


def test_black_and_white():
    image = Image.fromarray(GREY > 100)
    assert image.mode == "1"
    assert np.array_equal(rgb_of(image), np.dstack([np.where(GREY > 100, 255, 0)] * 3))


def test_transparency_is_dropped_not_composited():
    color = (200, 100, 50)
    rgba = Image.new("RGBA", (2, 2), (*color, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, *color])
    palette.info["transparency"] = 1
    for image in (rgba, palette):
        assert np.array_equal(rgb_of(image)[0, 0], color)


def test_channels_that_are_no_image():
    with pytest.raises(ValueError, match="1, 3 or 4 channels .* got 2"):
        pixels(np.zeros((2, 8, 8), np.uint8), input_data_format="channels_first")
    assert pixels(np.zeros((4, 8, 8), np.uint8), do_convert_rgb=False).shape == (1, 4, 640, 640)


UNUSABLE = {
    "empty": (np.zeros((0, 5, 3), np.uint8), r"must have pixels, but got the shape \(0, 5, 3\)"),
    "complex": (np.zeros((3, 8, 8), np.complex64), "real numbers, but got torch.complex64"),
    "NaN": (np.full((3, 8, 8), np.nan, np.float32), "must be finite, but got NaN"),
    "infinite": (torch.full((3, 8, 8), np.inf), "must be finite"),
    "32 bit": (Image.fromarray(np.array([[0, 2**30]], np.int32)), "16-bit values, 0 to 65535, but got 0 to 1.07374e"),
    "negative": (Image.fromarray(np.array([[-1, 5]], np.int32)), "16-bit values, 0 to 65535, but got -1 to 5"),
    "float of 16 bit": (Image.fromarray(np.array([[0, 256.5]], np.float32)), "0 to 1 or to 255, but got 0 to 256.5"),
    "float NaN": (Image.fromarray(np.array([[0, np.nan]], np.float32)), "floating-point .* but got nan to nan"),
}


@pytest.mark.parametrize("image, message", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_images(image, message):
    kwargs = {} if isinstance(image, Image.Image) else {"input_data_format": "channels_first"}
    with pytest.raises(ValueError, match=message):
        pixels(image, **kwargs)


def save_rotated(path, **save_options):
    """Saves an upright image turned by 90 degrees with the EXIF tag that undoes it; returns the upright image."""
    upright = random_image(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, **save_options)
    return upright


def test_orientation_of_files_but_not_of_images(tmp_path):
    path = tmp_path / "rotated.png"
    upright = save_rotated(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    for source in (str(path), path, encoded, f"data:image/png;base64,{encoded}"):
        assert np.array_equal(rgb_of(source), np.array(upright)), source
    image = Image.open(path)
    assert rgb_of(image).shape == (20, 30, 3)
    assert np.array_equal(np.array(load_rgb_image(image)), np.array(upright))


def test_sixteen_bit_file_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    assert np.array_equal(rgb_of(str(path))[..., 0], GREY)


def test_list_of_paths_and_missing_file(tmp_path):
    path = tmp_path / "image.png"
    random_image().save(path)
    assert torch.equal(pixels([str(path), path]), torch.stack([pillow_pixels(random_image())] * 2))
    with pytest.raises(ValueError, match="no-such-file"):
        pixels(str(tmp_path / "no-such-file.png"))


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("schema", [None, "coco", CROWDPOSE_PERSON, TRIANGLE.to_dict()])
def test_save_and_load(tmp_path, schema):
    processor = DETRPoseImageProcessor(keypoint_schema=schema, size={"height": 320, "width": 480})
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert fields["image_processor_type"] == "DETRPoseImageProcessor"
    assert ("keypoint_schema" in fields) == (schema is not None)
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), DETRPoseImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is DETRPoseImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.keypoint_schema == processor.keypoint_schema
        assert (loaded.size["height"], loaded.size["width"]) == (320, 480)


def test_schema_can_be_replaced_when_loading(tmp_path):
    DETRPoseImageProcessor(keypoint_schema="coco").save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, keypoint_schema="crowdpose")
    assert loaded.keypoint_schema == CROWDPOSE_PERSON


def test_unknown_schema():
    with pytest.raises(ValueError, match="'hand'.*'coco', 'crowdpose'"):
        DETRPoseImageProcessor(keypoint_schema="hand")


# ---------------------------------------------------------------- labels


def person(**changes):
    annotation = {
        "id": 5,
        "category_id": 1,
        "keypoints": [10, 20, 2, 30, 5, 1, 7, 8, 0],
        "bbox": [10, 4, 20, 16],
        "area": 80.0,
        "iscrowd": 0,
    }
    annotation.update(changes)
    return {key: value for key, value in annotation.items() if value is not ...}


def labels_of(*annotations, size_hw=(20, 40), schema=TRIANGLE):
    processor = DETRPoseImageProcessor(keypoint_schema=schema)
    target = {"image_id": 9, "annotations": list(annotations)}
    inputs = processor(random_image(*size_hw), annotations=target, return_tensors="pt")
    assert len(inputs["labels"]) == 1
    return inputs["labels"][0]


def test_labels_are_fractions_of_the_image():
    labels = labels_of(person(), person(category_id=3, keypoints=[40, 20, 1, 0, 0, 0, 0, 0, 0]))
    assert labels["class_labels"].tolist() == [1, 3] and labels["class_labels"].dtype == torch.int64
    expected = torch.tensor([[0.25, 1.0, 2], [0.75, 0.25, 1], [0, 0, 0]])  # unlabelled (7, 8) becomes (0, 0)
    assert torch.equal(labels["keypoints"][0], expected) and labels["keypoints"].dtype == torch.float32
    assert labels["keypoints"].shape == (2, 3, 3)
    torch.testing.assert_close(labels["area"], torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.5, 0.6, 0.5, 0.8]] * 2))
    assert labels["image_id"].tolist() == [9] and labels["orig_size"].tolist() == [20, 40]


def test_area_from_the_box_where_there_is_none():
    for area in (None, ...):
        torch.testing.assert_close(labels_of(person(area=area))["area"], torch.tensor([0.53 * 20 * 16 / (20 * 40)]))


def test_crowds_and_unlabelled_people_are_left_out():
    unlabelled = person(keypoints=[3, 4, 0] * 3, bbox=..., area=...)
    crowd = person(iscrowd=1, keypoints=...)
    labels = labels_of(crowd, unlabelled, person(id=6), person(id=7, iscrowd=...))
    assert labels["class_labels"].tolist() == [1, 1]


@pytest.mark.parametrize("annotations", [[], [person(iscrowd=1)]])
def test_nobody_keeps_the_shapes(annotations):
    labels = labels_of(*annotations)
    shapes = {key: tuple(values.shape) for key, values in labels.items()}
    assert shapes == {
        "class_labels": (0,),
        "keypoints": (0, 3, 3),
        "area": (0,),
        "boxes": (0, 4),
        "image_id": (1,),
        "orig_size": (2,),
    }
    assert labels["class_labels"].dtype == torch.int64 and labels["keypoints"].dtype == torch.float32


def test_without_a_schema_the_batch_tells_the_number_of_keypoints():
    processor = DETRPoseImageProcessor()
    nobody, somebody = {"image_id": 1, "annotations": []}, {"image_id": 2, "annotations": [person()]}
    labels = processor([random_image()] * 2, annotations=[nobody, somebody], return_tensors="pt")["labels"]
    assert [label["keypoints"].shape for label in labels] == [(0, 3, 3), (1, 3, 3)]
    labels = processor(random_image(), annotations=nobody, return_tensors="pt")["labels"]
    assert labels[0]["keypoints"].shape == (0, 0, 3)


def test_labels_do_not_depend_on_resizing_and_leave_annotations_alone():
    target = {"image_id": 9, "annotations": [person()]}
    before = json.dumps(target)
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    image = random_image(20, 40)
    with_resize, without = (
        processor(image, annotations=target, do_resize=do_resize, return_tensors="pt")["labels"][0]
        for do_resize in (True, False)
    )
    assert all(torch.equal(with_resize[key], without[key]) for key in with_resize)
    assert json.dumps(target) == before


MALFORMED = {
    "too few numbers": (dict(keypoints=[1, 2, 2]), r"`keypoints` must be .* 3 keypoints \(9 .*got \[1, 2, 2\] \(3 val"),
    "no keypoints": (dict(keypoints=...), r"`keypoints` .* got None"),
    "not numbers": (dict(keypoints=["a"] * 9), r"`keypoints` .* got \['a'"),
    "not finite": (dict(keypoints=[float("nan")] * 9), r"`keypoints` .* finite .* got \[nan"),
    "visibility": (dict(keypoints=[1, 2, 3] * 3), r"visibilities .* 0, 1 or 2, but got \[3.0, 3.0, 3.0\]"),
    "no category": (dict(category_id=...), r"`category_id` must be an integer .* got None"),
    "category text": (dict(category_id="person"), r"`category_id` .* got 'person'"),
    "negative category": (dict(category_id=-1), r"`category_id` .* got -1"),
    "no box": (dict(bbox=...), r"`bbox` must be x, y, width, height \(4 .* got None"),
    "short box": (dict(bbox=[1, 2, 3]), r"`bbox` .* got \[1, 2, 3\] \(3 values\)"),
    "negative box": (dict(bbox=[1, 2, -3, 4]), r"`bbox` must be .* no negative sizes\), but got \[1, 2, -3, 4\]"),
    "area text": (dict(area="large"), r"`area` .* got 'large'"),
    "zero area": (dict(area=0), r"`area` must be above 0, but got 0"),
    "zero area of box": (
        dict(area=..., bbox=[1, 2, 0, 4]),
        r"`bbox` must be of a size above 0 .* no `area`, but got \[1, 2, 0",
    ),
}


@pytest.mark.parametrize("changes, message", MALFORMED.values(), ids=MALFORMED)
def test_malformed_annotations(changes, message):
    with pytest.raises(ValueError, match="image 9, annotation 5: .*" + message):
        labels_of(person(), person(**changes))


@pytest.mark.parametrize(
    "target, message",
    [
        ([], "got 1 images but 0 annotations"),
        (7 * [{"image_id": 1, "annotations": []}], "got 1 images but 7 annotations"),
        (["people"], "image number 0 must be a dictionary, but got 'people'"),
        ({"annotations": []}, "`image_id` must be an integer, but got None"),
        ({"image_id": "a", "annotations": []}, "`image_id` must be an integer, but got 'a'"),
        ({"image_id": 1}, "image 1: `annotations` must be a list of dictionaries, but got None"),
        ({"image_id": 1, "annotations": [[1, 2]]}, r"must be a list of dictionaries, but got \[\[1, 2\]\]"),
    ],
)
def test_malformed_targets(target, message):
    with pytest.raises(ValueError, match=message):
        DETRPoseImageProcessor(keypoint_schema=TRIANGLE)(random_image(), annotations=target, return_tensors="pt")


def test_labels_do_not_follow_padding():
    target = {"image_id": 1, "annotations": [person()]}
    with pytest.raises(ValueError, match="do_pad"):
        DETRPoseImageProcessor(do_pad=True, pad_size={"height": 700, "width": 700})(random_image(), target)


# ---------------------------------------------------------------- post-processing


def fake_outputs(batch_size=2, num_queries=5, num_labels=2, num_keypoints=3, std=True, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(batch_size, num_queries, *shape, generator=generator).to(dtype)

    return SimpleNamespace(
        logits=random(num_labels) * 8 - 4,
        pred_keypoints=random(num_keypoints, 2),
        pred_keypoint_std=random(num_keypoints, 2) / 50 if std else None,
    )


def slow_post_process(outputs, threshold, sizes, sigmas):
    """The definition, one pair of query and label at a time."""
    results = []
    for logits, keypoints, deviations, (height, width) in zip(
        outputs.logits, outputs.pred_keypoints, outputs.pred_keypoint_std, sizes, strict=True
    ):
        pairs = [
            (float(logits[query, label].sigmoid()), label, query)
            for query in range(logits.shape[0])
            for label in range(logits.shape[1])
        ]
        poses = []
        for score, label, query in sorted(pairs, reverse=True)[: logits.shape[0]]:
            if score <= threshold:
                continue
            xs, ys = keypoints[query, :, 0] * width, keypoints[query, :, 1] * height
            area = 0.53 * max(float(xs.max() - xs.min()), 1) * max(float(ys.max() - ys.min()), 1)
            std = deviations[query] * torch.tensor([width, height])

            def expected_scores(factor, std=std, area=area):
                k2 = [area * (2 * sigma) ** 2 for sigma in sigmas]
                variances = (factor * std.double()).square().tolist()
                return [((1 + x / k) * (1 + y / k)) ** -0.5 for k, (x, y) in zip(k2, variances, strict=True)]

            # The larger the errors, the smaller the similarity: halve the range of the factor that makes it the score.
            low, high = 1e-6, 1e6
            for _ in range(100):
                factor = (low * high) ** 0.5
                low, high = (factor, high) if np.mean(expected_scores(factor)) > score else (low, factor)
            keypoint_scores, std = expected_scores(factor), (factor * std.double()).float()
            box = torch.stack([xs.min(), ys.min(), xs.max(), ys.max()])
            poses.append((score, label, torch.stack([xs, ys], dim=1), torch.tensor(keypoint_scores), std, box))
        results.append(poses)
    return results


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
def test_post_processing_follows_its_definition(threshold, device):
    outputs, sizes = fake_outputs(batch_size=3, num_labels=3), [(480, 640), (100, 50), (7, 2000)]
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    on_device = SimpleNamespace(**{key: values.to(device) for key, values in vars(outputs).items()})
    results = processor.post_process_keypoint_detection(on_device, threshold, sizes)
    expected = slow_post_process(outputs, threshold, sizes, TRIANGLE.sigmas)
    assert [len(result["scores"]) for result in results] == [len(poses) for poses in expected]
    for result, poses in zip(results, expected, strict=True):
        assert {values.device for values in result.values()} == {device}
        result = {key: values.cpu() for key, values in result.items()}
        assert list(result) == ["scores", "labels", "keypoints", "keypoint_scores", "keypoint_std", "boxes"]
        assert result["labels"].dtype == torch.int64
        for index, (score, label, keypoints, keypoint_scores, deviations, box) in enumerate(poses):
            assert result["scores"][index].item() == pytest.approx(score)
            assert result["labels"][index] == label
            torch.testing.assert_close(result["keypoints"][index], keypoints)
            torch.testing.assert_close(result["keypoint_scores"][index], keypoint_scores, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(result["keypoint_std"][index], deviations, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(result["boxes"][index], box)


def test_a_larger_batch_takes_no_more_operations():
    """What makes post-processing fast: nothing is done image by image."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for batch_size in (1, 32):
        outputs = fake_outputs(batch_size=batch_size)
        with Counter() as counter:
            DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.3, [(480, 640)] * batch_size)
        counts.append(counter.count)
    assert counts[0] == counts[1] < 240  # most of them scale standard deviations


def test_sizes_are_height_and_width():
    outputs = fake_outputs(batch_size=1)
    outputs.pred_keypoints = torch.tensor([0.5, 0.25]).expand(1, 5, 3, 2)
    result = DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.0, [(400, 1000)])[0]
    assert torch.equal(result["keypoints"], torch.tensor([500.0, 100.0]).expand(5, 3, 2))
    assert result["boxes"][0].tolist() == [500, 100, 500, 100]


def test_sizes_may_be_tensors():
    outputs, sizes = fake_outputs(), [(480, 640), (10, 20)]
    post_process = DETRPoseImageProcessor().post_process_keypoint_detection
    expected = post_process(outputs, 0.2, sizes)
    for same in (torch.tensor(sizes), torch.tensor(sizes).float(), list(torch.tensor(sizes)), np.array(sizes)):
        for result, reference in zip(post_process(outputs, 0.2, same), expected, strict=True):
            assert all(torch.equal(result[key], reference[key]) for key in reference)


def test_without_sizes_coordinates_are_fractions():
    outputs = fake_outputs()
    results = DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.0)
    in_pixels = DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.0, [(1000, 1000)] * 2)
    for fractions, pixel_result in zip(results, in_pixels, strict=True):
        torch.testing.assert_close(fractions["keypoints"] * 1000, pixel_result["keypoints"])
        torch.testing.assert_close(fractions["keypoint_scores"], pixel_result["keypoint_scores"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype):
    outputs = fake_outputs(dtype=dtype)
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    in_float = SimpleNamespace(**{key: values.float() for key, values in vars(outputs).items()})
    for result, reference in zip(
        processor.post_process_keypoint_detection(outputs, 0.3, [(480, 640)] * 2),
        processor.post_process_keypoint_detection(in_float, 0.3, [(480, 640)] * 2),
        strict=True,
    ):
        assert result["keypoints"].dtype == torch.float32
        assert all(torch.equal(result[key], reference[key]) for key in reference)


def test_nobody_above_the_threshold():
    result = DETRPoseImageProcessor().post_process_keypoint_detection(fake_outputs(), 1.0, [(480, 640)] * 2)[1]
    shapes = {key: tuple(values.shape) for key, values in result.items()}
    assert shapes == {
        "scores": (0,),
        "labels": (0,),
        "keypoints": (0, 3, 2),
        "keypoint_scores": (0, 3),
        "keypoint_std": (0, 3, 2),
        "boxes": (0, 4),
    }


def test_score_must_exceed_the_threshold():
    outputs = fake_outputs(batch_size=1, num_queries=2, num_labels=1)
    outputs.logits = torch.tensor([[[1000.0], [-1000.0]]])  # scores of exactly 1 and 0
    processor = DETRPoseImageProcessor()
    assert [
        len(processor.post_process_keypoint_detection(outputs, threshold)[0]["scores"]) for threshold in (0.0, 0.5, 1.0)
    ] == [1, 1, 0]


@pytest.mark.parametrize("missing", [None, "attribute"])
def test_keypoint_scores_without_deviations(missing):
    outputs = fake_outputs(std=False)
    if missing == "attribute":
        del outputs.pred_keypoint_std
    result = DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.0)[0]
    assert torch.equal(result["keypoint_scores"], result["scores"][:, None].expand(-1, 3))
    assert "keypoint_std" not in result
    (pose, *_), _ = DETRPoseImageProcessor().post_process_pose_estimation(outputs, 0.0)
    assert list(pose) == ["keypoints", "scores", "labels", "bbox", "score", "label"]


def test_one_dictionary_per_pose():
    """ViTPose's contract, with the numbers of the other post-processing."""
    outputs, sizes = fake_outputs(batch_size=3), [(480, 640), (100, 50), (7, 2000)]
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    results = processor.post_process_pose_estimation(outputs, 0.3, sizes)
    expected = processor.post_process_keypoint_detection(outputs, 0.3, sizes)
    columns = {
        "keypoints": "keypoints",
        "scores": "keypoint_scores",
        "bbox": "boxes",
        "score": "scores",
        "label": "labels",
        "keypoint_std": "keypoint_std",
    }
    assert [len(poses) for poses in results] == [len(result["scores"]) for result in expected]
    assert sum(map(len, results)) > 3
    for poses, result in zip(results, expected, strict=True):
        for index, pose in enumerate(poses):
            assert list(pose) == ["keypoints", "scores", "labels", "bbox", "score", "label", "keypoint_std"]
            assert pose["labels"].tolist() == [0, 1, 2] and pose["labels"].dtype == torch.int64
            assert all(torch.equal(pose[key], result[column][index]) for key, column in columns.items())


def test_supervision_reads_one_dictionary_per_pose():
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    outputs, sizes = fake_outputs(), torch.tensor([(480, 640)] * 2)
    results = processor.post_process_pose_estimation(outputs, threshold=0.0, target_sizes=sizes)
    expected = processor.post_process_keypoint_detection(outputs, threshold=0.0, target_sizes=sizes)[0]
    poses = supervision.KeyPoints.from_transformers(results[0])
    assert len(poses) == 5
    assert np.array_equal(poses.xy, expected["keypoints"].numpy())
    assert np.array_equal(poses.keypoint_confidence, expected["keypoint_scores"].numpy())


def test_nobody_is_an_empty_list():
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    results = processor.post_process_pose_estimation(fake_outputs(), threshold=1.0, target_sizes=[(480, 640)] * 2)
    assert results == [[], []]
    assert len(supervision.KeyPoints.from_transformers(results[0])) == 0


@pytest.mark.parametrize(
    "name, value",
    [("logits", np.nan), ("pred_keypoints", np.nan), ("pred_keypoints", np.inf), ("pred_keypoints", -np.inf)],
)
def test_outputs_that_are_not_finite(name, value):
    outputs = fake_outputs()
    getattr(outputs, name)[1, 2, 0] = value
    with pytest.raises(ValueError, match="`outputs` must be finite"):
        DETRPoseImageProcessor().post_process_keypoint_detection(outputs, threshold=0.0)


def test_sigmas_come_from_the_schema():
    outputs = fake_outputs(num_keypoints=17)
    coco = DETRPoseImageProcessor(keypoint_schema=COCO_PERSON).post_process_keypoint_detection(outputs)[0]
    uniform = DETRPoseImageProcessor().post_process_keypoint_detection(outputs)[0]
    wider = torch.tensor(COCO_PERSON.sigmas) > DEFAULT_SIGMA
    assert torch.equal(coco["keypoint_scores"] > uniform["keypoint_scores"], wider.expand(len(coco["scores"]), -1))


def test_coinciding_keypoints_keep_finite_scores():
    outputs = fake_outputs()
    outputs.pred_keypoints = torch.full((2, 5, 3, 2), 0.5)
    for sizes in (None, [(480, 640)] * 2):
        scores = DETRPoseImageProcessor().post_process_keypoint_detection(outputs, 0.0, sizes)[0]["keypoint_scores"]
        assert scores.isfinite().all() and (scores > 0).all() and (scores < 1).all()


def change(**changes):
    outputs = fake_outputs()
    vars(outputs).update(changes)
    return outputs


@pytest.mark.parametrize(
    "outputs, arguments, message",
    [
        (change(), dict(threshold=1.5), "`threshold` must lie between 0 and 1, but got 1.5"),
        (change(), dict(threshold=-0.1), "`threshold` .* got -0.1"),
        (change(), dict(target_sizes=[(480, 640)]), "each of 2 images"),
        (change(), dict(target_sizes=[(480, 640, 3)] * 2), "positive height and width"),
        (change(), dict(target_sizes=[(480, 0)] * 2), "positive height and width"),
        (change(), dict(target_sizes=[(480, float("inf"))] * 2), "positive height and width"),
        (change(), dict(target_sizes=torch.tensor([480, 640])), "positive height and width"),
        (change(), dict(target_sizes=(480, 640)), r"each of 2 images, but got \(480, 640\)"),
        (change(), dict(target_sizes=[(480,), (480, 640)]), "positive height and width"),
        (change(logits=torch.zeros(2, 5)), {}, r"`logits` must have the shape .* got \(2, 5\)"),
        (change(pred_keypoints=torch.zeros(2, 4, 3, 2)), {}, r"`pred_keypoints` .*\(2, 5, 'K', 2\).*\(2, 4, 3, 2\)"),
        (change(pred_keypoints=torch.zeros(2, 5, 6)), {}, r"`pred_keypoints` .* got \(2, 5, 6\)"),
        (
            change(pred_keypoint_std=torch.zeros(2, 5, 2, 2)),
            {},
            r"`pred_keypoint_std` .*\(2, 5, 3, 2\).*\(2, 5, 2, 2\)",
        ),
    ],
)
def test_unusable_arguments(outputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        DETRPoseImageProcessor(keypoint_schema=TRIANGLE).post_process_keypoint_detection(outputs, **arguments)


def test_schema_of_another_model():
    with pytest.raises(ValueError, match="outputs have 3 keypoints, but `keypoint_schema` has 17"):
        DETRPoseImageProcessor(keypoint_schema="coco").post_process_keypoint_detection(fake_outputs())


def test_coordinates_survive_the_round_trip():
    """Keypoints that become labels, predicted perfectly, come back as the pixels that were annotated."""
    labels = labels_of(person(), size_hw=(20, 40))
    outputs = SimpleNamespace(logits=torch.tensor([[[-9.0, 9.0]]]), pred_keypoints=labels["keypoints"][None, :, :, :2])
    processor = DETRPoseImageProcessor(keypoint_schema=TRIANGLE)
    result = processor.post_process_keypoint_detection(outputs, target_sizes=labels["orig_size"][None])[0]
    torch.testing.assert_close(result["keypoints"][0, :2], torch.tensor([[10.0, 20.0], [30.0, 5.0]]))


def test_json_of_the_processor_is_json():
    text = DETRPoseImageProcessor(keypoint_schema="coco").to_json_string()
    assert KeypointSchema(**json.load(io.StringIO(text))["keypoint_schema"]) == COCO_PERSON


@pytest.mark.parametrize(
    "setting, accepted",
    [
        ({"rescale_factor": 0}, "a number above 0"),
        ({"rescale_factor": math.nan}, "a number above 0"),
        ({"rescale_factor": "1/255"}, "a number above 0"),
        ({"rescale_factor": None}, "a number above 0"),
        ({"do_resize": "no"}, "True or False"),  # which Python takes for True
        ({"do_normalize": 2}, "True or False"),
        ({"size": {"height": 0, "width": 64}}, "whole numbers of pixels"),
        ({"size": {"height": 64.5, "width": 64}}, "whole numbers of pixels"),
        ({"image_std": [1, 0, 1]}, "numbers above 0"),
        ({"image_mean": [0.5, math.nan, 0.5]}, "numbers, one for each channel"),
        (
            {"do_normalize": True, "image_std": 0.5, "image_mean": None},
            "one or three numbers if `do_normalize` is True",
        ),
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 2}, "one or three numbers"),
    ],
)
def test_impossible_settings(setting, accepted, tmp_path):
    field = list(setting)[-1]
    with pytest.raises(ValueError, match=f"`{field}` must be .*{accepted}.*, but got "):
        DETRPoseImageProcessor(**setting)
    DETRPoseImageProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **setting}))
    with pytest.raises(ValueError, match=f"`{field}` must be "):  # as every command loads it
        load_image_processor(str(tmp_path))


def test_errors_name_the_image(tmp_path):
    good = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="image number 1: an image must be finite"):
        DETRPoseImageProcessor()([good, np.full((8, 8, 3), np.nan)], return_tensors="pt")
    paths = [tmp_path / "0.png", tmp_path / "1.png", tmp_path / "2.png"]
    for path in paths:
        random_image().save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:1000])
    with pytest.raises(ValueError, match="image number 2: "):
        DETRPoseImageProcessor()(list(map(str, paths)), return_tensors="pt")


# ---------------------------------------------------------------- classes with different keypoints


def class_outputs(use_std=True, num_queries=5, seed=0):
    """Random outputs for the classes of `three_kinds`; keypoints that the class of a pose lacks may be NaN or huge."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_queries, three_kinds.SCHEMA.num_keypoints, 2)
    outputs = {"logits": torch.randn(2, num_queries, 5, generator=generator)}
    outputs["pred_keypoints"] = torch.rand(shape, generator=generator)
    outputs["pred_keypoint_std"] = 0.01 + 0.1 * torch.rand(shape, generator=generator) if use_std else None
    return SimpleNamespace(**outputs)


@pytest.mark.parametrize("label", [three_kinds.PERSON, three_kinds.DOG, three_kinds.BALL])
@pytest.mark.parametrize("use_std", [True, False])
def test_a_pose_is_what_a_model_of_its_class_alone_would_give(label, use_std, device):
    outputs = class_outputs(use_std)
    outputs.logits[..., [other for other in range(5) if other != label]] = -30
    outputs = SimpleNamespace(**{name: x if x is None else x.to(device) for name, x in vars(outputs).items()})
    sizes = [(80, 60), (300, 200)]
    found = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA).post_process_keypoint_detection(
        outputs, 0.01, sizes
    )
    own = list(three_kinds.SCHEMA.of_class(label).indices)
    alone = SimpleNamespace(
        logits=outputs.logits,
        pred_keypoints=outputs.pred_keypoints[:, :, own],
        pred_keypoint_std=outputs.pred_keypoint_std[:, :, own] if use_std else None,
    )
    processor = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMAS[label])
    expected = processor.post_process_keypoint_detection(alone, 0.01, sizes)
    others = [index for index in range(three_kinds.SCHEMA.num_keypoints) if index not in own]
    for image, wanted in zip(found, expected, strict=True):
        assert len(image["scores"]) == 5 and set(image["labels"].tolist()) == {label}
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(image[name], wanted[name])
        for name in ("keypoints", "keypoint_scores", "keypoint_std")[: 3 if use_std else 2]:
            torch.testing.assert_close(image[name][:, own], wanted[name], rtol=1e-4, atol=1e-4)
        # What the class lacks changes nothing: it is in the middle of the box, with scores and deviations of 0.
        middles = (image["boxes"][:, :2] + image["boxes"][:, 2:]) / 2
        torch.testing.assert_close(image["keypoints"][:, others], middles[:, None].expand(-1, len(others), 2))
        assert not image["keypoint_scores"][:, others].any()
        assert not use_std or not image["keypoint_std"][:, others].any()


def test_keypoints_that_a_class_lacks_may_be_anything():
    outputs = class_outputs()
    outputs.logits[..., [0, 1, 2, 3]] = -30
    expected = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA).post_process_keypoint_detection(outputs, 0.01)
    for value in (math.nan, math.inf, 1e6):
        outputs.pred_keypoints[:, :, :-1] = value
        found = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA).post_process_keypoint_detection(
            outputs, 0.01
        )
        assert all(
            torch.equal(image[key], wanted[key]) for image, wanted in zip(found, expected, strict=True) for key in image
        )


def test_poses_of_classes_one_by_one():
    outputs = class_outputs()
    outputs.logits[..., [0, 3]] = -30
    processor = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA)
    found = processor.post_process_pose_estimation(outputs, 0.01, [(80, 60), (300, 200)])
    together = processor.post_process_keypoint_detection(outputs, 0.01, [(80, 60), (300, 200)])
    lengths = {1: 17, 2: 6, 4: 1}
    assert {pose["label"].item() for pose in found[0] + found[1]} == set(lengths)
    dogs = [pose for pose in found[0] + found[1] if pose["label"] == three_kinds.DOG]
    assert supervision.KeyPoints.from_transformers(dogs).xy.shape == (len(dogs), 6, 2)
    for poses, image in zip(found, together, strict=True):
        for pose, keypoints, scores in zip(poses, image["keypoints"], image["keypoint_scores"], strict=True):
            own = three_kinds.SCHEMA.of_class(pose["label"].item()).indices
            assert pose["labels"].tolist() == list(own) and len(own) == lengths[pose["label"].item()]
            assert torch.equal(pose["keypoints"], keypoints[list(own)])
            assert torch.equal(pose["scores"], scores[list(own)]) and pose["keypoint_std"].shape == (len(own), 2)


def test_annotations_of_classes():
    processor = DETRPoseImageProcessor(keypoint_schema=three_kinds.SCHEMA, size={"height": 64, "width": 64})
    ball = {"category_id": 4, "keypoints": [10, 20, 2], "bbox": [5, 15, 10, 10]}
    dog = {"category_id": 2, "keypoints": [*[1, 2, 2], *[3, 4, 1], *[0] * 12], "bbox": [0, 0, 9, 9]}
    inputs = processor(
        random_image(40, 80), annotations={"image_id": 1, "annotations": [ball, dog]}, return_tensors="pt"
    )
    (labels,) = inputs["labels"]
    names = three_kinds.SCHEMA.names
    assert labels["class_labels"].tolist() == [4, 2]
    assert labels["keypoints"].shape == (2, 23, 3)
    assert labels["keypoints"][0, names.index("center")].tolist() == [10 / 80, 20 / 40, 2]
    torch.testing.assert_close(labels["keypoints"][1, names.index("tail")], torch.tensor([1 / 80, 2 / 40, 2]))
    torch.testing.assert_close(labels["keypoints"][1, names.index("nose")], torch.tensor([3 / 80, 4 / 40, 1]))
    assert labels["keypoints"][..., 2].sum() == 5
    for annotation, message in (
        ({**ball, "keypoints": [1, 2, 2] * 2}, "each of 1 keypoints"),
        ({**ball, "category_id": 3}, r"`category_id` must be one of .* \[1, 2, 4\], but got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(random_image(40, 80), annotations={"image_id": 1, "annotations": [annotation]})
