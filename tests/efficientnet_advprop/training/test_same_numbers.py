"""One, two and four replicas at the same global batch compute the same, but for the
order in which sums are taken.
"""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]
PROGRAM = pathlib.Path(__file__).parent / "replica_run.py"


def train_on(num_replicas, method, folder):
    """Each in a process of its own: logical devices are made once per process."""
    output = folder / f"{num_replicas}.npz"
    subprocess.run(
        [sys.executable, str(PROGRAM), method, str(num_replicas), str(output)],
        check=True, timeout=900,
    )  # fmt: skip
    return np.load(output)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "advprop"])
def test_replicas_at_the_same_global_batch(tmp_path, method):
    one, *others = (train_on(num_replicas, method, tmp_path) for num_replicas in (1, 2, 4))
    moved = [
        name for name in one.files if name.endswith("kernel:0") and not name.startswith("step")
    ]
    assert len(moved) > 10 and np.isfinite(one["step 2 clean_loss"])
    for other in others:
        assert set(other.files) == set(one.files)
        for name in one.files:
            largest = max(1.0, float(np.abs(one[name]).max()))
            np.testing.assert_allclose(
                other[name], one[name], atol=2e-3 * largest, rtol=0, err_msg=name
            )
