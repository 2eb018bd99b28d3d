"""The page "Try it": its network is Python's, and in Chromium each control does what it says."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
from base64 import b64encode

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cifar_cam_lib.course import OUR_CAT
from cifar_cam_lib.data import CLASS_NAMES, as_batch, read_picture
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.gradcam import draw_map, gradcam
from cifar_cam_lib.training import load_shipped_model
from cifar_cam_lib.trust import rank_correlation
from scripts.project import ROOT
from scripts.publish.try_screenshot import copy_page, serve

PAGE = ROOT / "nbs" / "try"
DOG = CLASS_NAMES.index("dog")
DESKTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def twelve():
    """The page's pictures, uint8 [12, 32, 32, 3], and what pictures.json tells of them."""
    strip = np.asarray(Image.open(PAGE / "pictures.png").convert("RGB"))
    told = json.loads((PAGE / "pictures.json").read_text(encoding="utf-8"))
    return np.stack(np.split(strip, len(told), axis=1)), told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page as the site has it, and a file that tells node what kind of modules these are."""
    folder = copy_page(tmp_path_factory.mktemp("site"))
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def said_by_python(images, labels):
    """Logits, maps and their maxima before scaling, a row for each picture."""
    model, batch = load_shipped_model("cifar10"), as_batch(images)
    maps = gradcam(model, batch, labels)
    with torch.no_grad():
        logits = model(batch)
    return [
        {
            "pixels": images[n].ravel().tolist(),
            "label": labels[n],
            "logits": logits[n].tolist(),
            "maps": {layer: map_[n].ravel().tolist() for layer, map_ in maps.items()},
            "maximum": {layer: value[n].item() for layer, value in maps.maximum.items()},
        }
        for n in range(len(images))
    ]


def enlarged_maps():
    """Maps of several sizes, and what they are at 32 x 32."""
    for height, width in ((1, 1), (2, 3), (8, 8), (32, 32)):
        map_ = torch.rand(height, width, generator=torch.Generator().manual_seed(height))
        large = F.interpolate(map_[None, None], (32, 32), mode="bilinear", align_corners=False)
        values, enlarged = map_.ravel().tolist(), large.ravel().tolist()
        yield {"values": values, "height": height, "width": width, "enlarged": enlarged}


@torch.no_grad()
def occlusion(image, label):
    """By how much the logit falls, as a mean over the squares of 8 pixels that hide a pixel."""
    model, batch = load_shipped_model("cifar10"), as_batch(image[None])
    falls, counts, whole = torch.zeros(32, 32), torch.zeros(32, 32), model(batch)[0, label]
    for top in range(0, 28, 4):
        for left in range(0, 28, 4):
            hidden, place = batch.clone(), (slice(top, top + 8), slice(left, left + 8))
            hidden[:, :, *place] = 0
            falls[place] += whole - model(hidden)[0, label]
            counts[place] += 1
    return (falls / counts).relu().ravel().tolist()


def photos(folder):
    """Pictures of several sizes, and what `read_picture` makes of each."""
    random = np.random.default_rng(0)
    for width, height in ((32, 32), (61, 40), (40, 61), (133, 64), (20, 30), (300, 200)):
        rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / "photo.png")
        opaque = np.full((height, width, 1), 255, dtype=np.uint8)
        yield {
            "rgba": np.concatenate([rgb, opaque], axis=2).ravel().tolist(),
            "width": width,
            "height": height,
            "pixels": read_picture(folder / "photo.png", 32).ravel().tolist(),
        }


def files():
    """Small files of all kinds, and some that are none."""
    picture = Image.effect_noise((70, 45), 50).convert("RGB")
    kinds = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {})]
    kinds += [("WEBP", {"lossless": True}), ("WEBP", {"quality": 50}), ("WEBP", {"exif": b"Exif"})]
    for kind, options in kinds:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        yield {"kind": kind, "base64": b64encode(file.getvalue()).decode(), "size": [70, 45]}
    for content in (b"", b"\x89PNG", b"hello, this is a text of some length", b"\xff\xd8" * 30):
        yield {"kind": str(content), "base64": b64encode(content).decode(), "size": None}


@pytest.fixture(scope="module")
def expected(twelve, folder, tmp_path_factory):
    """What Python says to the twelve pictures and eight drawn ones, also as a file for node."""
    images = np.concatenate([twelve[0], draw_pictures(8, "test")[0]])
    pictures = said_by_python(images, [n % 10 for n in range(20)])
    first, second = (torch.tensor(pictures[n]["maps"]["layer4"]).reshape(1, 32, 32) for n in (0, 1))
    told = {
        "pictures": pictures,
        "sizes": list(enlarged_maps()),
        "occlusion": {"picture": 10, "label": DOG, "map": occlusion(images[10], DOG)},
        "ranks": {
            "first": first.ravel().tolist(),
            "second": second.ravel().tolist(),
            "correlation": rank_correlation(first, second).item(),
        },
        "colours": [
            {"value": value, "inferno": colour("inferno", value), "signed": colour("PuOr_r", value)}
            for value in np.linspace(0, 1, 101).tolist()
        ],
        "photos": list(photos(tmp_path_factory.mktemp("photos"))),
        "files": list(files()),
    }
    (folder / "expected.json").write_text(json.dumps(told))
    return told


def colour(name, value):
    """Red, green and blue of one of matplotlib's scales, 0..255."""
    return [255 * part for part in plt.get_cmap(name)(value)[:3]]


