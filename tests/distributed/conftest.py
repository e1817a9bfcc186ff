# SPDX-License-Identifier: BSD-3-Clause
"""One cluster of two processes for the whole directory; nothing runs where Dask is absent."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Workers start with the path of this process, and import `nets_on_workers` by it.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def cluster():
    from dask.distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_client(cluster):
    from dask.distributed import Client

    with Client(cluster) as client:
        yield client


@pytest.fixture
def client(shared_client):
    """With one worker at least; a test before may have killed one."""
    shared_client.wait_for_workers(1, timeout=60)
    return shared_client


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = []
    for i in range(60):
        names.append(str(tmp_path / "images" / f"{i:03}.png"))
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(names[-1])
    return names
