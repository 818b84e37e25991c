"""Batches: what the model gets, several sizes, workers, processes, accelerate and transformers' Trainer."""

import signal
import subprocess
from collections import Counter

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments

from transformers_detrpose import DETRPoseConfig, DETRPoseImageProcessor
from transformers_detrpose.data import (
    CocoPoseDataset,
    Phase,
    PoseBatchSampler,
    TrainingSamples,
    collate_poses,
    evaluation_dataloader,
    multi_scale_sizes,
    paper_phases,
    to_device,
    to_labels,
    train_dataloader,
)
from transformers_detrpose.data.augmentation import FULL
from transformers_detrpose.pose_targets import validate_labels

ALWAYS = (Phase(0, FULL, True),)


@pytest.fixture(scope="module")
def dataset(people_folder):
    return CocoPoseDataset(*people_folder.arguments)


def assert_same(first, second):
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    for labels, others in zip(first["labels"], second["labels"], strict=True):
        assert labels.keys() == others.keys()
        assert all(torch.equal(labels[key], others[key]) for key in labels)


def test_a_batch_is_what_the_model_takes(dataset):
    config = DETRPoseConfig(keypoint_schema=dataset.schema, id2label=dataset.id2label)
    loader = train_dataloader(dataset, 4, size=128, phases=ALWAYS, base_repeats=4)
    assert len(loader) == 2
    for epoch in range(3):
        loader.dataset.set_epoch(epoch)
        for batch in loader:
            pixel_values = batch["pixel_values"]
            assert pixel_values.dtype == torch.float32 and pixel_values.is_contiguous()
            assert pixel_values.shape[:2] == (4, 3) and 0 <= pixel_values.min() and pixel_values.max() <= 1
            validate_labels(batch["labels"], config, batch_size=4)
            points = torch.cat([labels["keypoints"][..., :2] for labels in batch["labels"]])
            assert 0 <= points.min() and points.max() <= 1


def test_evaluation_batches_are_those_of_the_image_processor(dataset, people_folder):
    processor = DETRPoseImageProcessor(size={"height": 96, "width": 160}, keypoint_schema=dataset.schema)
    images = [dataset.open_image(index) for index in range(len(dataset))]
    targets = [
        {"image_id": image_id, "annotations": [a for a in people_folder.annotations if a["image_id"] == image_id]}
        for image_id in dataset.image_ids
    ]
    expected = processor(images=images, annotations=targets, return_tensors="pt")
    batches = list(evaluation_dataloader(dataset, 3, processor))
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), expected["pixel_values"])
    for labels, others in zip(sum((batch["labels"] for batch in batches), []), expected["labels"], strict=True):
        assert labels.keys() == others.keys()
        for key in labels:
            torch.testing.assert_close(labels[key], others[key], msg=key)


def test_images_that_travel_as_bytes_are_scaled_to_the_same_pixels(dataset):
    processor = DETRPoseImageProcessor(size={"height": 96, "width": 160}, keypoint_schema=dataset.schema)
    loaders = {
        scaled: (
            train_dataloader(dataset, 4, 64, ALWAYS, base_repeats=1, scaled=scaled),
            evaluation_dataloader(dataset, 3, processor, scaled=scaled),
        )
        for scaled in (True, False)
    }
    for scaled_loader, byte_loader in zip(*loaders.values(), strict=True):
        for expected, batch in zip(scaled_loader, byte_loader, strict=True):
            assert batch["pixel_values"].dtype == torch.uint8
            assert_same(to_device(batch, "cpu"), expected)


