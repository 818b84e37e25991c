"""What Ctrl-C and SIGTERM do while a training runs."""

import signal

import pytest

from transformers_detrpose.training import Interrupted, Progress, SignalWatch


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_noted_and_the_former_handlers_come_back(number, name):
    former = signal.getsignal(number)
    with SignalWatch() as watch:
        assert watch.number is None
        signal.raise_signal(number)
        assert watch.number == number
        interruption = watch.interruption(Progress(step=7))
    assert signal.getsignal(number) is former
    assert (
        str(interruption) == f"stopped by {name} after step 7, which is saved: the same command with --resume goes on"
    )
    assert interruption.exit_code == 128 + number


def test_the_third_signal_ends_at_once():
    with SignalWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert watch.number == signal.SIGINT


def test_work_that_needs_no_saving_ends_between_batches():
    with SignalWatch() as watch:
        batches = watch.watched(range(3), Progress())
        assert next(batches) == 0
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            next(batches)