def test_the_page_is_small_and_the_network_can_be_read_in_one_go(folder):
    files = [
        path for path in folder.iterdir() if path.name not in ("package.json", "expected.json")
    ]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 2_000_000
    lines = (folder / "network.js").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    for path in PAGE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 100, path.name
        assert "http" not in text.replace("https.", ""), f"{path.name} names an address"
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "<style" not in html and " style=" not in html and "unsafe" not in html


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
    assert int(re.search(r"^# pass (\d+)", ran.stdout, re.MULTILINE)[1]) >= 15


@pytest.fixture(scope="module")
def address(folder):
    """The page, served to this machine."""
    server = serve(folder.parent)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Visit:
    """The page in a tab: what it asks for, and what it complains of."""

    def __init__(self, browser, address, **options):
        self.tab = browser.new_page(**{"viewport": DESKTOP} | options)
        self.asked, self.complaints = [], []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(f"{address}/try/index.html")
        self.settle()

    def settle(self):
        """Wait until what is shown belongs to what was asked."""
        self.tab.wait_for_selector("main[aria-busy=false]", timeout=60_000)

    def words(self, name):
        return self.tab.inner_text(f"#{name}")

    def until(self, expression):
        """Wait for it. (The page's own rules forbid Playwright's way, which evaluates a text.)"""
        for _ in range(300):
            if self.tab.evaluate(expression):
                return
            self.tab.wait_for_timeout(100)
        pytest.fail(f"never true: {expression}")

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)
        self.settle()

    def choose(self, place):
        """One of the twelve pictures."""
        self.tab.locator("#twelve button").nth(place).click()
        self.settle()


@pytest.fixture
def visit(browser, address):
    """A visit that must end without a complaint, and without a request to anybody else."""
    visit = Visit(browser, address)
    yield visit
    visit.tab.close()
    assert visit.complaints == []
    assert [url for url in visit.asked if not url.startswith((address, "blob:", "data:"))] == []


IN_THE_WORKER = """async pictures => {
    const [{ ask }, network] = await Promise.all([import('./ask.js'), import('./network.js')]);
    const found = [];
    for (const { pixels, label } of pictures) {
        const { used } = await ask('answer', { pixels });
        const weights = (await ask('explain', { label })).used;
        const maps = network.LAYERS.map(layer => {
            const map = network.gradcamMap(used.activations[layer], weights[layer]);
            return [layer, Array.from(network.scaleMap(network.enlarge(map)))];
        });
        found.push({ logits: Array.from(used.logits), maps: Object.fromEntries(maps) });
    }
    return found;
}"""


def test_logits_and_maps_of_the_worker_in_chromium_are_pythons(visit, expected):
    asked = [{"pixels": one["pixels"], "label": one["label"]} for one in expected["pictures"]]
    found = visit.tab.evaluate(IN_THE_WORKER, asked)
    assert len(found) == 20
    for ours, pythons in zip(found, expected["pictures"], strict=True):
        assert np.allclose(ours["logits"], pythons["logits"], rtol=0, atol=1e-5)
        assert set(ours["maps"]) == set(pythons["maps"])
        for layer, map_ in ours["maps"].items():
            assert np.allclose(map_, pythons["maps"][layer], rtol=0, atol=1e-5), layer


