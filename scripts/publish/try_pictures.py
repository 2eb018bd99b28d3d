"""Chooses the twelve pictures of the page "Try it", and writes them to nbs/try.

    .venv/bin/python -m scripts.publish.try_pictures

Needs CIFAR-10. The rule, over its test images in their order: of each class one, which is the first
that the small network gets right for airplane, bird, deer, frog and ship, and the first that it
gets wrong for the others; then our cat; and last the mistake of which the network is surest. All
twelve are one PNG, side by side; a JSON file tells what they are.
"""

import json

import numpy as np
import torch
from PIL import Image

from cifar_cam_lib.course import OUR_CAT
from cifar_cam_lib.data import CLASS_NAMES, as_batch, load_images
from cifar_cam_lib.training import load_shipped_model
from scripts.project import ROOT

FOLDER = ROOT / "nbs" / "try"


@torch.no_grad()
def answers(
    images: np.ndarray,  # uint8 [N, 32, 32, 3]
) -> torch.Tensor:
    """Probabilities of the small network, [N, 10]."""
    model = load_shipped_model("cifar10")
    batches = np.array_split(images, max(1, len(images) // 500))
    return torch.cat([model(as_batch(batch)).softmax(1) for batch in batches])


def choose(
    labels: torch.Tensor,  # int64 [N]
    probabilities: torch.Tensor,  # float [N, 10]
) -> list[int]:
    """Places of the twelve among the test images."""
    right = probabilities.argmax(1) == labels
    chosen = []
    for label in range(len(CLASS_NAMES)):
        wanted = (labels == label) & (right if label % 2 == 0 else ~right)
        chosen.append(wanted.nonzero()[0].item())
    surest = probabilities.amax(1).where(~right, 0.0).argmax().item()
    return [*chosen, OUR_CAT["cifar10"], surest]


def main():
    """Write pictures.png and pictures.json."""
    _, test_images = load_images()
    if test_images.source != "cifar10":
        raise SystemExit("CIFAR-10 is not on this machine: set CIFAR_CAM_DATA to its folder")
    labels, probabilities = torch.tensor(test_images.labels), answers(test_images.images)
    chosen = choose(labels, probabilities)
    rows = [
        {"number": n, "true": labels[n].item(), "predicted": probabilities[n].argmax().item()}
        for n in chosen
    ]
    FOLDER.mkdir(exist_ok=True)
    strip = np.concatenate(test_images.images[chosen], axis=1)
    Image.fromarray(strip).save(FOLDER / "pictures.png", optimize=True)
    text = ",\n".join(json.dumps(row) for row in rows)
    (FOLDER / "pictures.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
