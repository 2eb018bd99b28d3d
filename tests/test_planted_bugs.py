"""Tests that can fail: bugs planted in a copy of the library each turn a test red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# file of the library, the right text, the planted bug, the test that must notice
BUGS = {
    "wrong stride": ("model.py", "BasicBlock(4 * width, 8 * width, 1)", "BasicBlock(4 * width, 8 * width, 2)", "parameters_and_feature_maps"),
    "shuffled test loader": ("data.py", "if shuffle else None", "if True else None", "test_loader_keeps_the_order"),
    "in-place denormalise": ("data.py", "images.detach().cpu() * std + mean", "images.detach().cpu().mul_(std).add_(mean)", "denormalise_undoes"),
    "map of the wrong target": ("gradcam.py", "return targets.long()", "return logits.argmax(1)", "gradcam_is_that_of_captum"),
    "map without ReLU": ("gradcam.py", ".sum(dim=1).relu()", ".sum(dim=1)", "gradcam_is_that_of_captum"),
    "weights over the wrong axes": ("gradcam.py", "gradients.mean(dim=(2, 3), keepdim=True)", "gradients.mean(dim=(1, 2), keepdim=True)", "gradcam_is_that_of_captum"),
    "no guard for an empty map": ("gradcam.py", "torch.where(maximum > 0, maps / maximum, 0.0)", "maps / maximum", "empty_map_is_zeros"),
    "hook left behind": ("gradcam.py", "            handle.remove()", "            pass", "leaves_no_hook"),
    "L1 without its factor": ("training.py", "loss + l1_factor * l1_penalty", "loss + l1_penalty", "l1_and_its_factor"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_a_test_red(bug, tmp_path):
    file, right, wrong, name = BUGS[bug]
    shutil.copytree(ROOT / "cifar_cam_lib", tmp_path / "cifar_cam_lib")
    source = (tmp_path / "cifar_cam_lib" / file).read_text()
    assert source.count(right) == 1, "the text to break has changed"
    (tmp_path / "cifar_cam_lib" / file).write_text(source.replace(right, wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--noconftest", f"--rootdir={ROOT}", "-k", name,
               str(ROOT / "tests" / "test_references.py")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    result = subprocess.run(command, env=environment | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, f"the test did not notice:\n{result.stdout}{result.stderr}"
    assert "1 failed" in result.stdout and "ImportError" not in result.stdout
