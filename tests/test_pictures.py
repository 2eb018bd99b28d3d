"""Pictures, weights and records from strangers: their cost is bounded, and notes cost nothing."""

import io
import os
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from safetensors.torch import save

from cifar_cam_lib import runs
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.runs import LIMITS, open_picture, printable, read_json, read_tensors
from cifar_cam_lib.training import load_model, save_weights


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def smooth(width, height, mode="RGB", seed=0):
    """A picture without hard edges, the same each time."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), dtype=np.uint8)
    parts = [Image.fromarray(small[..., k].copy()) for k in range(channels)]
    size = (width, height)
    return Image.merge(mode, [part.resize(size, Image.Resampling.BICUBIC) for part in parts])


def before(path):
    """`open_picture` as it was before: everything whole."""
    with Image.open(path) as picture:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            bits = np.asarray(picture).clip(0, 65535) >> 8
            picture = Image.fromarray(bits.astype(np.uint8))
        picture = picture.convert("RGBA")
    grey = Image.new("RGBA", picture.size, "grey")
    return Image.alpha_composite(grey, picture).convert("RGB")


def pixels(picture):
    return np.asarray(picture).astype(int)


def kinds():
    """Pictures of all kinds and modes: name, picture, how to save it."""
    rgb, alpha, grey = smooth(60, 40), smooth(60, 40, "RGBA"), smooth(60, 40, "L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = rgb.quantize(20)
    return [
        ("a.png", rgb, {}),
        ("b.png", alpha, {}),
        ("c.png", deep, {}),
        ("d.png", palette, {"transparency": 3}),
        ("e.png", rgb, {"transparency": tuple(rgb.getpixel((5, 5)))}),
        ("f.png", grey.convert("LA"), {}),
        ("g.png", grey.convert("1"), {}),
        ("h.png", grey, {"transparency": 100}),
        ("a.jpg", rgb, {}),
        ("b.jpg", rgb, {"progressive": True}),
        ("c.jpg", rgb.convert("CMYK"), {}),
        ("d.jpg", grey, {}),
        ("a.gif", palette, {"transparency": 3}),
        ("b.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        ("a.bmp", rgb, {}),
        ("b.bmp", palette, {}),
        ("a.webp", alpha, {}),
        ("b.webp", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        ("a.tiff", rgb, {"compression": "tiff_lzw"}),
        ("b.tiff", deep, {}),
        ("c.tiff", rgb.convert("CMYK"), {}),
        ("d.tiff", alpha, {"compression": "tiff_adobe_deflate"}),
        ("e.tiff", palette, {}),
        ("f.tiff", rgb.convert("LAB") if hasattr(Image.core, "lab") else rgb, {}),
        ("g.tiff", rgb, {"big_tiff": True}),
        ("a.ppm", rgb, {}),
        ("b.pgm", grey, {}),
        ("c.pbm", grey.convert("1"), {}),
        ("d.pgm", deep.convert("I"), {}),
    ]


WHOLE = [kind for kind in kinds() if kind[0] != "b.gif"]  # half of that has a whole picture


@pytest.mark.parametrize("name, picture, options", kinds(), ids=[name for name, *_ in kinds()])
def test_small_pictures_are_bit_for_bit_what_they_were(name, picture, options, tmp_path):
    picture.save(tmp_path / name, **options)
    assert np.array_equal(pixels(open_picture(tmp_path / name)), pixels(before(tmp_path / name)))


@pytest.mark.parametrize("name, picture, options", WHOLE, ids=[name for name, *_ in WHOLE])
def test_big_pictures_are_the_average_of_their_squares(name, picture, options, tmp_path):
    big = picture.resize((2200, 2060), Image.Resampling.NEAREST)
    if picture.mode == "L" and name != "h.png" or picture.mode == "RGB":
        big = picture.resize((2200, 2060), Image.Resampling.BICUBIC)
    options = {
        key: value.resize((2200, 2060)) if isinstance(value, Image.Image) else value
        for key, value in options.items()
    }
    if "append_images" in options:
        options["append_images"] = [big.rotate(180)]
    big.save(tmp_path / name, **options)
    found, whole = open_picture(tmp_path / name), before(tmp_path / name)
    assert found.size == (1100, 1030)
    difference = np.abs(pixels(found) - pixels(whole.reduce(2)))
    if name.endswith("jpg"):  # reduced before the colours are mixed, so not quite the same
        assert difference.mean() < 1.5
        squares = [ImageOps.fit(p, (32, 32), Image.Resampling.BOX) for p in (found, whole)]
        assert np.abs(pixels(squares[0]) - pixels(squares[1])).max() <= 3
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("scale, orientation", [*((1, n) for n in range(1, 9)), (52, 6)])
def test_each_orientation_of_each_kind(orientation, ending, scale, tmp_path):
    note, path = Image.Exif(), tmp_path / f"a.{ending}"
    note[0x0112] = orientation
    smooth(60 * scale, 40 * scale).save(path, exif=note)
    expected = before(path)
    found = open_picture(path)
    assert (found.width > found.height) == (orientation < 5)
    if scale == 1:
        assert np.array_equal(pixels(found), pixels(expected))
    else:
        small = [ImageOps.fit(p, (32, 32), Image.Resampling.BOX) for p in (found, expected)]
        assert np.abs(pixels(small[0]) - pixels(small[1])).max() <= 3


@pytest.fixture
def nothing_decoded(monkeypatch):
    """Whoever decodes a pixel fails with a message of its own."""

    def load(self):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for plugin in ("WebPImagePlugin.WebPImageFile", "GifImagePlugin.GifImageFile"):
        module, name = plugin.split(".")
        kind = getattr(__import__(f"PIL.{module}", fromlist=[name]), name)
        monkeypatch.setattr(kind, "load", load)
    from PIL import TiffImagePlugin

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)


def large_files(folder):
    """For each key of LIMITS a file that breaks its megapixels, made small by its limit."""
    wide = smooth(300, 200)
    grey = Image.new("L", (300, 200))
    deep = Image.fromarray(np.zeros((200, 300), np.uint16))
    note = {"PNG": (wide, "png", {}), "DEEP": (deep, "png", {}), "JPEG": (wide, "jpg", {})}
    note |= {"PROGRESSIVE": (wide, "jpg", {"progressive": True}), "WEBP": (wide, "webp", {})}
    note |= {"GIF": (grey, "gif", {}), "BMP": (wide, "bmp", {}), "TIFF": (wide, "tiff", {})}
    note |= {"NARROW": (wide, "jpg", {}), "PPM": (wide, "ppm", {})}
    note |= {"PIECES": (wide, "tiff", {"compression": "tiff_lzw", "tiffinfo": {278: 200}})}
    note |= {"SLOW": (deep.convert("I"), "pgm", {})}
    for kind, (picture, ending, options) in note.items():
        path = folder / f"{kind}.{ending}"
        picture.save(path, **options)
        if kind == "SLOW":  # 1023 instead of 65535 is what Pillow decodes in Python
            path.write_bytes(path.read_bytes().replace(b"65535", b"1023", 1))
        yield kind, path


@pytest.mark.parametrize("kind", LIMITS)
def test_each_limit_is_named_before_a_pixel_is_decoded(
    kind, tmp_path, monkeypatch, nothing_decoded
):
    path = dict(large_files(tmp_path))[kind]
    if kind == "PIECES":
        monkeypatch.setattr(runs, "PIECE", 100_000)
    with pytest.raises(OSError, match="not a picture that can be read") as refusal:
        open_picture(path)  # so the fixture does its work
    assert "a pixel was decoded" in str(refusal.value.__cause__)
    limit = LIMITS[kind]
    monkeypatch.setitem(LIMITS, kind, limit._replace(megapixels=0.05))
    with pytest.raises(OSError) as refusal:
        open_picture(path)
    expected = f"has 0.06 megapixels, expected at most 0.05 of {limit.name}: shrink it first"
    assert str(refusal.value) == f"{path} {expected}"
    size = path.stat().st_size
    monkeypatch.setitem(LIMITS, kind, limit._replace(megabytes=size / 2e6))
    with pytest.raises(OSError, match=f"megabytes, expected at most .* of {limit.name}: shrink"):
        open_picture(path)


def test_bombs_are_refused_by_their_own_limit(tmp_path, nothing_decoded):
    def bomb(width, height, depth=8):
        header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
        head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        return head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")

    for (width, height), words in {
        (13_300, 13_300): "has 177 megapixels, expected at most 48 of a PNG",
        (60_000, 60_000): "has 3,600 megapixels, expected at most 48 of a PNG",
        (1, 10_000_000): "has 1 x 10,000,000 pixels, expected at most 100,000 a side",
    }.items():
        (tmp_path / "big.png").write_bytes(bomb(width, height))
        with pytest.raises(OSError, match=f"big.png {words}"):
            open_picture(tmp_path / "big.png")
    many = b"".join(chunk(b"tEXt", b"") for _ in range(runs.PARTS + 1))
    (tmp_path / "big.png").write_bytes(bomb(9, 9)[:33] + many + bomb(9, 9)[33:])
    with pytest.raises(OSError, match="has more than 20,000 parts"):
        open_picture(tmp_path / "big.png")


def test_the_passes_of_a_jpeg_are_counted(tmp_path, nothing_decoded):
    path = tmp_path / "a.jpg"
    smooth(60, 40).save(path, progressive=True)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * 40 + b"\xff\xd9")
    with pytest.raises(OSError, match="has more than 24 passes over its pixels"):
        open_picture(path)


def test_a_tile_counts_with_all_its_pixels(tmp_path, nothing_decoded):
    rows = [(256, 4, 1, 32), (257, 4, 1, 32), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    rows += [(277, 3, 1, 1), (322, 4, 1, 20_000), (323, 4, 1, 20_000), (324, 4, 1, 8)]
    rows += [(325, 4, 1, 8)]
    table = struct.pack("<H", len(rows))
    table += b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    (tmp_path / "a.tiff").write_bytes(b"II*\0" + struct.pack("<I", 8) + table)
    with pytest.raises(OSError, match="has 400 megapixels, expected at most 30 of a TIFF"):
        open_picture(tmp_path / "a.tiff")


def test_a_jpeg_is_reduced_while_it_is_decoded(tmp_path, monkeypatch):
    seen = []

    def load(self, before=ImageFile.ImageFile.load):
        result = before(self)
        seen.append(self.size)
        return result

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    smooth(4400, 4200).save(tmp_path / "a.jpg")
    smooth(2200, 2100).save(tmp_path / "b.jpg", progressive=True)
    for name in ("a.jpg", "b.jpg"):
        assert open_picture(tmp_path / name).size == (1100, 1050)
    assert set(seen) == {(1100, 1050)}


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp", "a.tiff", "a.bmp", "a.ppm"])
def test_no_copy_of_the_whole_is_made(name, tmp_path, monkeypatch):
    """What is cropped, converted or made anew is at most a band, or the small result."""
    sizes = []

    def count(owner, method):
        made = getattr(owner, method)

        def counted(*words, **options):
            result = made(*words, **options)
            sizes.append(result.width * result.height)
            return result

        monkeypatch.setattr(owner, method, counted)

    for method in ("convert", "crop", "transpose"):
        count(Image.Image, method)
    count(Image, "new")
    picture = Image.effect_noise((5000, 1100), 9).resize((2300, 2100)).convert("RGB")
    picture.convert("P" if name == "a.gif" else "RGB").save(tmp_path / name, compress_level=1)
    sizes.clear()
    found = open_picture(tmp_path / name)
    assert found.size == (1150, 1050) and len(sizes) > 8
    decoder = {"a.gif": 1}.get(name, 0)  # Pillow's own canvas
    assert sum(size > max(2**20, found.width * found.height) for size in sizes) <= decoder


@pytest.mark.parametrize("size, kept", [((9000, 100), (400, 100)), ((51, 3), (13, 3))])
def test_extreme_shapes_keep_their_middle(size, kept, tmp_path):
    picture = smooth(*size)
    picture.save(tmp_path / "a.png")
    found, short = open_picture(tmp_path / "a.png"), min(size)
    assert found.size == kept
    squares = [ImageOps.fit(p, (short, short), Image.Resampling.BOX) for p in (picture, found)]
    assert np.array_equal(pixels(squares[0]), pixels(squares[1]))


def noted(folder):
    """Sound pictures whose notes are damaged or huge, in each kind: name and content."""
    picture, text = smooth(60, 40), PngImagePlugin.PngInfo()

    def saved(kind, **options):
        written = io.BytesIO()
        picture.save(written, kind, **options)
        return written.getvalue()

    png, jpeg, gif = saved("PNG"), saved("JPEG"), saved("GIF")
    text.add_text("a", "b")
    zeros = zlib.compress(bytes(90_000_000))
    for name, inside in {
        "text": chunk(b"tEXt", b"a\0" + b"x" * 3_000_000),
        "unpacked": b"".join(chunk(b"zTXt", b"a\0\0" + zeros) for _ in range(20)),
        "badtext": chunk(b"iTXt", b"\0\0\0\0\0"),
        "badzip": chunk(b"zTXt", b"a\0\x07??"),
        "profile": chunk(b"iCCP", b"a\0\0" + zeros),
        "badprofile": chunk(b"iCCP", b""),
        "checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
        "density": chunk(b"pHYs", b"\0"),
        "gamma": chunk(b"gAMA", b""),
        "colours": chunk(b"cHRM", b"\0"),
        "rgb": chunk(b"sRGB", b""),
        "exif": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        "animation": chunk(b"acTL", b"\0"),
        "frame": chunk(b"acTL", struct.pack(">II", 3, 0)) + chunk(b"fcTL", bytes(26)),
        "private": chunk(b"prVt", bytes(9_000_000)),
    }.items():
        yield f"{name}.png", png[:33] + inside + png[33:]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(100)
    for name, (code, content) in {
        "jfif": (0xE0, b"JFIF\0"),
        "exif": (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "table": (0xE1, exif),
        "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        "profile": (0xE2, b"ICC_PROFILE\0\x07"),
        "several": (0xE2, b"MPF\0" + bytes(30)),
        "several2": (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        "photoshop": (0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff"),
        "adobe": (0xEE, b"Adobe\0"),
        "comment": (0xFE, b"\xff\xfe" * 30_000),
    }.items():
        part = b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content
        yield f"{name}.jpg", jpeg[:2] + part * 2 + jpeg[2:]
        yield f"{name}-many.jpg", jpeg[:2] + part * 500 + jpeg[2:]
    frame = gif.index(b"\x2c", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    frame = gif.index(b"\x21\xf9") if b"\x21\xf9" in gif else frame
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * 9000 + b"\0"
    program = b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0"
    for name, inside in {"comment": comment, "loop": program, "text": b"\x21\x01\0"}.items():
        yield f"{name}.gif", gif[:frame] + inside + gif[frame:]
    tiff = saved("TIFF", compression="tiff_lzw")
    (place,) = struct.unpack("<I", tiff[4:8])
    (count,) = struct.unpack("<H", tiff[place : place + 2])
    table = tiff[place + 2 : place + 2 + 12 * count]
    for name, row in {
        "density": (282, 5, 1, 2**31),
        "profile": (34675, 7, 2**31, 8),
        "text": (305, 2, 9, 2**31),
        "type": (306, 99, 1, 1),
        "none": (283, 5, 0, 0),
        "exif": (34665, 4, 1, 2**31),
        "photoshop": (34377, 1, 5000, 2**20),
    }.items():
        rows = [table[12 * k : 12 * k + 12] for k in range(count)]
        rows = sorted([*rows, struct.pack("<HHII", *row)], key=lambda r: r[:2][::-1])
        new = struct.pack("<H", count + 1) + b"".join(rows) + bytes(4)
        yield f"{name}.tiff", tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + new
    yield "comment.ppm", b"P6 #" + b"x" * 900_000 + b"\n60 40\n#y\n255\n" + picture.tobytes()
    webp = saved("WEBP", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", icc_profile=b"x", xmp=b"\xff")
    yield "notes.webp", webp


def test_notes_never_cost_the_picture(tmp_path, capfd):
    picture, seen = smooth(60, 40), 0
    for name, content in noted(tmp_path):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            found = open_picture(path)
        except OSError as error:
            raise AssertionError(f"{name}: {error.__cause__!r}") from error
        most = 70 if path.suffix in (".jpg", ".webp") else 120 if path.suffix == ".gif" else 0
        assert found.size == (60, 40) and np.abs(pixels(found) - pixels(picture)).max() <= most
        seen += 1
    assert seen > 40 and capfd.readouterr().err == ""


def test_a_note_does_not_take_the_place_of_the_picture(tmp_path):
    """A thumbnail in EXIF is a JPEG inside of a JPEG."""
    inside, path = io.BytesIO(), tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), "red").save(inside, "JPEG")
    smooth(60, 40).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08" + inside.getvalue())
    assert np.array_equal(pixels(open_picture(path)), pixels(before(path)))


@pytest.mark.parametrize("name, picture, options", WHOLE, ids=[name for name, *_ in WHOLE])
def test_half_a_file_is_refused_in_silence(name, picture, options, tmp_path, capfd, recwarn):
    path = tmp_path / name
    picture.save(path, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=f"{name} is not a picture that can be read, or is trunc"):
        open_picture(path)
    assert capfd.readouterr().err == "" and not list(recwarn)


def test_the_words_of_decoders_in_c_are_not_heard(tmp_path, capfd):
    picture = Image.effect_noise((99, 99), 50)
    picture.save(tmp_path / "a.tiff", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tiff").read_bytes())
    data[300:400] = bytes(range(100))
    (tmp_path / "a.tiff").write_bytes(data)
    with pytest.raises(OSError, match="not a picture"):
        open_picture(tmp_path / "a.tiff")
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "EPS", "PCX", "TGA", "SGI", "JPEG2000"])
def test_other_kinds_are_refused(kind, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", kind)
    with pytest.raises(OSError, match="not a picture that can be read"):
        open_picture(tmp_path / "a.png")


def test_a_kind_that_hides_its_size_says_what_to_do(tmp_path):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x20ftypavif" + bytes(99))
    with pytest.raises(OSError, match="a.avif is AVIF or HEIC.*save it as PNG or JPEG"):
        open_picture(tmp_path / "a.avif")


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a\nb\x1b[2J\r\x07\x7f\x85.png", r"a\nb\x1b[2J\r\x07\x7f\x85.png"),
        ("Mu\u0308ller \u2028", r"Müller \u2028"),
        ("M\udcfcller", r"M\xfcller"),
        ("\ud800", r"\ud800"),
        ("写真 📷 \u200c", "写真 📷 \u200c"),
    ],
)
def test_names_are_one_line_of_text(name, shown):
    assert printable(name) == shown
    shown.encode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_a_name_with_a_line_break_makes_no_second_line(tmp_path):
    for content in (b"no picture", b"\0\0\0\x20ftypavif"):
        (tmp_path / "a\n\x1b[2J.png").write_bytes(content)
        with pytest.raises(OSError) as refusal:
            open_picture(tmp_path / "a\n\x1b[2J.png")
        assert str(refusal.value).isprintable()
    with pytest.raises(FileNotFoundError) as refusal:
        open_picture(tmp_path / "b\n.png")
    assert str(refusal.value).isprintable()


def test_weights_with_wrong_shapes_cost_no_memory(tmp_path, monkeypatch):
    empty = {"head.weight": torch.zeros(1000, 0), "stem.0.weight": torch.zeros(1000, 0)}
    path = tmp_path / "small.safetensors"
    path.write_bytes(save(empty))
    assert path.stat().st_size < 250
    made = []

    def counted(*words, **options):
        model = resnet18(*words, **options)
        made.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr("cifar_cam_lib.training.resnet18", counted)
    with pytest.raises(OSError, match="another network"):
        load_model(path)
    assert made == ["meta"]


def test_sound_weights_are_what_they_were(tmp_path):
    torch.manual_seed(1)
    model, path = resnet18(3, 8).eval(), tmp_path / "a.safetensors"
    save_weights(model.to(memory_format=torch.channels_last), path)
    torch.manual_seed(2)
    resnet18(3, 8)
    expected = torch.rand(3)
    torch.manual_seed(2)
    loaded = load_model(path)  # draws as many numbers as before, so a new head is the same
    assert torch.equal(torch.rand(3), expected)
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.is_contiguous() and ours.requires_grad
        assert ours.dtype == torch.float32 and ours.device.type == "cpu"


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for value in (float("nan"), float("inf"), -float("inf")):
        model = resnet18(2, 2)
        with torch.no_grad():
            model.head.weight[1, 1] = value
        save_weights(model, path)
        with pytest.raises(OSError, match=r"is damaged: head.weight holds numbers that aren't"):
            load_model(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match="is not a safetensors file, or is truncated") as refusal:
        read_tensors(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\xff", b"[" * 200_000, b'{"a":' * 100_000, b"\x80abc", b"1" * 5000],
    ids=["empty", "open", "odd", "lists", "tables", "latin", "long"],
)
def test_damaged_records_are_one_line(content, tmp_path):
    path = tmp_path / "config\n.json" if os.name != "nt" else tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(OSError, match="is damaged") as refusal:
        read_json(path)
    assert str(refusal.value).isprintable()


def test_records_of_any_encoding_and_with_nan_are_read(tmp_path):
    path = tmp_path / "a.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text('{"ü": [NaN, 1]}', encoding)
        assert read_json(path)["ü"][1] == 1
    path.write_bytes(b" " * 10_000_001)
    with pytest.raises(OSError, match="expected at most 10"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(Path(tmp_path / "none.json"))


def test_a_palette_has_at_most_256_colours(tmp_path):
    smooth(9, 9).quantize(20).save(tmp_path / "a.png")
    sound = (tmp_path / "a.png").read_bytes()
    start, stop = sound.index(b"PLTE") - 4, sound.index(b"IDAT") - 4
    for colours, name in ((256, "sound.png"), (257, "long.png")):
        palette = chunk(b"PLTE", bytes(3 * colours))
        (tmp_path / name).write_bytes(sound[:start] + palette + sound[stop:])
    assert open_picture(tmp_path / "sound.png").size == (9, 9)
    with pytest.raises(OSError, match="not a picture that can be read") as refusal:
        open_picture(tmp_path / "long.png")
    assert "256 colours" in str(refusal.value.__cause__)


@pytest.mark.parametrize("code", [0xC9, 0xCA, 0xCB, 0xCD, 0xCF])
def test_arithmetic_coding_is_refused_before_it_is_decoded(code, tmp_path, nothing_decoded):
    smooth(40, 40).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content.replace(b"\xff\xc0\0\x11", bytes([255, code, 0, 17])))
    with pytest.raises(OSError, match="not a picture that can be read") as refusal:
        open_picture(tmp_path / "a.jpg")
    assert "arithmetic" in str(refusal.value.__cause__)


def test_the_opened_picture_is_gone_before_a_turn(tmp_path, monkeypatch):
    opened, shrink, transpose = [], runs.shrink, Image.Image.transpose

    def remember(picture):
        opened.append(picture)
        return shrink(picture)

    def turn(self, method):
        with pytest.raises(ValueError, match="closed"):
            _ = opened[0].im
        return transpose(self, method)

    note = Image.Exif()
    note[0x0112] = 6
    smooth(60, 40).save(tmp_path / "a.png", exif=note)
    monkeypatch.setattr(runs, "shrink", remember)
    monkeypatch.setattr(Image.Image, "transpose", turn)
    assert open_picture(tmp_path / "a.png").size == (40, 60) and opened


@pytest.mark.parametrize(
    "content",
    [
        b"P6\n" + b"#\n" * 500_000 + b"3 3 255\n" + bytes(27),
        b"P3 3 3 255\n" + b"#\n" * 1_400_000 + b"7 " * 27,
    ],
    ids=["header", "text"],
)
def test_comments_of_a_ppm_cost_little_memory(content, tmp_path):
    (tmp_path / "a.ppm").write_bytes(content)
    tracemalloc.start()
    try:
        assert open_picture(tmp_path / "a.ppm").size == (3, 3)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_comments_of_a_plain_ppm_part_its_numbers(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P3 2 1 255\n1 #a\n2#b\r\n3\n#c\n\n#d\n4 5 6 #e")
    assert pixels(open_picture(tmp_path / "a.ppm")).ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_only_packed_pieces_of_a_tiff_are_large(tmp_path, monkeypatch):
    """One strip of 16 bits, unpacked; small strips of 16 bits; and one strip, packed."""
    monkeypatch.setattr(runs, "PIECE", 20_000)
    monkeypatch.setitem(LIMITS, "PIECES", LIMITS["PIECES"]._replace(megapixels=0.001))
    deep = Image.fromarray(np.zeros((200, 300), np.uint16))
    deep.save(tmp_path / "unpacked.tiff")
    deep.save(tmp_path / "strips.tiff", compression="tiff_lzw", tiffinfo={278: 33})
    deep.save(tmp_path / "packed.tiff", compression="tiff_lzw", tiffinfo={278: 34})
    for name in ("unpacked", "strips"):
        assert open_picture(tmp_path / f"{name}.tiff").size == (300, 200)
    with pytest.raises(OSError, match="0.001 of a TIFF in large pieces"):
        open_picture(tmp_path / "packed.tiff")


def tiff_of_jpeg(content, size):
    """A grey TIFF whose one strip is a JPEG."""
    numbers = [(256, size[0]), (257, size[1]), (258, 8), (259, 7), (262, 1), (273, 122)]
    numbers += [(277, 1), (278, size[1]), (279, len(content))]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(numbers)) + rows + bytes(4) + content


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_inside_a_tiff_has_one_pass(progressive, tmp_path):
    picture, written = smooth(64, 48, "L"), io.BytesIO()
    picture.save(written, "JPEG", quality=95, progressive=progressive)
    (tmp_path / "a.tiff").write_bytes(tiff_of_jpeg(written.getvalue(), picture.size))
    if progressive:
        with pytest.raises(OSError, match="a.tiff holds a JPEG in several passes"):
            open_picture(tmp_path / "a.tiff")
    else:
        with Image.open(written) as plain:
            expected = pixels(plain.convert("RGB"))
        assert np.array_equal(pixels(open_picture(tmp_path / "a.tiff")), expected)


def test_a_big_tiff_whose_pixels_begin_too_early_keeps_them(tmp_path):
    """As Pillow 11.1 writes it: four bytes are missing where a second picture would be named."""
    pixels = np.arange(1, 25, dtype=np.uint8).reshape(4, 6)
    start = 16 + 8 + 8 * 20 + 4
    entries = [(256, 3, 6), (257, 3, 4), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 16, start), (277, 3, 1), (279, 16, 24)]
    table = b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in entries)
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries))
    (tmp_path / "a.tif").write_bytes(head + table + bytes(4) + pixels.tobytes())
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.tif").convert("L")), pixels)