def test_the_page_shows_what_python_says(visit, twelve, expected):
    """Probabilities, true and predicted class, sentence, and an empty map, which says so."""
    told = twelve[1]
    chosen = [one["number"] for one in told]
    assert len(chosen) == len(set(chosen)) == 12 and OUR_CAT["cifar10"] in chosen
    right = [one["true"] == one["predicted"] for one in told]
    assert 5 <= sum(right) <= 7
    for place in (0, 7, 10):
        visit.choose(place)
        probabilities = torch.tensor(expected["pictures"][place]["logits"]).softmax(0).tolist()
        rows = visit.tab.locator("#probabilities li").all_inner_texts()
        for name, probability, row in zip(CLASS_NAMES, probabilities, rows, strict=True):
            shown, digits = row.split()[-2], 1 if probability < 0.01 else 0
            assert row.startswith(name) and shown == f"{100 * probability:.{digits}f}"
        said = CLASS_NAMES[told[place]["predicted"]]
        true = CLASS_NAMES[told[place]["true"]]
        assert visit.words("picture-words").endswith(f"It says: {said}. The true class: {true}.")
        assert f"for {true}" in visit.words("first-words")
    visit.choose(0)  # the airplane
    visit.tab.select_option("#class", label="dog")
    visit.settle()
    sentence = "There's no positive evidence for dog at layer4: its map is empty."
    assert visit.words("sentence") == sentence and "empty" in visit.words("map-words")


SEEN = """id => {
    const copy = new OffscreenCanvas(320, 320).getContext('2d', { willReadFrequently: true });
    copy.drawImage(document.getElementById(id), 0, 0);
    const { data } = copy.getImageData(0, 0, 320, 320);
    return Array.from({ length: 3072 }, (_, n) => {
        const [y, x, part] = [Math.floor(n / 96), Math.floor((n % 96) / 3), n % 3];
        return data[4 * (320 * (10 * y + 5) + 10 * x + 5) + part];
    });
}"""


def colours_of(visit, canvas):
    """The middle of each of the 32 x 32 pixels that a canvas shows, uint8 [32, 32, 3]."""
    return np.array(visit.tab.evaluate(SEEN, canvas), dtype=np.uint8).reshape(32, 32, 3)


def test_the_sentence_and_the_map_are_those_of_our_cat(visit, expected):
    model, image = load_shipped_model("cifar10"), np.array(expected["pictures"][10]["pixels"])
    image = image.reshape(32, 32, 3).astype(np.uint8)
    maps = gradcam(model, as_batch(image[None]), [DOG])
    map_ = maps["layer4"][0].numpy()
    share = max(
        map_[top : top + 16, left : left + 16].sum() / map_.sum()
        for top in (0, 8, 16)
        for left in (0, 8, 16)
    )
    assert f"for dog lies mostly in the middle; {100 * share:.0f} %" in visit.words("sentence")
    assert f"{maps.maximum['layer4'].item():.2g}" in visit.words("map-words")
    figure, axis = plt.subplots()
    draw_map(axis, image, torch.from_numpy(map_))
    tile = axis.images[0].get_array()
    plt.close(figure)
    assert np.abs(colours_of(visit, "map") - 255 * tile).max() < 4
    assert (colours_of(visit, "picture") == image).all()


REACHABLE = """() => {
    const one = document.activeElement;
    const outline = getComputedStyle(one.type === 'file' ? one.previousElementSibling : one);
    const name = one.id || one.name || one.closest('[id]')?.id || one.textContent;
    return [name, one === document.body ? 'none' : outline.outlineStyle];
}"""


def reach(visit):
    """What the tab key reaches, by id or by that of the group."""
    reached = []
    for _ in range(120):
        visit.tab.keyboard.press("Tab")
        name, outline = visit.tab.evaluate(REACHABLE)
        if outline == "none":
            return reached
        reached.append(name)
    pytest.fail("the tab key never leaves the page, or the focus isn't seen")


