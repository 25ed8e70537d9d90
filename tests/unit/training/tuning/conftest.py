"""Pictures and networks that are small enough for a test."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from training.tuning import Examples, Pictures, TuneSettings, Untrained


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits as RGB pictures [n, 36, 36, 3], and what they show."""
    images, answers = load_digits(return_X_y=True)
    grey = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    square = np.kron(grey[:400], np.ones((4, 4), np.uint8))
    square = np.pad(square, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(square[..., None], 3, axis=3), answers[:400].astype(np.int64)


@pytest.fixture(scope="session")
def pictures(digits):
    images, _ = digits
    return Pictures.of_array(np.arange(len(images)), images, images[..., 0])


@pytest.fixture(scope="session")
def labelled(digits):
    """The first hundred, by id."""
    return Examples(np.arange(100), {"digit": digits[1][:100]}, {})


@pytest.fixture
def start():
    return Untrained("squeezenet1_1", 32)


@pytest.fixture
def settings():
    """A run of a few seconds."""
    return TuneSettings(
        epochs=3,
        fewest_steps=0,
        batch_size=25,
        held_out=0.25,
        mixing="cutmix",
        threads=1,
        accelerator="cpu",
        precision="32",
        lr_trunk=1e-3,
        lr_head=1e-3,
    )
