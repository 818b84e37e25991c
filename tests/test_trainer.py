"""Fine-tuning with transformers' own `Trainer`."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from tiny import make_labels, tiny_config
from transformers_detrpose import DETRPoseForPoseEstimation

COUNTS = (2, 0, 1, 3)  # people in each image


class Pictures(torch.utils.data.Dataset):
    """Noise images, with people."""

    def __init__(self, config):
        self.labels = make_labels(config, COUNTS)
        self.pixel_values = torch.rand(len(COUNTS), 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


def collate(samples):
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": [sample["labels"] for sample in samples],
    }


@pytest.fixture
def trainer(tmp_path, accelerate_device):
    torch.manual_seed(0)
    config = tiny_config(num_denoising=4)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Counts the predictions: a list of batches, since images have different numbers of people."""
        logits = [outputs[1] for outputs in prediction.predictions]  # after the dictionary of losses
        people = [len(image["class_labels"]) for batch in prediction.label_ids for image in batch]
        assert all(values.shape[1:] == (config.num_queries, config.num_labels) for values in logits)
        return {"pictures": sum(map(len, logits)), "people": sum(people), "finite": float(np.isfinite(logits).all())}

    arguments = TrainingArguments(
        output_dir=tmp_path,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=3,
        learning_rate=1e-3,
        eval_do_concat_batches=False,
        remove_unused_columns=False,
        use_cpu=accelerate_device.type == "cpu",
        report_to=[],
        save_strategy="no",
    )
    model, pictures = DETRPoseForPoseEstimation(config), Pictures(config)
    return Trainer(model, arguments, collate, pictures, pictures, compute_metrics=compute_metrics)


def test_trains(trainer):
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    result = trainer.train()
    assert result.global_step == 3
    assert np.isfinite(result.training_loss) and result.training_loss > 0
    changed = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)


def test_evaluates_with_metrics(trainer):
    scores = trainer.evaluate()
    assert np.isfinite(scores["eval_loss"])
    assert (scores["eval_pictures"], scores["eval_people"]) == (len(COUNTS), sum(COUNTS))
    assert scores["eval_finite"] == 1


def test_misspelt_argument_is_an_error(trainer, device):
    with pytest.raises(TypeError, match="label"):
        trainer.model(torch.rand(1, 3, 64, 64, device=device), label=[])