def test_the_tab_key_reaches_every_control_and_the_focus_is_seen(visit):
    reached = reach(visit)
    controls = {"scheme", "twelve", "file", "camera", "class", "layers", "opacity", "first-n"}
    controls |= {"all", "tiles", "cover", "uncover", "occlude", "parts", "again", "trained"}
    assert controls <= set(reached)
    assert reached.count("twelve") == 12 and reached.count("parts") == 6
    assert reached.count("tiles") == 1  # the arrows do the rest


def test_class_layer_and_opacity_follow_the_keyboard(visit):
    tab, before = visit.tab, colours_of(visit, "map")
    tab.focus("#twelve li:first-child button")
    visit.press("Enter")
    assert visit.words("picture-words").endswith("The true class: airplane.")
    tab.focus("#class")
    visit.press("s")  # the first class with this letter
    assert "for ship at layer4" in visit.words("map-words")
    tab.focus("#layers input:checked")
    visit.press("ArrowLeft")
    assert "for ship at layer3" in visit.words("map-words")
    assert "layer3" in visit.words("beside-words") and "64 channels" in visit.words("sum-words")
    after = colours_of(visit, "map")
    assert (before != after).any()
    tab.focus("#opacity")
    visit.press("Home")
    grey = colours_of(visit, "map")
    assert (grey[..., 0] == grey[..., 2]).all() and (after != grey).any()
    tab.focus("#scheme")
    visit.press("Enter")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(31, 29, 26)"
    tab.reload()
    visit.settle()
    assert tab.evaluate("document.documentElement.dataset.scheme") == "slate"


def test_the_map_is_built_from_channels_by_the_keyboard(visit):
    tab, whole = visit.tab, colours_of(visit, "sum")
    weights = [
        float(words.replace("−", "-")) for words in tab.locator("#tiles button").all_inner_texts()
    ]
    assert len(weights) == 128 and weights == sorted(weights, reverse=True)
    tab.focus("#first-n")
    visit.press("Home")
    assert visit.words("sum-words").startswith("From 0 of 128") and "empty" in visit.words(
        "sum-words"
    )
    visit.press("ArrowRight", "ArrowRight")
    assert visit.words("sum-words").startswith("From 2 of 128")
    assert tab.locator("#tiles [aria-pressed=true]").count() == 2
    tab.focus("#tiles button:first-child")
    visit.press("Space", "ArrowRight", "ArrowRight", "Space")  # the first off, the third on
    pressed = [
        tile.get_attribute("aria-pressed") for tile in tab.locator("#tiles button").all()[:4]
    ]
    assert pressed == ["false", "true", "true", "false"]
    assert (colours_of(visit, "sum") != whole).any()
    tab.focus("#all")
    visit.press("Enter")
    assert (colours_of(visit, "sum") == whole).all()


def probability(text):
    return [float(number) for number in re.findall(r"([\d.]+) %", text)]


@torch.no_grad()
def test_hiding_a_part_by_keyboard_and_pointer_is_what_python_says(visit, twelve):
    tab = visit.tab
    tab.focus("#cover")
    visit.press("ArrowUp", "ArrowLeft", "Enter")  # 8 pixels round (14, 14)
    batch = as_batch(twelve[0][10][None])
    batch[:, :, 10:18, 10:18] = 0
    model = load_shipped_model("cifar10")
    after = 100 * model(batch).softmax(1)[0, DOG].item()
    tab.get_by_text(f"to {after:.0f} %").wait_for(timeout=30_000)
    assert probability(visit.words("cover-words"))[0] == 6  # 64 of 1,024 pixels
    tab.focus("#uncover")
    visit.press("Enter")
    assert "Nothing is hidden" in visit.words("cover-words")
    box = tab.locator("#cover").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=8)
    tab.mouse.up()
    tab.get_by_text("of the picture is hidden").wait_for(timeout=30_000)
    assert probability(visit.words("cover-words"))[0] >= 12


STOPPED = """async () => {
    const { ask } = await import('./ask.js');
    const map = ask('occlude', { label: 3 }, { onProgress() {} });
    await ask('stop');
    return map;  // null, and not after all passes
}"""


