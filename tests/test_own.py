"""Pictures and networks from elsewhere: a newcomer's folder goes all the way."""

import copy
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cifar_cam_lib import main as module
from cifar_cam_lib import own, runs
from cifar_cam_lib.data import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    LabelledImages,
    as_batch,
    draw_once,
    open_picture,
)
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.evaluation import Mistake, plot_confusion_matrix, show_mistakes
from cifar_cam_lib.fast import BatchedImages
from cifar_cam_lib.gradcam import gradcam, show_gradcam
from cifar_cam_lib.main import cli, evaluate, explain, resume, run
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.own import (
    CIFAR10_IMAGES,
    check_recorded,
    describe_images,
    file_stems,
    find_pictures,
    load_folder,
    our_classifier,
    recorded_images,
    replace_head,
    short_names,
    torchvision_classifier,
)
from cifar_cam_lib.settings import Config
from cifar_cam_lib.training import load_shipped_model, save_weights

CLASSES = ("Bäume", "cars and trucks", "zebra $^$")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A newcomer's folder: kinds, sizes, names and one broken file of all sorts."""
    root = tmp_path_factory.mktemp("my pictures") / "Fotos 2026"
    images, labels, _ = draw_pictures(60, "train")
    sizes = [40, 900, 33, 120, 64, 500]
    for label, name in enumerate(CLASSES):
        folder = root / name
        folder.mkdir(parents=True)
        for number, image in enumerate(images[labels == label][:6]):
            width, height = sizes[number], sizes[(number + label) % 6]
            picture = Image.fromarray(image).resize((width, height))
            if number % 3 == 0:
                picture.save(folder / f"Bild {number} ä.png")
            elif number % 3 == 1:
                note = Image.Exif()
                note[0x0112] = 6
                picture.save(folder / f"IMG_{number}.JPG", quality=90, exif=note)
            else:
                picture.convert("P").save(folder / f"{number}.gif")
    (root / "Bäume" / "broken.png").write_bytes((root / "Bäume" / "Bild 0 ä.png").read_bytes()[:60])
    (root / "Bäume" / ".DS_Store").write_bytes(b"hidden")
    (root / ".cache").mkdir()
    return root


