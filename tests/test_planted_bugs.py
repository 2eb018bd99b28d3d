"""Tests that can fail: bugs planted in a copy of the library each turn a test red."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.project import ROOT

# file of the library, the right text, the planted bug, the test that must notice
REFERENCES = {
    "wrong stride": (
        "model.py",
        "BasicBlock(4 * width, 8 * width, 1)",
        "BasicBlock(4 * width, 8 * width, 2)",
        "parameters_and_feature_maps",
    ),
    "shuffled test loader": (
        "data.py",
        "dataset.seed, shuffle)",
        "dataset.seed, True)",
        "test_loader_keeps_the_order",
    ),
    "in-place denormalise": (
        "data.py",
        "images.detach().cpu() * std + mean",
        "images.detach().cpu().mul_(std).add_(mean)",
        "denormalise_undoes",
    ),
    "L1 without its factor": (
        "training.py",
        "loss + l1_factor * l1_penalty",
        "loss + l1_penalty",
        "l1_and_its_factor",
    ),
    "shares that do not add up": (
        "fast.py",
        "shares / shares.sum(0)",
        "shares / factor",
        "widened_network",
    ),
}
PIPELINE = {
    "one draw for the whole batch": (
        "self.numbers(epoch)[indices]",
        "self.numbers(epoch)[indices[:1]].expand(len(indices), -1)",
        "draw_of_its_own",
    ),
    "hidden pixels in black": (
        "masked_fill_(~shown, hidden_pixel(mean))",
        "masked_fill_(~shown, 0)",
        "hidden_colour",
    ),
    "the same flips in every epoch": (
        "(first + epoch / 2) % 1",
        "first % 1",
        "alternating_flips",
    ),
}
GRADCAM = {
    "weights over the wrong axes": (
        "gradients.mean(dim=(2, 3), keepdim=True)",
        "gradients.mean(dim=(1, 2), keepdim=True)",
        "at_the_last_layer",
    ),
    "map without ReLU": (
        "weights = gradients.mean(dim=(2, 3), keepdim=True)\n"
        "    return (weights * activations).sum(dim=1).relu()",
        "weights = gradients.mean(dim=(2, 3), keepdim=True)\n"
        "    return (weights * activations).sum(dim=1)",
        "at_the_last_layer",
    ),
    "map of the wrong target": (
        "    if targets is None:\n        targets = outputs.argmax(1)",
        "    targets = outputs.argmax(1)",
        "at_the_last_layer",
    ),
    "targets swapped": ("(scores[:, k].sum()", "(scores[:, -1 - k].sum()", "k_targets_are_k_calls"),
    "probability in place of the logit": (
        "return outputs.gather(1, targets",
        "return outputs.softmax(1).gather(1, targets",
        "at_the_last_layer",
    ),
    "scaled twice": ("0.0, maps / maximum)", "0.0, maps / maximum / maximum)", "maps_are_bilinear"),
    "small number in the divisor": (
        "0.0, maps / maximum)",
        "0.0, maps / (maximum + 1e-8))",
        "scale_of_the_logits",
    ),
    "no guard for an empty map": (
        "torch.where(maximum == 0, 0.0, maps / maximum)",
        "maps / maximum",
        "empty_map_is_zeros",
    ),
    "coarse enlargement": (
        'mode="bilinear", align_corners=False',
        'mode="nearest"',
        "at_the_last_layer",
    ),
    "hook left behind": ("            handle.remove()", "            pass", "call_leaves_no_trace"),
    "model left frozen": (
        "            parameter.requires_grad_(True)",
        "            pass",
        "call_leaves_no_trace",
    ),
    "model left in evaluation mode": (
        "            module.training = training",
        "            pass",
        "call_leaves_no_trace",
    ),
    "no copy behind the layer": (
        "return kept[layer].clone()",
        "return kept[layer]",
        "in_place_after_the_layer",
    ),
    "no copy of the images": ("images[batch].clone()", "images[batch]", "in_place_on_the_images"),
}
BUGS = {name: ("test_references.py", *bug) for name, bug in REFERENCES.items()}
BUGS |= {name: ("test_data.py", "fast.py", *bug) for name, bug in PIPELINE.items()}
BUGS["Muon without Nesterov"] = (
    "test_training.py",
    "fast.py",
    "weight.grad.lerp(mean, momentum).flatten(1)",
    "mean.flatten(1)",
    "muon_is_that",
)
BUGS |= {name: ("test_gradcam.py", "gradcam.py", *bug) for name, bug in GRADCAM.items()}


def plant(bug, folder):
    """Break a copy of the library and run the test that must notice, in a process of its own."""
    tests, file, right, wrong, name = BUGS[bug]
    shutil.copytree(ROOT / "cifar_cam_lib", folder / "cifar_cam_lib")
    source = (folder / "cifar_cam_lib" / file).read_text()
    assert source.count(right) == 1, "the text to break has changed"
    (folder / "cifar_cam_lib" / file).write_text(source.replace(right, wrong))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        f"--rootdir={ROOT}",
        "-k",
        name,
        str(ROOT / "tests" / tests),
    ]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }
    environment |= {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",  # the broken copy comes first
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins only cost time here
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Starts all of them, two at a time: {bug: its result, to be waited for}."""
    with ThreadPoolExecutor(2) as pool:
        yield {bug: pool.submit(plant, bug, tmp_path_factory.mktemp("bug")) for bug in BUGS}
        pool.shutdown(cancel_futures=True)  # if only some were asked for


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_a_test_red(bug, planted):
    result = planted[bug].result()
    assert result.returncode == 1, f"the test did not notice:\n{result.stdout}{result.stderr}"
    assert "1 failed" in result.stdout and "ImportError" not in result.stdout