def test_the_square_slides_with_progress_and_can_be_stopped(visit, expected):
    tab = visit.tab
    tab.focus("#occlude")
    visit.press("Enter")
    visit.until("document.getElementById('progress').value > 1")
    assert tab.evaluate("document.activeElement.id") == "stop"
    visit.press("Enter")
    assert "hasn't been computed" in visit.words("occlusion-words")
    assert visit.tab.evaluate(STOPPED) is None
    visit.press("Enter")  # the focus is on the first button again
    tab.get_by_text("Occlusion: bright wherever").wait_for(timeout=60_000)
    map_ = np.array(expected["occlusion"]["map"]).reshape(32, 32)
    shown = colours_of(visit, "occlusion").astype(int).sum(axis=2)
    assert shown[map_ == map_.max()].min() > shown[map_ < 0.3 * map_.max()].max()


def test_parts_are_drawn_anew_and_come_back(visit):
    tab, trained = visit.tab, colours_of(visit, "map")
    tab.focus("#parts input")
    visit.press("Space")
    anew = colours_of(visit, "map")
    assert "Drawn anew: head." in visit.words("warning") and (anew != trained).any()
    assert (colours_of(visit, "trained-map") == trained).all()
    assert -1 <= float(visit.words("random-words").split()[-1].strip(".")) < 0.9
    tab.focus("#again")
    visit.press("Enter")
    assert (colours_of(visit, "map") != anew).any()
    tab.focus("#trained")
    visit.press("Enter")
    assert (colours_of(visit, "map") == trained).all()
    assert not tab.is_visible("#warning")


def test_the_last_of_two_quick_choices_wins(visit):
    """Two classes, then new weights and another picture, before the first answer is there."""
    tab = visit.tab
    tab.evaluate(
        """() => {
            const classes = document.querySelector("#class");
            for (const value of ["6", "5"]) { // frog, then dog, whose answer is known already
                classes.value = value;
                classes.dispatchEvent(new Event("change", { bubbles: true }));
            }
        }"""
    )
    tab.wait_for_timeout(3000)
    visit.settle()
    assert "for dog" in visit.words("map-words")
    tab.evaluate(
        """() => {
            document.querySelector("#parts input").click();
            document.querySelectorAll("#twelve button")[0].click();
        }"""
    )
    tab.wait_for_timeout(3000)
    visit.settle()
    assert tab.get_attribute("#twelve button >> nth=0", "aria-pressed") == "true"
    assert "true class: airplane" in visit.words("picture-words")


def png_head(width, height):
    """What a PNG of this size begins with, and nothing else."""
    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sizes + b"\x08\x02" + bytes(100)