OWN = {"width": 4, "epochs": 1, "start": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def own_run(pictures, tmp_path_factory):
    """The result of one short epoch on the newcomer's folder; do not change it."""
    return run(Config(data_folder=pictures, out=tmp_path_factory.mktemp("own") / "run", **OWN))


def texts(figure):
    return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_a_folder_becomes_images_with_names(pictures, capsys):
    train, test = load_folder(pictures, 48)
    said = capsys.readouterr().err
    assert said.count("left out") == 1 and "broken.png is not a picture" in said
    assert train.class_names == test.class_names == CLASSES and train.source == "own"
    assert len(train) + len(test) == 18 and train.images.shape[1:] == (48, 48, 3)
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    assert np.bincount(train.labels).tolist() == [5, 5, 5]
    scaled = train.images / 255
    assert np.allclose(train.mean, scaled.mean((0, 1, 2))) and train.mean == test.mean
    assert np.allclose(train.std, scaled.std((0, 1, 2)), atol=1e-6)
    again, _ = load_folder(str(pictures), 48)
    assert np.array_equal(again.images, train.images)
    assert sorted(train.labels.tolist()) != train.labels.tolist(), "a part of them has all classes"


def test_the_newcomers_folder_goes_all_the_way(own_run, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = own_run.folder
    record = json.loads((folder / "config.json").read_text())
    assert tuple(record["images"]["class_names"]) == CLASSES
    assert record["images"]["count"] == {"train": 15, "test": 3}
    assert str(pictures) not in json.dumps(record) and record["settings"]["data"] == "own"
    assert own_run.model.head.out_features == 3
    with pytest.raises(ValueError, match="name it with --data-folder"):
        evaluate(folder)
    again = evaluate(folder, data_folder=pictures)
    assert torch.equal(again.logits, own_run.test.logits)
    words = ["--run", str(folder), "--target", CLASSES[1], "--save", "maps"]
    capsys.readouterr()
    assert cli(["explain", str(pictures), *words]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("left out") == 1 == captured.err.count("broken.png")
    lines = captured.out.splitlines()
    assert len(lines) == 19 and all(any(name in line for name in CLASSES) for line in lines[:18])
    assert sorted(path.name for path in Path().glob("*.png")) == [
        "gradcam-1.png",
        "gradcam-2.png",
        "gradcam-3.png",
    ]
    rows = json.loads(Path("maps/manifest.json").read_text())
    assert {row["class"] for row in rows} <= set(CLASSES)
    assert {row["file"] for row in rows} == {str(path) for path in find_pictures([pictures])}
    for row in rows:
        name, k, layer = row["map"]
        map_ = np.load(Path("maps") / name)[k, layer]
        assert map_.shape == (32, 32) and row["empty"] == (row["maximum"] == 0)
        assert map_.max() == (0 if row["empty"] else 1)
        assert min(Image.open(Path("maps") / row["overlay"]).size) >= 256
        assert 0 <= row["probability"] <= 1
    assert len({row["overlay"] for row in rows}) == 18 == len({row["map"][0] for row in rows})


def test_the_manifest_is_what_gradcam_says(own_run, pictures, tmp_path):
    (picture,) = list((pictures / "Bäume").glob("Bild 0*"))
    explain(picture, own_run.folder, out=tmp_path / "a.png", save=tmp_path / "maps")
    rows = json.loads((tmp_path / "maps" / "manifest.json").read_text())
    images = recorded_images(own_run.folder)
    batch = as_batch(own.read_picture(picture, 32)[None], images["mean"], images["std"])
    model = own_run.model.eval()
    maps = gradcam(model, batch)
    assert [row["layer"] for row in rows] == list(maps)
    probabilities = model(batch).softmax(1)[0]
    saved = np.load(tmp_path / "maps" / rows[0]["map"][0])
    for row, layer in zip(rows, maps, strict=True):
        assert row["maximum"] == pytest.approx(maps.maximum[layer].item(), rel=1e-4)
        assert row["probability"] == pytest.approx(probabilities.max().item(), rel=1e-4)
        assert np.allclose(saved[row["map"][1], row["map"][2]], maps[layer][0], atol=1e-4)


@pytest.mark.parametrize("change", ["a picture more", "a class more", "another picture"])
def test_other_pictures_are_refused(change, own_run, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    other = Image.new("RGB", (40, 40), "red")
    if change == "a picture more":
        for number in range(9):
            other.save(folder / CLASSES[0] / f"new {number}.png")
    elif change == "a class more":
        (folder / "new").mkdir()
        for number in range(3):
            other.save(folder / "new" / f"{number}.png")
    else:
        for path in (folder / CLASSES[0]).glob("*.png"):
            other.save(path)
        for path in (folder / CLASSES[0]).glob("*.JPG"):
            other.save(path)
        for path in (folder / CLASSES[0]).glob("*.gif"):
            other.save(path)
    words = ["evaluate", "--run", str(own_run.folder), "--data-folder", str(folder)]
    capsys.readouterr()
    assert cli(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    expected = "trained on Bäume" if change == "a class more" else "test images are not those"
    assert expected in error


def test_an_interrupted_run_on_own_pictures_continues(own_run, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "plot_history", lambda history: 1 / 0)
        with pytest.raises(module.runs.RunStopped):
            run(Config(data_folder=pictures, out=tmp_path / "run", **OWN))
    result = resume(tmp_path / "run", data_folder=pictures)
    assert torch.equal(result.model.head.weight, own_run.model.head.weight)


@pytest.mark.parametrize("pipeline", ["per-image", "batched"])
@pytest.mark.parametrize("side", [64, 96])
def test_larger_pictures_train_in_both_pipelines(pipeline, side, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module.runs, "save_figure", lambda figure, *rest: module.plt.close(figure))
    config = Config(
        data_folder=pictures,
        image_size=side,
        image_sizes=(16, side),
        pipeline=pipeline,
        out=tmp_path / "run",
        **OWN | {"epochs": 2},
    )
    result = run(config)
    assert [row["image_size"] for row in result.history.epochs] == [16, side]
    assert recorded_images(result.folder)["image_size"] == side
    assert torch.equal(evaluate(result.folder, data_folder=pictures).logits, result.test.logits)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_starts_from_the_network_that_ships(freeze, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module.runs, "save_figure", lambda figure, *rest: module.plt.close(figure))
    config = Config(data_folder=pictures, freeze=freeze, epochs=1, out=tmp_path / "run")
    result = run(config)
    images = recorded_images(result.folder)
    assert (images["mean"], images["std"]) == (CIFAR10_MEAN, CIFAR10_STD), "as that network knows"
    shipped = load_shipped_model("cifar10")
    same = torch.equal(result.model.layer3[0].conv1.weight, shipped.layer3[0].conv1.weight)
    assert same is freeze and result.model.head.out_features == 3
    assert evaluate(result.folder, data_folder=pictures).accuracy == result.test.accuracy


def test_a_new_head_leaves_the_network_as_it_was():
    shipped = load_shipped_model("cifar10")
    changed = replace_head(shipped, 3, freeze=True)
    assert shipped.head.out_features == 10 and not shipped.training
    trainable = [name for name, weight in changed.named_parameters() if weight.requires_grad]
    assert trainable == ["head.weight"] and changed.training
    images = torch.randn(2, 3, 32, 32)
    features = nn.Sequential(*list(shipped.children())[:-1])(images).mean((2, 3))
    assert torch.allclose(changed(images), features @ changed.head.weight.T, atol=1e-5)
    assert all(weight.requires_grad for weight in replace_head(shipped, 3).parameters())


def save_pictures(folder, count=4):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 30), (50 * number, 90, 10)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    "train_name, name",
    [("train", "test"), ("train", "val"), ("Train", "Valid"), ("training", "validation")],
)
def test_a_folder_may_be_split_already(train_name, name, tmp_path):
    for split, count in ((train_name, 4), (name, 2)):
        for label in ("a", "b"):
            save_pictures(tmp_path / split / label, count)
    train, test = load_folder(tmp_path)
    assert (len(train), len(test), train.class_names) == (8, 4, ("a", "b"))
    save_pictures(tmp_path / name / "c")
    with pytest.raises(ValueError, match=f"{name} has the classes a, b, c, expected a, b"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda root: None,
            ValueError,
            "has 0 sub-folders, expected a sub-folder for the pictures",
        ),
        (lambda root: save_pictures(root / "a"), ValueError, "has 1 sub-folders"),
        (
            lambda root: (save_pictures(root / "a"), save_pictures(root / "b", 0)),
            ValueError,
            "class 'b' in .* has no picture",
        ),
        (
            lambda root: (save_pictures(root / "a"), save_pictures(root / "b", 2)),
            ValueError,
            "class 'b' has 2 pictures, expected at least 3",
        ),
        (lambda root: root.rmdir(), FileNotFoundError, "there is no folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(make, error, message, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(error, match=message):
        load_folder(root)


def test_a_split_that_is_not_used_is_named(tmp_path, capsys):
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            save_pictures(tmp_path / split / label)
    assert len(load_folder(tmp_path)[1]) == 8
    assert f"not used: {tmp_path / 'val'}" in capsys.readouterr().err


def test_classes_are_in_one_order_whichever_way_umlauts_are_written(tmp_path):
    for form in ("NFC", "NFD"):
        for name in ("Äpfel", "Bäume", "_other"):
            save_pictures(tmp_path / form / unicodedata.normalize(form, name))
    composed, decomposed = (load_folder(tmp_path / form)[0] for form in ("NFC", "NFD"))
    assert composed.class_names == decomposed.class_names
    assert set(composed.class_names) == {"Äpfel", "Bäume", "_other"}


def test_an_unfinished_run_explains_nothing(own_run, pictures, tmp_path, capsys):
    folder = shutil.copytree(own_run.folder, tmp_path / "run")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"finished": true', '"finished": false'))
    assert cli(["explain", str(pictures), "--run", str(folder)]) == 3
    assert "is not finished" in capsys.readouterr().err


def test_an_answer_that_is_not_a_number_is_no_answer(own_run, pictures, tmp_path, capsys):
    folder = shutil.copytree(own_run.folder, tmp_path / "run")
    broken = copy.deepcopy(own_run.model)
    broken.head.weight.data.fill_(3e38)  # a number, but not after the next product
    save_weights(broken, folder / "model.safetensors")
    words = ["--run", str(folder), "--out", str(tmp_path / "a.png")]
    assert cli(["explain", str(pictures), *words]) == 2
    assert "not a number" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_each_class_is_tested_however_unequal_they_are(tmp_path):
    for name, count in (("few", 3), ("many", 60)):
        save_pictures(tmp_path / name, count)
    train, test = load_folder(tmp_path)
    assert np.bincount(test.labels)[0] >= 1 and np.bincount(train.labels)[0] >= 2


def test_pictures_of_one_colour_can_be_normalised(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{number}.png")
    train, _ = load_folder(tmp_path)
    assert torch.isfinite(as_batch(train.images, train.mean, train.std)).all()


def test_patterns_and_folders_are_expanded_and_names_that_look_like_patterns_are_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_pictures(Path("photos/deeper"))
    Image.new("RGB", (20, 20)).save("photos/b.jpg")
    Image.new("RGB", (20, 20)).save("[a]*.jpg")
    Path("photos/notes.txt").write_text("not a picture")
    deeper = [Path(f"photos/deeper/{number}.png") for number in range(4)]
    assert find_pictures([Path("photos")]) == [Path("photos/b.jpg"), *deeper]
    assert "left out: photos/notes.txt is not a picture" in capsys.readouterr().err
    assert find_pictures([Path("photos/*/*.png")]) == deeper
    assert find_pictures([Path("**/*.png")]) == deeper
    assert find_pictures([Path("[a]*.jpg")]) == [Path("[a]*.jpg")]
    assert find_pictures([deeper[0], Path("photos/deeper")]) == deeper, "each once"
    for place, message in (
        ("none/*.png", "no picture in none"),
        ("none.png", "no picture none.png"),
    ):
        with pytest.raises(FileNotFoundError, match=f"there is {message}".replace("*", r"\*")):
            find_pictures([Path(place)])
    with pytest.raises(ValueError, match="name at least one picture"):
        find_pictures([])


def test_what_is_no_picture_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.png")  # would be waited for
    else:
        Path("pipe.png").mkdir()
    values = np.arange(400, dtype=np.int32).reshape(20, 20)
    Image.fromarray(values).save("depth.tiff")  # 32 bits: what would be white?
    Image.fromarray(values.astype(np.float32)).save("height.tiff")
    for name in ("pipe.png", "depth.tiff", "height.tiff"):
        with pytest.raises(OSError, match=f"{name} is not a picture that can be read"):
            open_picture(Path(name))
    for words in (["explain", ""], ["train", "--data-folder", ""], ["evaluate", "--run", ""]):
        assert cli(words) == 2
        assert "an argument is empty" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"pipe.png", "depth.tiff", "height.tiff"}


def test_the_folder_of_out_is_made_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pictures(Path("photos"), 1)
    assert cli(["explain", "photos", "--out", "new/folder/map.png"]) == 0
    assert Path("new/folder/map.png").exists()
    monkeypatch.setattr(own, "explain_files", None)
    assert cli(["explain", "photos", "--out", "photos/0.png/map.png"]) == 3


def test_names_that_differ_somewhere_stay_apart():
    paths = [Path(f"{place}/holiday-in-the-mountains-{n}.jpg") for place in "ab" for n in (1, 2)]
    for names in (short_names(paths), file_stems(paths)):
        assert len(set(names)) == 4
    assert all(len(name) <= 18 for name in short_names(paths))
    assert short_names([Path("a.png")]) == ["a.png"]
    three = [Path(f"{place}/a.png") for place in "abcde"]
    assert short_names(three) == ["a.png", "a.png (2)", "a.png (3)", "a.png (4)", "a.png (5)"]
    assert len({stem.lower() for stem in file_stems([Path("A.png"), Path("a.jpg")])}) == 2


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_pictures(Path("photos"), 7)
    shutil.copy("photos/0.png", "gradcam-2.png")
    before = Path("gradcam-2.png").read_bytes()
    assert cli(["explain", "photos", "gradcam-2.png"]) == 2
    assert "expected another file than one of the pictures" in capsys.readouterr().err
    assert Path("gradcam-2.png").read_bytes() == before
    assert cli(["explain", "photos/0.png", "--save", "photos"]) == 3
    assert "the output folder photos is not empty" in capsys.readouterr().err
    assert len(list(Path("photos").iterdir())) == 7 and not Path("gradcam.png").exists()


def test_a_record_of_images_is_checked(tmp_path, own_run):
    assert recorded_images(own_run.folder)["class_names"] == CLASSES
    (tmp_path / "config.json").write_text('{"settings": {}}')
    assert recorded_images(tmp_path) == CIFAR10_IMAGES | {"sha256": {}}, "an older run"
    told = json.loads((own_run.folder / "config.json").read_text())["images"]
    wrong = {
        "class_names": [["a", "a", "b"], "abc", [1, 2, 3], None],
        "image_size": ["32", 0, None, 5000],
        "mean": [[0.5, 0.5], [0.5, 0.5, 200], [0.5, 0.5, float("nan")], "x", None],
        "std": [[0.5, 0.5, 0], [0.5] * 4, -1],
        "sha256": ["x", None],
    }
    texts = ["{", "[]", '{"images": []}', '{"images": {}}', '"x"']
    for name, values in wrong.items():
        texts.append(json.dumps({"images": {key: told[key] for key in told if key != name}}))
        texts += [json.dumps({"images": told | {name: value}}) for value in values]
    for damaged in texts:
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(OSError, match="config.json is damaged"):
            recorded_images(tmp_path)
    images = {"train": draw_once(20, "train"), "test": draw_once(20, "test")}
    recorded = describe_images(images)
    check_recorded(recorded, images, ("train", "test"))
    changed = images["test"].images.copy()
    changed[3, 4, 5, 0] ^= 1
    other = LabelledImages(changed, images["test"].labels, images["test"].class_names)
    with pytest.raises(ValueError, match="the test images are not those of the run"):
        check_recorded(recorded, images | {"test": other}, ("test",))
    check_recorded(recorded, images | {"test": other}, ("train",))


@pytest.mark.parametrize("name, value", [("image_size", 64), ("mean", [0.1, 0.2, 0.3])])
def test_a_record_that_its_settings_contradict_is_refused(
    name, value, own_run, pictures, tmp_path, capsys
):
    folder = shutil.copytree(own_run.folder, tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    record["images"][name] = value
    (folder / "config.json").write_text(json.dumps(record))
    assert cli(["evaluate", "--run", str(folder), "--data-folder", str(pictures)]) == 2
    assert f"the run's record says {name}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_a_run_that_has_not_seen_own_pictures_wants_no_folder(command, small_run, pictures, capsys):
    words = [command, "--run", str(small_run.folder), "--data-folder", str(pictures)]
    assert cli(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data is drawn, expected own with a data-folder" in line and "damaged" not in line


def test_layers_given_by_name_need_no_table(torchvision_weights, monkeypatch):
    monkeypatch.setattr("cifar_cam_lib.gradcam.LAST_LAYERS", {})
    with pytest.raises(ValueError, match="no layer is known for ResNet"):
        torchvision_classifier("resnet18")
    assert torchvision_classifier("resnet18", ("layer3",)).layers == ("layer3",)


def test_long_names_of_classes_stay_whole_and_apart_in_the_figures(tmp_path):
    """No text reaches into its neighbour, and none leaves the figure."""
    names = ("trucks with a rather long name", "ships of $1M and more, in two ports", "c")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    labelled = LabelledImages(pixels, [0, 1, 2, 0, 1, 2], names)
    mistakes = [Mistake(number, number % 3, (number + 1) % 3, 0.1, 0.9) for number in range(6)]
    maps = gradcam(resnet18(3, 4), as_batch(pixels), [[0, 1]] * 6)
    figures = [
        show_mistakes(labelled, mistakes),
        module.show_augmented(BatchedImages(labelled, 0), 2),
        plot_confusion_matrix(torch.eye(3, dtype=int), names),
        show_gradcam(pixels, ["a"] * 6, [[f"{name} 99%" for name in names[:2]]] * 6, maps),
    ]
    for figure in figures:
        figure.canvas.draw()
        written = [text for axis in figure.axes for text in axis.texts if text.get_text()]
        drawn = [axis for axis in figure.axes if axis.axison]
        labels = [text for axis in drawn for text in axis.get_yticklabels()]
        for text in written + labels:
            box = text.get_window_extent()
            assert figure.bbox.x0 - 3 <= box.x0 and box.x1 <= figure.bbox.x1 + 3, text
        titles = [text for text in written if text.get_fontsize() == 8]
        boxes = [text.get_window_extent().shrunk(0.98, 0.9) for text in titles]
        for number, box in enumerate(boxes):
            assert box.count_overlaps(boxes[number + 1 :]) == 0, titles[number]
    shown = " ".join(texts(figures[0]).split())
    assert all(name in shown for name in names)


def test_classes_of_any_number_have_their_figures(tmp_path):
    """Two, and more than CIFAR-10 has."""
    for count in (2, 23):
        generator = np.random.default_rng(count)
        pixels = generator.integers(0, 256, (3 * count, 16, 16, 3), dtype=np.uint8)
        names = tuple(f"kind {number}" for number in range(count))
        labelled = LabelledImages(pixels, np.arange(3 * count) % count, names)
        (tmp_path / f"{count}" / "figures").mkdir(parents=True)
        loader = module.make_loader(BatchedImages(labelled, 0), 50, False, 0)
        model = resnet18(count, 4)
        evaluation = module.evaluate_model(model, loader, tmp_path / f"{count}")
        assert evaluation.logits.shape == (3 * count, count)
        figure = module.show_augmented(loader.dataset)
        assert "kind 1" in texts(figure) and "airplane" not in texts(figure)


@pytest.fixture
def torchvision_weights(tmp_path, monkeypatch):
    """Weights of torchvision's in its cache, random ones, so that nothing is downloaded."""
    from torchvision.models import ResNet18_Weights
    from torchvision.models import resnet18 as resnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = resnet(weights=None).eval()
    path = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    return model, path


def test_a_network_of_torchvision_explains_with_its_own_classes(
    torchvision_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    model, _ = torchvision_weights
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    words = ["explain", "a.png", "--model", "resnet18", "--target", "tabby", "--save", "maps"]
    assert cli(words) == 0
    rows = json.loads(Path("maps/manifest.json").read_text())
    classifier = torchvision_classifier("resnet18")
    batch = classifier.prepare(Path("a.png"))[None]
    assert batch.shape == (1, 3, 224, 224)
    probabilities = model(batch).softmax(1)[0]
    label = int(probabilities.argmax())
    assert rows[0]["class"] == classifier.class_names[label] and rows[-1]["class"] == "tabby"
    assert rows[0]["probability"] == pytest.approx(probabilities[label].item(), rel=1e-4)
    maps = gradcam(model, batch, [label], classifier.layers)
    saved = np.load(Path("maps") / rows[0]["map"][0])
    assert np.allclose(saved[0, -1], maps[classifier.layers[-1]][0], atol=1e-4)
    assert rows[0]["class"] in capsys.readouterr().out


def test_a_network_of_torchvision_that_cannot_be_had(torchvision_weights, tmp_path, capsys):
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")

    def error(*words):
        assert cli(["explain", picture, *words, "--out", str(tmp_path / "out.png")]) in (2, 3)
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out.png").exists()
        return line

    assert "did you mean resnet50" in error("--model", "resnet5O")
    missing = error("--model", "resnet50")
    assert "the weights of resnet50 are not on this machine" in missing
    assert "a test does not download" in missing
    _, path = torchvision_weights
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path} is damaged" in error("--model", "resnet18")
    assert "give only one of them" in error("--model", "resnet18", "--width", "64")


def test_weights_of_torchvision_run_no_code(torchvision_weights, tmp_path):
    """A file of weights is a pickle: only tensors are taken from it."""
    _, path = torchvision_weights
    torch.save({"fc.weight": Bomb(tmp_path / "went off")}, path)
    with pytest.raises(OSError, match="is damaged"):
        torchvision_classifier("resnet18")
    assert not (tmp_path / "went off").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_without_a_network_one_line_says_so(torchvision_weights, tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # where nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(runs, "PAUSE", 0)
    with pytest.raises(FileNotFoundError, match="can't be fetched from https://download"):
        torchvision_classifier("resnet50")


def test_weights_of_torchvision_are_fetched_once_and_verified(
    torchvision_weights, tmp_path, monkeypatch
):
    """By the digits in the name; the file given here has others, so it's asked for by these."""
    from torchvision.models import ResNet18_Weights, get_model_weights

    model, path = torchvision_weights
    weights, content, asked = ResNet18_Weights.DEFAULT, path.read_bytes(), []
    path.unlink()

    def fetch(missing, address, place, digest, size):
        asked.append((address, digest, size))
        place.write_bytes(content)
        return place

    monkeypatch.setattr(own, "fetch", fetch)
    for _ in range(2):
        found = own.load_safely("resnet18", weights)
        assert torch.equal(found.fc.weight, model.fc.weight)
    assert asked == [(weights.url, "sha256:f37072fd", round(44.661 * 2**20))]
    for name in ("resnet50", "vit_b_16", "convnext_tiny", "efficientnet_v2_s", "swin_v2_t"):
        each = get_model_weights(name).DEFAULT
        assert re.fullmatch("[0-9a-f]{8,}", Path(each.url).stem.rpartition("-")[2])
        assert each.meta["_file_size"] > 1  # in MB


def test_our_classifier_sees_what_a_run_saw(pictures, own_run):
    images = recorded_images(own_run.folder)
    classifier = our_classifier(own_run.model, images)
    (path,) = list((pictures / "Bäume").glob("Bild 0*"))
    expected = as_batch(own.read_picture(path, 32)[None], images["mean"], images["std"])[0]
    assert torch.equal(classifier.prepare(path), expected)
    assert classifier.class_names == CLASSES


def test_a_small_run_says_what_its_images_are(small_run):
    record = json.loads((small_run.folder / "config.json").read_text())["images"]
    assert record["count"] == {"train": 240, "validation": 60, "test": 1000}
    assert record["class_names"][0] == "airplane" and record["image_size"] == 32
