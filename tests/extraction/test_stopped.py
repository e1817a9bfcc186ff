# SPDX-License-Identifier: BSD-3-Clause
"""A thousand files, ten of them broken, and processes that are stopped: nothing is lost."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import filler
import numpy as np
import pytest
import torch
from PIL import Image

import skpool
from skpool.exceptions import UnreadableInputError
from skpool.stores import FeatureStore

DRIVER = Path(filler.__file__)


def _damaged_png(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 255
    path.write_bytes(bytes(data))


BREAKS = {
    3: (lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated|PNG|damaged"),
    111: (lambda path: path.write_text("no image"), "not an image"),
    222: (lambda path: path.unlink(), "not exist|missing|No such file"),
    333: (lambda path: path.write_bytes(b""), "empty"),
    444: (lambda path: (path.unlink(), path.mkdir()), "directory"),
    555: (lambda path: Image.new("L", (3000, 3000)).save(path), "max_pixels"),
    666: (_damaged_png, "checksum|CRC|damaged|broken"),
    777: (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file|pipe"),
    888: (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "EPS"),
    999: (lambda path: (path.unlink(), path.symlink_to("nowhere.png")), "not exist|No such file"),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(1000):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        # The first pixel is the image's number.
        pixels[0, 0] = i // 256, i % 256, 0
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    for i, (destroy, _) in BREAKS.items():
        destroy(folder / f"{i:04}.png")
    return folder


def _start(folder, tmp_path, mode):
    arguments = [folder, tmp_path / "store", tmp_path / "log", mode]
    return subprocess.Popen(
        [sys.executable, str(DRIVER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _times_seen(log):
    triples = np.frombuffer(log.read_bytes(), dtype=np.uint8).reshape(-1, 3).astype(int)
    # The blank image by which a layout is found is image 0's namesake: it is left out.
    return Counter(n for n in (triples[:, 0] * 256 + triples[:, 1]).tolist() if n)


def test_broken_files_interruption_kill_and_a_second_process(folder, tmp_path):
    interrupted = _start(folder, tmp_path, "wait")
    killed = _start(folder, tmp_path, "40")
    assert interrupted.stdout.readline() == "started\n"
    interrupted.send_signal(signal.SIGINT)
    second = _start(folder, tmp_path, "finish")
    assert interrupted.wait(60) not in (0, -signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    # It read everything that could be read, and then said what could not.
    assert second.wait(120) == 1
    for process in (interrupted, killed, second):
        process.stdout.close()

    extractor = filler.extractor(str(tmp_path / "store"), str(tmp_path / "log"))
    with skpool.config_context(max_pixels=filler.MAX_PIXELS):
        with pytest.raises(UnreadableInputError) as caught:
            np.asarray(extractor.fit_transform(filler.files(folder)))
        assert [row for row, _, _ in caught.value.failures] == list(BREAKS)
        for row, name, reason in caught.value.failures:
            assert name == str(folder / f"{row:04}.png")
            assert re.search(BREAKS[row][1], reason), reason
        got = np.asarray(extractor.set_params(on_error="nan").fit_transform(filler.files(folder)))

    good = np.array([i for i in range(1000) if i not in BREAKS])
    seen = _times_seen(tmp_path / "log")
    assert seen == dict.fromkeys((n for n in good.tolist() if n), 1)
    with FeatureStore(tmp_path / "store") as store:
        assert sum(store.info()["n_rows"].values()) == 990
    net = filler.SlowNet(os.devnull)
    pixels = np.stack([np.asarray(Image.open(folder / f"{i:04}.png")) for i in good])
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).numpy()
    np.testing.assert_allclose(got[good], expected, atol=1e-5)
    assert np.isnan(got[list(BREAKS)]).all()