def test_images_that_travel_as_bytes_are_normalized_like_the_others(dataset):
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}
    size = {"height": 96, "width": 160}
    processor = DETRPoseImageProcessor(size=size, keypoint_schema=dataset.schema, do_normalize=True, **statistics)
    batches = [next(iter(evaluation_dataloader(dataset, 3, processor, scaled=scaled))) for scaled in (True, False)]
    expected = batches[0]["pixel_values"]
    assert expected.min() < -1 and expected.max() > 1 and batches[1]["pixel_values"].dtype == torch.uint8
    samples = [{**dataset[0], "image": torch.full((3, 2, 2), 51, dtype=torch.uint8)}]  # 0.2
    (pixels,) = collate_poses(samples, processor)["pixel_values"]
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.5, -0.8, -0.2]))
    for batch in batches:  # what is normalized already is not normalized again
        found = to_device(batch, "cpu", processor)["pixel_values"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs Unix signals")
def test_workers_leave_ctrl_c_to_the_process_that_they_serve(dataset):
    """It reaches them too, and would kill them before the training has been saved."""
    batches = train_dataloader(dataset, 1, 64, num_workers=1)
    loader = iter(batches)
    next(loader)
    (worker,) = loader._workers
    subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    assert len(list(loader)) == 7
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


def test_nobody_in_a_batch(folder):
    for _ in range(4):
        folder.add_image()
    dataset = CocoPoseDataset(*folder.arguments)
    config = DETRPoseConfig(keypoint_schema=dataset.schema)
    (batch,) = train_dataloader(dataset, 4, 64, ALWAYS)
    validate_labels(batch["labels"], config, 4)
    assert all(labels["keypoints"].shape == (0, 3, 3) and labels["boxes"].shape == (0, 4) for labels in batch["labels"])


def test_what_a_transform_moves_out_of_the_image_is_no_target(folder):
    folder.add_person((64, 48), [[10, 10, 2], [50, 10, 2], [30, 30, 2]])
    folder.annotate([[50, 10, 2], [55, 20, 2], [58, 30, 2]], 1)
    cropped = CocoPoseDataset(*folder.arguments, transform=v2.CenterCrop((48, 48)))[0]  # columns 8 to 55
    labels = to_labels(cropped)
    assert labels["keypoints"][:, :, 2].tolist() == [[2, 2, 2], [2, 2, 0]]
    assert labels["keypoints"][1, 2].tolist() == [0, 0, 0]
    narrow = CocoPoseDataset(*folder.arguments, transform=v2.CenterCrop((48, 32)))[0]  # columns 16 to 47
    assert to_labels(narrow)["keypoints"][:, :, 2].tolist() == [[0, 0, 2]]


def test_images_of_different_sizes_are_refused(dataset):
    with pytest.raises(ValueError, match="the images of a batch must have one size, but got"):
        collate_poses([dataset[0], dataset[1]])


def test_multi_scale_sizes_of_the_paper():
    sides = [480, 512, 544, 576, 608, 672, 704, 736, 768, 800]
    for repeats in (0, 20, 6, 4):
        counts = Counter(multi_scale_sizes(640, repeats))
        expected = {(side, side): 1 for side in sides} if repeats else {}
        assert counts == {**expected, (640, 640): repeats or 1}


def test_multi_scale_sizes_scale_with_the_base():
    sizes = multi_scale_sizes((320, 640), 2)
    assert len(sizes) == 12 and sizes[0] == (256, 480) and sizes[-1] == (416, 800)
    assert all(h % 32 == w % 32 == 0 and 0.4 < h / w < 0.6 for h, w in sizes)
    with pytest.raises(ValueError, match="must be a multiple of 32 pixels, but got 500"):
        multi_scale_sizes(500)


def sizes_of(sampler, epoch):
    sampler.samples.set_epoch(epoch)
    return [{key.size_hw for key in batch} for batch in sampler]


@pytest.fixture(scope="module")
def many_samples():
    class Many(list):
        class schema:
            flip_permutation = (0,)

    return TrainingSamples(Many([None] * 400), 640, paper_phases(52), seed=5)


def test_every_batch_has_one_size_drawn_anew_in_every_epoch(many_samples):
    sampler = PoseBatchSampler(many_samples, 4, multi_scale_sizes(640, 4))
    first, second = sizes_of(sampler, 0), sizes_of(sampler, 1)
    assert len(first) == 100 and all(len(sizes) == 1 for sizes in first)
    assert first == sizes_of(sampler, 0) and first != second
    counts = Counter(size for sizes in first + second for size in sizes)
    assert len(counts) == 11 and abs(counts[(640, 640)] / 200 - 4 / 14) < 0.1


def test_the_last_epochs_have_one_size(many_samples):
    sampler = PoseBatchSampler(many_samples, 4, multi_scale_sizes(640, 4))
    assert len(set(map(tuple, sizes_of(sampler, 47)))) > 1
    assert sizes_of(sampler, 48) == [{(640, 640)}] * 100


def test_the_batches_of_one_step_have_one_size(many_samples):
    """So that no process waits for another."""
    sizes = sizes_of(PoseBatchSampler(many_samples, 4, multi_scale_sizes(640, 4), num_processes=4), 0)
    assert all(sizes[step] == sizes[step + other] for step in range(0, 100, 4) for other in range(4))
    assert len(set(map(tuple, sizes))) > 5


def test_every_image_comes_once_in_an_epoch_in_a_new_order(many_samples):
    sampler = PoseBatchSampler(many_samples, 16, drop_last=False)
    orders = []
    for epoch in (0, 1):
        many_samples.set_epoch(epoch)
        orders.append([key.index for batch in sampler for key in batch])
        assert sorted(orders[-1]) == list(range(400)) and all(key.epoch == epoch for batch in sampler for key in batch)
    assert orders[0] != orders[1]
    many_samples.set_epoch(0)
    assert len(PoseBatchSampler(many_samples, 150)) == len(list(PoseBatchSampler(many_samples, 150))) == 2
    with pytest.raises(ValueError, match="from 1 to the number of images, 400, but got 401"):
        PoseBatchSampler(many_samples, 401)


def test_workers_change_nothing(dataset):
    alone, helped = (
        train_dataloader(dataset, 4, 64, paper_phases(10), base_repeats=1, seed=1, num_workers=num_workers)
        for num_workers in (0, 2)
    )
    for epoch in (0, 2):  # the workers live on from one to the other
        batches = []
        for loader in (alone, helped):
            loader.dataset.set_epoch(epoch)
            batches.append(list(loader))
        assert len(batches[0]) == 2
        for batch, same_batch in zip(*batches, strict=True):
            assert_same(batch, same_batch)


def test_workers_that_live_on_learn_of_the_epoch(dataset):
    """With plain indices, as transformers' Trainer draws them."""
    samples = TrainingSamples(dataset, 64, ALWAYS)
    loader = DataLoader(samples, 4, collate_fn=collate_poses, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        for batch, expected in zip(loader, DataLoader(samples, 4, collate_fn=collate_poses), strict=True):
            assert_same(batch, expected)


def test_accelerate_deals_out_the_batches_and_resumes(dataset):
    def loader(**kwargs):
        return train_dataloader(dataset, 2, 64, paper_phases(10), base_repeats=1, seed=1, **kwargs)

    plain = loader(num_processes=2)
    plain.dataset.set_epoch(3)
    expected = list(plain)
    shares = []
    for process in range(2):
        prepared = prepare_data_loader(loader(num_processes=2), num_processes=2, process_index=process)
        prepared.set_epoch(3)
        shares.append(list(prepared))
    assert expected[0]["pixel_values"].shape == expected[1]["pixel_values"].shape
    for batch, same_batch in zip(expected, (shares[0][0], shares[1][0], shares[0][1], shares[1][1]), strict=True):
        assert_same(batch, same_batch)

    resumed = prepare_data_loader(loader(num_processes=2))
    resumed.set_epoch(3)
    rest = list(skip_first_batches(resumed, 3))
    assert len(rest) == 1
    assert_same(rest[0], expected[3])


class TinyModel(torch.nn.Module):
    """Takes a batch and remembers the mean of its pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, pixel_values, labels):
        assert all(set(image) >= {"class_labels", "keypoints", "area"} for image in labels)
        self.seen.append(pixel_values.mean().item())
        return {"loss": self.weight * pixel_values.mean(), "logits": pixel_values.mean((1, 2, 3))}


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=2,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )


def test_the_trainer_of_transformers_takes_samples_and_collator(dataset, arguments):
    samples, model = TrainingSamples(dataset, 64, ALWAYS), TinyModel()
    processor = DETRPoseImageProcessor(size={"height": 64, "width": 64})
    evaluation = evaluation_dataloader(dataset, 8, processor).dataset
    trainer = Trainer(model, arguments, collate_poses, train_dataset=samples, eval_dataset=evaluation)
    trainer.train()
    assert samples.epoch == 1 and len(model.seen) == 2
    expected = []
    for epoch in (0, 1):  # the batch has all images, in whatever order
        samples.set_epoch(epoch)
        expected.append(collate_poses([samples[index] for index in range(8)])["pixel_values"].mean().item())
    assert model.seen == pytest.approx(expected, rel=1e-5) and expected[0] != pytest.approx(expected[1], rel=1e-3)
    assert trainer.evaluate()["eval_loss"] is not None


def test_the_trainer_of_transformers_takes_our_loader(dataset, arguments):
    class PoseTrainer(Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(train_dataloader(self.train_dataset, 8, 64, ALWAYS, base_repeats=1))

    model = TinyModel()
    PoseTrainer(model, arguments, collate_poses, train_dataset=dataset).train()
    loader = train_dataloader(dataset, 8, 64, ALWAYS, base_repeats=1)
    for epoch, seen in enumerate(model.seen):
        loader.dataset.set_epoch(epoch)
        assert next(iter(loader))["pixel_values"].mean().item() == pytest.approx(seen, rel=1e-5)
    assert len(model.seen) == 2
