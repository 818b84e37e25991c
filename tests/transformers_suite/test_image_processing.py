"""transformers' own tests for image processors, run on ours."""

import unittest

from upstream import load

from transformers_detrpose import DETRPoseImageProcessor

common = load("test_image_processing_common")


class DETRPoseImageProcessingTester:
    """Settings and inputs for the mixin, under the names that it expects."""

    image_processing_classes = {"torchvision": DETRPoseImageProcessor}

    def __init__(self, parent=None):
        self.batch_size = 3
        self.num_channels = 3
        self.size = {"height": 64, "width": 96}

    def prepare_image_processor_dict(self):
        return {"size": self.size, "do_resize": True, "do_normalize": False, "rescale_factor": 1 / 255}

    def prepare_image_inputs(self, **kwargs):
        return common.prepare_image_inputs(
            self.batch_size, min_resolution=30, max_resolution=120, num_channels=self.num_channels, **kwargs
        )

    def expected_output_image_shape(self, images):
        return self.num_channels, self.size["height"], self.size["width"]


class DETRPoseImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = DETRPoseImageProcessingTester  # transformers 5
    fast_image_processing_class = DETRPoseImageProcessor  # transformers 4
    test_slow_image_processor = False
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.image_processor_tester = DETRPoseImageProcessingTester(self)

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()

    def test_call_numpy_4_channels(self):
        # Upstream calls it without `do_convert_rgb=False` on transformers 4, but four channels become RGB by default.
        self.image_processor_tester.num_channels = 4
        images = self.image_processor_tester.prepare_image_inputs(numpify=True)
        processor = DETRPoseImageProcessor(**self.image_processor_dict, do_convert_rgb=False)
        pixel_values = processor(images, input_data_format="channels_last", return_tensors="pt").pixel_values
        self.assertEqual(tuple(pixel_values.shape), (3, 4, 64, 96))
