"""The numbers that README shows are those of the runs whose record and weights are here."""

import hashlib
import json
from pathlib import Path

import pytest

from cifar_cam_lib.data import TransformedImages, evaluation_transform, load_images, make_loader
from cifar_cam_lib.model import count_parameters
from cifar_cam_lib.training import SHIPPED_SHA256, load_shipped_model, loss_and_accuracy, predict

ROOT = Path(__file__).resolve().parent.parent


def record(source, name):
    return json.loads((ROOT / "results" / f"{source}-width16" / f"{name}.json").read_text())


@pytest.mark.parametrize("source", SHIPPED_SHA256)
def test_the_record_fits_readme_and_weights(source):
    metrics, shipped = record(source, "metrics"), record(source, "shipped")
    row = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if f"[{source}-width16]" in line)
    assert f"{metrics['test']['accuracy']:.2%}" in row and f"{metrics['parameters']:,}" in row and metrics["data"] == source
    weights = ROOT / "cifar_cam_lib" / "weights" / shipped["file"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == shipped["sha256"] == SHIPPED_SHA256[source]


@pytest.mark.parametrize("source", SHIPPED_SHA256)
def test_the_shipped_weights_repeat_their_accuracy(source, request):
    root = request.getfixturevalue("cifar10_root") if source == "cifar10" else None
    _, test_images = load_images(source, root)
    model = load_shipped_model(source)
    assert count_parameters(model) == 701_456
    _, accuracy = loss_and_accuracy(*predict(model, make_loader(TransformedImages(test_images, evaluation_transform(), 0), 250, False, 0)))
    # On one machine exactly; elsewhere another order of additions may tip an image or two.
    assert accuracy == pytest.approx(record(source, "shipped")["test"]["accuracy"], abs=2.5 / len(test_images.labels))


def test_cats_are_taken_for_dogs_rather_than_for_ships():
    from cifar_cam_lib.evaluation import confusion_matrix

    _, test_images = load_images("drawn")
    logits, labels = predict(load_shipped_model("drawn"), make_loader(TransformedImages(test_images, evaluation_transform(), 0), 250, False, 0))
    matrix = confusion_matrix(labels, logits.argmax(1))
    cat, dog, ship = 3, 5, 8
    assert matrix[cat, dog] + matrix[dog, cat] > matrix[cat, ship] + matrix[ship, cat]
    assert 20 <= 1000 - matrix.trace() and 0.85 <= matrix.trace() / 1000 <= 0.97
