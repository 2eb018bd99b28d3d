"""The page "Try it": its network is Python's, and in Chromium each control does what it says."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cifar_cam_lib.data import as_batch
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.gradcam import gradcam
from cifar_cam_lib.training import load_shipped_model
from scripts.project import ROOT
from scripts.publish import site_hooks

PAGE = ROOT / "nbs" / "try"


@pytest.fixture(scope="module")
def twelve():
    """The page's pictures, uint8 [12, 32, 32, 3], and what pictures.json tells of them."""
    strip = np.asarray(Image.open(PAGE / "pictures.png").convert("RGB"))
    told = json.loads((PAGE / "pictures.json").read_text(encoding="utf-8"))
    return np.stack(np.split(strip, len(told), axis=1)), told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page as the site has it, and a file that tells node what kind of modules these are."""
    folder = tmp_path_factory.mktemp("site") / "try"
    shutil.copytree(PAGE, folder)
    for name, path in site_hooks.KEPT_ELSEWHERE.items():
        if name.startswith("try/"):
            shutil.copy(path, folder.parent / name)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="module")
def expected(twelve, folder):
    """What Python says to the twelve pictures and eight drawn ones, also as a file for node."""
    images = np.concatenate([twelve[0], draw_pictures(8, "test")[0]])
    labels = [n % 10 for n in range(20)]
    model, batch = load_shipped_model("cifar10"), as_batch(images)
    maps = gradcam(model, batch, labels)
    with torch.no_grad():
        logits = model(batch)
    pictures = [
        {
            "pixels": images[n].ravel().tolist(),
            "label": labels[n],
            "logits": logits[n].tolist(),
            "maps": {layer: map_[n].ravel().tolist() for layer, map_ in maps.items()},
            "maximum": {layer: value[n].item() for layer, value in maps.maximum.items()},
        }
        for n in range(20)
    ]
    sizes = []
    for height, width in ((1, 1), (2, 3), (8, 8), (32, 32)):
        map_ = torch.rand(height, width, generator=torch.Generator().manual_seed(height))
        large = F.interpolate(map_[None, None], (32, 32), mode="bilinear", align_corners=False)
        values, enlarged = map_.ravel().tolist(), large.ravel().tolist()
        sizes.append({"values": values, "height": height, "width": width, "enlarged": enlarged})
    told = {"pictures": pictures, "sizes": sizes}
    (folder / "expected.json").write_text(json.dumps(told))
    return told


def test_the_network_is_pythons_under_node(expected, folder):
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not on this machine: https://nodejs.org")
    tests = sorted((ROOT / "tests").glob("*.test.mjs"))
    ran = subprocess.run(
        [node, "--test", "--test-reporter=tap", *tests],
        env=os.environ | {"TRY_PAGE": str(folder)},
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"^# pass (\d+)", ran.stdout, re.MULTILINE)[1]) > 5
