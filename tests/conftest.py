"""Fixtures every test may use, and the environment all of them run in."""

import os
import shutil

import hypothesis
import numpy as np
import pytest

# A machine that does other work takes longer for an example than hypothesis waits.
hypothesis.settings.register_profile("tfx", deadline=None)
hypothesis.settings.load_profile("tfx")

# Before any library reads them: tests use no network, and forked tokenizers print warnings.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# No test reads or fills the cache of whoever runs it; those of the cache have one of their own.
os.environ["TFX_CACHE_MB"] = "0"


@pytest.fixture
def rng():
    """The one source of random numbers in a test; the same in every run."""
    return np.random.default_rng(20261121)


def pytest_collection_modifyitems(config, items):
    if "every" not in config.option.markexpr:
        every = pytest.mark.skip(reason="takes minutes: run pytest -m every")
        for item in items:
            if "every" in item.keywords:
                item.add_marker(every)
    if shutil.which("nvidia-smi"):
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: nvidia-smi is not on the path")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