def test_a_file_that_is_no_picture_gets_one_line_and_the_old_picture_stays(visit, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(31_000_000)
    bad = {
        "empty.png": (b"", "isn't a picture"),
        "text.jpg": (b"I am a text, and of some length, so look", "isn't a picture"),
        "head.png": (png_head(40, 40), "damaged"),
        "half.png": (whole[: len(whole) // 2], "damaged"),
        "half.jpg": ((tmp_path / "whole.jpg").read_bytes()[:2000], "damaged"),
        "wide.png": (png_head(60_000, 50_000), "60000 x 50000 pixels, expected at most 50 million"),
        "huge.png": (None, "has 31 MB, expected at most 30 MB"),
    }
    before = colours_of(visit, "map"), visit.words("picture-words")
    for name, (content, words) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        visit.tab.set_input_files("#file", tmp_path / name)
        visit.tab.get_by_text(f"{name} ").wait_for(timeout=30_000)
        line = visit.words("trouble")
        assert words in line and "\n" not in line, name
        assert (colours_of(visit, "map") == before[0]).all()
        assert visit.words("picture-words") == before[1] and not visit.tab.is_visible("#photo")
        assert visit.tab.locator("#twelve [aria-pressed=true]").count() == 1, name
    visit.choose(0)
    assert visit.words("trouble") == ""


def test_a_photo_is_upright_cropped_shrunk_and_shown(visit, tmp_path):
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (640, 961, 4), dtype=np.uint8)
    photo[:, :, 3] = np.where(photo[:, :, 3] < 128, 0, 255)  # half of it is transparent
    Image.fromarray(photo).save(tmp_path / "photo.png")
    visit.tab.set_input_files("#file", tmp_path / "photo.png")
    visit.tab.get_by_text("photo.png has 961 x 640 pixels").wait_for()
    visit.settle()
    wanted = read_picture(tmp_path / "photo.png", 32).astype(int)
    for canvas in ("small", "picture"):
        assert np.abs(colours_of(visit, canvas) - wanted).max() <= 1
    assert "640 x 640, shrunk to 32 x 32" in visit.words("photo-words")
    assert "about 20 x 20" in visit.words("photo-words")
    assert "True" not in visit.words("picture-words") and "predicted" in visit.words("first-words")
    turned = Image.fromarray(photo[:, :, :3])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    visit.tab.set_input_files("#file", tmp_path / "turned.jpg")
    visit.tab.get_by_text("turned.jpg has 640 x 961 pixels").wait_for()
    visit.settle()
    wanted = read_picture(tmp_path / "turned.jpg", 32).astype(int)
    assert np.abs(colours_of(visit, "picture") - wanted).max() <= 3  # decoders of JPEG differ


HANDED_OVER = """async ([kind, files]) => {
    const data = new DataTransfer();
    for (const file of files) {
        data.items.add(new File([Uint8Array.from(file)], 'one.png', { type: 'image/png' }));
    }
    const event = new Event(kind, { bubbles: true, cancelable: true });
    event[kind === 'drop' ? 'dataTransfer' : 'clipboardData'] = data;
    document.getElementById('answer').dispatchEvent(event);
}"""


def test_a_picture_may_be_dropped_pasted_or_taken_by_the_camera(visit):
    tab, file = visit.tab, io.BytesIO()
    Image.effect_noise((50, 40), 60).save(file, "PNG")
    for kind in ("drop", "paste"):
        visit.choose(0)
        tab.evaluate(HANDED_OVER, [kind, []])
        visit.until("document.getElementById('trouble').textContent")
        tab.evaluate(HANDED_OVER, [kind, [list(file.getvalue())]])
        tab.get_by_text("one.png has 50 x 40 pixels").wait_for()
        assert visit.words("trouble") == ""
    tab.evaluate("""() => {
        const refuse = async () => { throw new DOMException('no', 'NotAllowedError'); };
        navigator.mediaDevices.getUserMedia = refuse;
    }""")
    tab.focus("#camera")
    visit.press("Enter")
    tab.get_by_text("The camera wasn't allowed.").wait_for()
    tab.evaluate("""() => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [80, 60];
        const context = canvas.getContext('2d');
        setInterval(() => context.fillRect(0, 0, 40, 60), 50);  // a stream needs news
        navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(10);
    }""")
    visit.press("Enter")
    visit.until("document.activeElement.id === 'shoot'")
    visit.press("Enter")
    tab.get_by_text("Your picture has 80 x 60 pixels").wait_for()
    assert not tab.is_visible("#live") and tab.evaluate(
        "!document.getElementById('video').srcObject"
    )
    tab.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    visit.press("Enter")
    tab.get_by_text("This browser lends no camera").wait_for()


def test_the_page_may_ask_nobody_else(browser, address):
    visit = Visit(browser, address)
    refused = visit.tab.evaluate(
        "fetch('https://example.org/').then(() => 0, error => error.message)"
    )
    assert refused and any("Content Security Policy" in text for text in visit.complaints)
    visit.tab.close()


# The lowest ratio of brightness between text and what's behind it (WCAG 1.4.3), and which text
CONTRAST = """() => {
    const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
    const light = ([red, green, blue]) => [red, green, blue].map(part => part / 255)
        .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
    const ground = one => {
        for (; one; one = one.parentElement) {
            const colour = numbers(getComputedStyle(one).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    let lowest = [99, ''];
    for (const one of document.querySelectorAll('body *')) {
        const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !one.checkVisibility()) continue;
        const [a, b] = [numbers(getComputedStyle(one).color), ground(one)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < lowest[0]) lowest = [ratio, one.outerHTML.slice(0, 80)];
    }
    return lowest;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_overflows_and_all_text_can_be_read(browser, address, tmp_path, scheme, size):
    visit = Visit(browser, address, viewport=size, color_scheme=scheme)
    tab = visit.tab
    tab.get_by_label("head").check()
    visit.settle()
    assert tab.evaluate("document.scrollingElement.scrollWidth - window.innerWidth") <= 0
    ratio, text = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    nameless = tab.locator("canvas[role=img]:not([aria-label]), button:empty, img")
    assert nameless.filter(visible=True).count() == 0
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    assert visit.complaints == []
    tab.close()
