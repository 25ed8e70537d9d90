"""What tests of several modules start from."""

import numpy as np
import pytest

from uncertainty.pool import Pool


@pytest.fixture(scope="session")
def clusters():
    """Makes a pool of separate clusters, no row labelled, and says the cluster of each row."""

    def make(sizes, d=16, spread=0.3, seed=0):
        rng = np.random.default_rng(seed)
        label = np.repeat(np.arange(len(sizes)), sizes)
        x = np.eye(d)[label] + spread / np.sqrt(d) * rng.normal(size=(len(label), d))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        none = np.zeros(len(label), dtype=bool)
        return Pool(x, None, none, none, none), label

    return make
