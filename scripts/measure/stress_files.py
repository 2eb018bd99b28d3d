"""Files from strangers: damaged ones of all kinds, and sound ones that cost as much as they may.

`open_mutants` damages pictures, weights and records, and gives each to `cifar-cam explain`.
`measure_limits` builds, for each kind of picture, the files that we found to cost most among those
that its limit lets pass, and gives each to the command in a process of its own.
scripts/measure/stress.py calls both.
"""

import contextlib
import io
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from cifar_cam_lib.runs import LIMITS
from cifar_cam_lib.settings import Config, record

WIDE = 2047  # the widest picture that isn't shrunk, so its memory is the dearest
SECONDS, MEGABYTES = 3, 300  # what a file may cost more than a sound PNG of 32x32
# A process of its own counts: else the peak of this one, which built the file, would count, too
COUNT = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "code": done.returncode,
    "errors": done.stderr.decode(errors="replace"),
    "seconds": used.ru_utime + used.ru_stime,
    "megabytes": used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024),
}))
"""


def png_chunk(
    name: bytes,  # four letters
    content: bytes,  # what it holds
) -> bytes:
    """A chunk of a PNG, with its checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def sound_kinds(
    picture: Image.Image,  # in RGB
) -> dict[str, tuple[Image.Image, dict]]:
    """What to save by the name of the file, and how: all kinds and modes, some with notes."""
    note, text = Image.Exif(), PngImagePlugin.PngInfo()
    note[0x0112], note[0x010E] = 6, "a note"
    text.add_text("Comment", "a text")
    text.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    alpha = picture.convert("RGBA")
    alpha.putalpha(picture.convert("L"))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    profile = random.Random(0).randbytes(500)
    notes = {"exif": note, "icc_profile": profile}
    return {
        "rgb.png": (picture, notes | {"pnginfo": text}),
        "alpha.png": (alpha, {}),
        "palette.png": (picture.quantize(16), {}),
        "deep.png": (deep, {}),
        "baseline.jpg": (picture, notes | {"comment": b"a comment"}),
        "progressive.jpg": (picture, {"progressive": True, "subsampling": 0}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "grey.jpg": (picture.convert("L"), {}),
        "lossy.webp": (picture, notes),
        "lossless.webp": (alpha, {"lossless": True}),
        "animated.webp": (picture, {"save_all": True, "append_images": [picture.rotate(180)]}),
        "one.gif": (picture.quantize(64), {"comment": b"a comment"}),
        "animated.gif": (picture, {"save_all": True, "append_images": [picture.rotate(180)]}),
        "rgb.bmp": (picture, {}),
        "grey.bmp": (picture.convert("L"), {}),
        "raw.tiff": (picture, notes),
        "lzw.tiff": (picture, {"compression": "tiff_lzw"}),
        "deflate.tiff": (deep, {"compression": "tiff_adobe_deflate"}),
        "jpeg.tiff": (picture, {"compression": "jpeg"}),
        "rgb.ppm": (picture, {}),
        "grey.pgm": (picture.convert("L"), {}),
        "bits.pbm": (picture.convert("1"), {}),
    }


def sound_pictures(
    side: int = 48,  # height in pixels; the width is a little more
) -> dict[str, bytes]:
    """A sound picture of each kind by its name, with notes in those kinds that have some."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((side + 16, side), Image.Resampling.BICUBIC)
    files = {}
    for name, (content, options) in sound_kinds(picture).items():
        kind = {"jpg": "JPEG", "tiff": "TIFF"}.get(ending := name.split(".")[1], ending.upper())
        written = io.BytesIO()
        content.save(written, "PPM" if kind in ("PGM", "PBM") else kind, **options)
        files[name] = written.getvalue()
    numbers = " ".join(map(str, np.asarray(picture).ravel()))
    files["plain.ppm"] = f"P3 {side + 16} {side} 255\n# a comment\n{numbers}\n".encode()
    return files


def mutate(
    content: bytes,  # a sound file
    others: list[bytes],  # more of them, to splice with
    chance: random.Random,  # decides
) -> bytes:
    """A damaged copy."""
    data, size = bytearray(content), len(content)
    way = chance.choice(["bits", "bits", "cut", "splice", "swap", "numbers", "grow", "zero"])
    if way == "bits":
        for _ in range(chance.choice([1, 1, 2, 8, 64])):
            data[chance.randrange(min(size, chance.choice([64, 1024, size])))] ^= (
                1 << chance.randrange(8)
            )
    elif way == "cut":
        del data[chance.randrange(size) :]
    elif way == "splice":
        other = chance.choice(others)
        data[chance.randrange(size) :] = other[chance.randrange(len(other)) :]
    elif way == "swap":  # two stretches change places, as if chunks had
        a, b, c = sorted(chance.randrange(size) for _ in range(3))
        data[a:c] = data[b:c] + data[a:b]
    elif way == "numbers":  # sizes and counts lie near the front
        layout = chance.choice(["<H", ">H", "<I", ">I"])
        place = chance.randrange(max(1, min(size, 200) - 4))
        most = 256 ** struct.calcsize(layout) - 1
        value = chance.choice([0, 1, 0x7FFF, 20_000, most // 2, most])
        struct.pack_into(layout, data, place, value) if size > place + 4 else None
    elif way == "grow":
        place = chance.randrange(size)
        data[place:place] = chance.randbytes(chance.choice([1, 10, 1000, 100_000]))
    else:
        place = chance.randrange(size)
        data[place : place + chance.choice([1, 4, 40])] = bytes(chance.choice([1, 4, 40]))
    return bytes(data)


def make_mutants(
    count: int,  # how many
    seed: int,  # fixes all of them
    files: dict[str, bytes],  # sound ones by name
) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged files, the kinds in turn."""
    chance, names, contents = random.Random(seed), list(files), list(files.values())
    for number in range(count):
        name = names[number % len(names)]
        yield f"{number:04}-{name}", mutate(files[name], contents, chance)


def sound_run(
    folder: Path,  # of a finished run
) -> dict[str, bytes]:
    """The files of a run that `explain --run` reads, by name."""
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def words_for(
    name: str,  # of a mutant
    content: bytes,  # what is in it
    folder: Path,  # an empty one
    sound: dict[str, bytes],  # of a run
) -> list[str]:
    """Write a mutant into a folder; returns the words of a command that reads it."""
    kept, picture, run = name.split("-", 1)[1], folder / "sound.png", folder / "run"
    run.mkdir()
    for file, whole in (sound | ({kept: content} if kept in sound else {})).items():
        (run / file).write_bytes(whole)
    Image.new("RGB", (32, 32)).save(picture)
    if kept not in sound:
        picture = folder / name
        picture.write_bytes(content)
    layer = ["--layers", "layer4", "--out", str(folder / "out" / "map.png")]
    return ["explain", str(picture), "--run", str(run), *layer]


def find_fault(
    code: int,  # exit code
    errors: str,  # what was written to stderr
) -> str:
    """What is wrong with an answer, or nothing."""
    lines = errors.splitlines()
    if code not in (0, 2, 3):
        return f"exit code {code}: {errors[-300:]}"
    if len(lines) != (code != 0) or not all(line.isprintable() for line in lines):
        return f"exit code {code} with {len(lines)} lines on stderr: {errors[-300:]}"
    return ""


def check_here(
    words: list[str],  # of the command
) -> tuple[int, str]:
    """Exit code and fault of the command inside this process; a raised error is a fault."""
    from cifar_cam_lib.main import cli

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = cli(words)
    except BaseException as error:  # also SystemExit: nothing may get out of `cli`
        return -1, repr(error)[:300]
    return code, find_fault(code, errors.getvalue())


def check_process(
    words: list[str],  # of the command
) -> dict:
    """Run the command in a process of its own: its code, fault, seconds of CPU, and peak in MB."""
    command = [sys.executable, "-c", COUNT, sys.executable, "-m", "cifar_cam_lib", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IN_TEST": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    row = json.loads(done.stdout)
    return row | {"fault": find_fault(row["code"], row.pop("errors"))}


def check_picture(
    path: Path,  # of a picture
) -> dict:
    """What `explain` does with a picture and the network that ships; the map goes beside it."""
    out = str(path.with_suffix(".map.png"))
    return check_process(["explain", str(path), "--layers", "layer4", "--out", out])


def open_mutants(
    count: int,  # how many
    processes: int,  # how many of them also in a process of their own, which is measured
    run_folder: Path,  # of a finished run, whose files are damaged, too
    seed: int = 0,  # fixes the mutants
) -> dict:
    """Damage files and see what the command says: its exit codes, the worst costs, the faults."""
    sound = sound_run(run_folder)
    result = {"mutants": count, "exit codes": {}, "processes": processes}
    seconds, megabytes, failed = [0.0], [0.0], []
    with tempfile.TemporaryDirectory() as name:
        small = Path(name) / "small.png"
        Image.new("RGB", (32, 32), "grey").save(small)
        mutants = make_mutants(count, seed, sound_pictures() | sound)
        for number, (mutant, content) in enumerate(mutants):
            folder = Path(name) / f"{number}"
            folder.mkdir()
            words = words_for(mutant, content, folder, sound)
            code, fault = check_here(words)
            result["exit codes"][str(code)] = result["exit codes"].get(str(code), 0) + 1
            if number < processes:
                if number % 10 == 0:  # how fast a shared machine is changes
                    base = check_process([*words[:1], str(small), *words[2:]])
                row = check_process(words)
                fault = fault or row["fault"]
                seconds.append(row["seconds"] - base["seconds"])
                megabytes.append(row["megabytes"] - base["megabytes"])
            if fault:
                failed.append(f"{mutant}: {fault}")
            shutil.rmtree(folder)
    result |= {"most CPU seconds": round(max(seconds), 1), "most MB": round(max(megabytes))}
    return result | {"failed": failed}


def noise(
    width: int,  # pixels
    height: int,  # pixels
    channels: int = 3,  # 1 for grey, 3 for RGB, 4 for RGBA
) -> Image.Image:
    """A picture that no packing makes smaller; its first 256 rows are repeated."""
    generator = np.random.default_rng(0)
    block = generator.integers(0, 256, (min(height, 256), width, channels), dtype=np.uint8)
    content = np.concatenate([block] * -(-height // len(block)))[:height]
    return Image.fromarray(content.squeeze())


def saved(
    picture: Image.Image,  # to save
    kind: str,  # Pillow's name for it
    **options,  # of Pillow
) -> bytes:
    """The picture as a file."""
    written, ImageFile.MAXBLOCK = io.BytesIO(), 2**29
    picture.save(written, kind, **options)
    return written.getvalue()


def most_rows(
    kind: str,  # a key of LIMITS
    weight: float = 0,  # bytes of a pixel in the file
    width: int = WIDE,  # pixels
) -> int:
    """How many rows a picture of a kind may have, by both its limits."""
    limit = LIMITS[kind]
    pixels = 1e6 * limit.megapixels
    if weight:
        pixels = min(pixels, (0.99e6 * limit.megabytes - 20_000) / weight)
    return int(pixels / width)


def side_of(
    kind: str,  # a key of LIMITS
    weight: float = 0,  # bytes of a pixel in the file
) -> int:
    """The side of the largest square of a kind."""
    return int(most_rows(kind, weight, 1) ** 0.5)


TURNED = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, 6)  # EXIF: held upright
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
PASSES += [(0, 1, 1, 2)]  # left, top, across and down of an interlaced PNG


def dear_png(
    width: int,  # pixels
    height: int,  # pixels
    colours: int,  # 2 for RGB, 3 for a palette, 6 for RGBA
    depth: int = 8,  # bits
    noisy: bool = False,  # noise that isn't packed, or zeros
    extra: bytes = b"",  # chunks in front of the pixels
) -> bytes:
    """A PNG whose rows are all of the slowest filter; that of 16 bits is interlaced."""
    bits, random_bytes = depth * {2: 3, 3: 1, 6: 4}[colours], random.Random(0).randbytes(2**22)
    packer, rows = zlib.compressobj(0 if noisy else 9), []
    for left, top, across, down in PASSES if depth == 16 else [(0, 0, 1, 1)]:
        length = -(-(width - left) // across) * bits // 8
        for row in range(-(-(height - top) // down)):
            start = row * 997 % 2**20
            content = random_bytes[start : start + length] if noisy else bytes(length)
            rows.append(packer.compress(b"\4" + content))
    content = b"".join([*rows, packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, depth == 16)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", content)
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def segment(
    code: int,  # of a part of a JPEG
    content: bytes,  # what it holds
) -> bytes:
    """A part of a JPEG."""
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


def progressive_start(
    width: int,  # pixels
    height: int,  # pixels
    colours: int,  # 1 to 4
    blocks: int,  # of 8 x 8 pixels, for each colour
) -> bytes:
    """Header, tables and first pass of a JPEG; one code word each for what the passes need."""
    names = range(1, colours + 1)
    frame = struct.pack(">BHHB", 8, height, width, colours)
    frame += b"".join(bytes([name, 0x11, 0]) for name in names)
    first = bytes([colours]) + b"".join(bytes([name, 0]) for name in names) + b"\0\0\1"
    parts = [
        segment(0xE1, b"Exif\0\0" + TURNED + bytes(4)),
        segment(0xDB, bytes([0] + [1] * 64)),
        segment(0xC2, frame),
        segment(0xC4, bytes([0, 1] + [0] * 15 + [0])),  # 0: no change
        segment(0xC4, bytes([16, 1, 1] + [0] * 14 + [0x01, 0xE0])),  # 0: a one; 10: 16,384 blocks
        segment(0xDA, first) + bytes(blocks * colours // 8 + 1),
    ]
    return b"\xff\xd8" + b"".join(parts)


def dear_progressive(
    width: int,  # pixels
    height: int,  # pixels
    colours: int,  # 3, or 4 for CMYK
    megabytes: float,  # of the file, at most
) -> bytes:
    """A JPEG of up to 24 passes; most of them correct each number of one colour by a bit."""
    blocks = -(-width // 8) * -(-height // 8)
    chance = np.random.default_rng(0)
    ones = chance.integers(0, 256, blocks * 126 // 8 + 1, dtype=np.uint8) & 0b01010101
    parts = [progressive_start(width, height, colours, blocks)]
    parts.append(segment(0xDA, bytes([1, 1, 0, 1, 63, 2])) + ones.tobytes())
    corrections = b"".join(  # no byte of 255, which would be a marker
        b"\x80\0" + chance.integers(0, 255, 16384 * 63 // 8, dtype=np.uint8).tobytes()
        for _ in range(-(-blocks // 16384))
    )
    again = segment(0xDA, bytes([1, 1, 0, 1, 63, 0x21])) + corrections
    fitting = int((1e6 * megabytes - sum(map(len, parts))) / len(again))
    return b"".join(parts + [again] * min(22, fitting)) + b"\xff\xd9"


def packed(
    size: int,  # bytes
    packing: int,  # 8 or 34925, see `dear_tiff`
    noisy: bool,  # noise that isn't packed, or zeros
) -> bytes:
    """Noise or zeros as Deflate or LZMA has them."""
    content = random.Random(0).randbytes(size) if noisy else bytes(size)
    if packing == 8:
        return zlib.compress(content, 0 if noisy else 9)
    if not noisy:
        words = {"id": lzma.FILTER_LZMA2, "dict_size": 2**27, "mode": lzma.MODE_FAST, "depth": 1}
        words |= {"nice_len": 32, "mf": lzma.MF_HC3}
        return lzma.compress(content, lzma.FORMAT_XZ, filters=[words])
    flags, block = b"\0\0", bytes([2, 0, 0x21, 1, 30, 0, 0, 0])  # 30: remembers 128 MB
    start = b"\xfd7zXZ\0" + flags + struct.pack("<I", zlib.crc32(flags))
    parts = [start, block, struct.pack("<I", zlib.crc32(block))]
    for place in range(0, size, 2**16):
        part = content[place : place + 2**16]
        parts.append(struct.pack(">BH", 2 if place else 1, len(part) - 1) + part)
    return b"".join([*parts, b"\0"])  # no end, which nobody reads


def dear_tiff(
    width: int,  # pixels
    height: int,  # pixels
    depth: int,  # bits
    packing: int,  # 8 for Deflate, 34925 for LZMA, which keeps all that it has unpacked
    noisy: bool = False,  # noise, or zeros
    rows: int | None = None,  # in a strip; None for all in one
) -> bytes:
    """A TIFF of RGBA."""
    rows = rows or height
    strip, count = packed(4 * width * rows * depth // 8, packing, noisy), -(-height // rows)
    numbers = [(256, width), (257, height), (258, None), (259, packing), (262, 2), (273, None)]
    numbers += [(274, 6), (277, 4), (278, rows), (279, None), (338, 2)]
    place = 8 + 2 + 12 * len(numbers) + 4  # of the lists
    start = place + 8 + 8 * count
    lists = struct.pack("<4H", *[depth] * 4) + struct.pack(f"<{count}I", *[start] * count)
    lists += struct.pack(f"<{count}I", *[len(strip)] * count)  # each strip is the same one
    table = struct.pack("<H", len(numbers))
    for tag, value in numbers:
        if tag == 258:
            table += struct.pack("<HHII", tag, 3, 4, place)
        elif value is not None or count == 1:
            single = {273: start, 279: len(strip)}.get(tag, value)
            table += struct.pack("<HHII", tag, 4, 1, single)
        else:
            where = place + 8 + (4 * count if tag == 279 else 0)
            table += struct.pack("<HHII", tag, 4, count, where)
    return b"II*\0\x08\0\0\0" + table + bytes(4) + lists + strip


def dear_bmp(
    width: int,  # pixels
    height: int,  # pixels
    bits: int,  # 24 or 32; 8 for run lengths of one pixel each
) -> bytes:
    """A BMP."""
    palette = bytes(1024 if bits == 8 else 0)
    if bits == 8:
        content = (bytes([1, 7]) * width + b"\0\0") * height + b"\0\1"
    else:
        content = bytes([7]) * ((width * bits + 31) // 32 * 4 * height)
    start = 54 + len(palette)
    numbers = (40, width, height, 1, bits, bits == 8, len(content), 0, 0, len(palette) // 4, 0)
    header = struct.pack("<IHHI", start + len(content), 0, 0, start)
    header += struct.pack("<IiiHHIIiiII", *numbers)
    return b"BM" + header + palette + content


def many_frames(
    side: int,  # pixels
    megabytes: float,  # of the file
) -> bytes:
    """An animated WebP: a large image of noise, then as many of a single pixel as fit."""
    first = saved(noise(side, side, 4), "WEBP", quality=30, method=0)[30:]
    tiny = saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]

    def frame(width, content):
        numbers = struct.pack("<I", width - 1)[:3] * 2
        content = bytes(6) + numbers + b"\x0a\0\0\0" + content
        return b"ANMF" + struct.pack("<I", len(content)) + content

    header = b"VP8X" + struct.pack("<II", 10, 0x12) + struct.pack("<I", side - 1)[:3] * 2
    content = b"WEBP" + header + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame(side, first)
    content += frame(1, tiny) * int((1e6 * megabytes - len(content)) / len(frame(1, tiny)))
    return b"RIFF" + struct.pack("<I", len(content)) + content


Build = tuple[str, str, str, Callable[[], bytes]]  # kind, construction, ending, what makes the file


def dear_pngs() -> list[Build]:
    """The dearest PNGs."""
    turned = png_chunk(b"eXIf", TURNED + bytes(4))
    see_through = png_chunk(b"PLTE", bytes(768)) + png_chunk(b"tRNS", bytes(range(256)))
    narrow, deep = most_rows("PNG"), most_rows("DEEP")
    noisy, clear, dark = side_of("PNG", 3.01), side_of("PNG", 1.01), side_of("DEEP", 8.01)
    return [
        ("PNG", "RGBA, narrow", "png", lambda: dear_png(WIDE, narrow, 6, extra=turned)),
        ("PNG", "RGB, noise", "png", lambda: dear_png(noisy, noisy, 2, noisy=True)),
        (
            "PNG",
            "palette with transparency",
            "png",
            lambda: dear_png(clear, clear, 3, noisy=True, extra=see_through),
        ),
        ("DEEP", "RGBA, narrow", "png", lambda: dear_png(WIDE, deep, 6, 16, extra=turned)),
        ("DEEP", "RGBA, noise", "png", lambda: dear_png(dark, dark, 6, 16, noisy=True)),
    ]


def dear_jpegs() -> list[Build]:
    """The dearest JPEGs."""
    large, noisy = side_of("JPEG", 0.36), side_of("JPEG", 4.2)
    narrow, tall, double = most_rows("NARROW"), most_rows("PROGRESSIVE"), 2 * WIDE + 1
    square, megabytes = side_of("PROGRESSIVE"), 0.995 * LIMITS["PROGRESSIVE"].megabytes

    def cmyk(width, rows):
        return saved(Image.new("CMYK", (width, rows), "red"), "JPEG")

    return [
        ("JPEG", "large", "jpg", lambda: saved(noise(large, large), "JPEG", quality=30)),
        (
            "JPEG",
            "quality 100",
            "jpg",
            lambda: saved(noise(noisy, noisy), "JPEG", quality=100, subsampling=0),
        ),
        ("JPEG", "CMYK", "jpg", lambda: cmyk(double, most_rows("JPEG", 0, double))),
        ("NARROW", "CMYK", "jpg", lambda: cmyk(WIDE, narrow)),
        ("PROGRESSIVE", "CMYK", "jpg", lambda: dear_progressive(WIDE, tall, 4, megabytes)),
        ("PROGRESSIVE", "RGB", "jpg", lambda: dear_progressive(square, square, 3, megabytes)),
    ]


def dear_others() -> list[Build]:
    """The dearest WebPs, GIFs and BMPs."""
    webp, lossless, quality = side_of("WEBP", 1.81), side_of("WEBP", 3.02), {"quality": 88}
    frames, smooth = 0.995 * LIMITS["WEBP"].megabytes, noise(60, 60, 4)
    gif, rows, bmp = side_of("GIF", 1.4), most_rows("GIF"), most_rows("BMP", 4)
    still = {"lossless": True, "quality": 0, "method": 0}
    return [
        (
            "WEBP",
            "noise with alpha",
            "webp",
            lambda: saved(noise(webp, webp, 4), "WEBP", method=0, **quality),
        ),
        (
            "WEBP",
            "lossless, noise",
            "webp",
            lambda: saved(noise(lossless, lossless), "WEBP", **still),
        ),
        (
            "WEBP",
            "lossless, smooth",
            "webp",
            lambda: saved(smooth.resize((side_of("WEBP"),) * 2), "WEBP", **still | {"quality": 20}),
        ),
        ("WEBP", "many frames", "webp", lambda: many_frames(int(0.9 * webp), frames)),
        ("GIF", "noise", "gif", lambda: saved(noise(gif, gif, 1), "GIF", transparency=0)),
        (
            "GIF",
            "narrow",
            "gif",
            lambda: saved(Image.new("P", (WIDE, rows)), "GIF", transparency=0),
        ),
        ("BMP", "32 bits", "bmp", lambda: dear_bmp(WIDE, bmp, 32)),
        ("SLOW", "run lengths", "bmp", lambda: dear_bmp(*[side_of("SLOW")] * 2, 8)),
    ]


def dear_tiffs() -> list[Build]:
    """The dearest TIFFs."""
    square, noisy, tall = side_of("TIFF", 3.3), side_of("TIFF", 4.2), most_rows("TIFF")
    deep, flat = most_rows("PIECES", 8.1), most_rows("PIECES", 4.1)
    large = most_rows("PIECES")

    def strips():
        picture = noise(WIDE, most_rows("TIFF", 4.1), 4)
        return saved(picture, "TIFF", compression="raw", tiffinfo={274: 6})

    return [
        (
            "TIFF",
            "JPEG inside",
            "tif",
            lambda: saved(noise(square, square), "TIFF", compression="jpeg", quality=95),
        ),
        (
            "TIFF",
            "LZW, noise",
            "tif",
            lambda: saved(noise(noisy, noisy), "TIFF", compression="tiff_lzw"),
        ),
        ("TIFF", "unpacked", "tif", strips),
        ("TIFF", "LZMA, zeros", "tif", lambda: dear_tiff(WIDE, tall, 8, 34925, rows=1950)),
        ("TIFF", "16 bits, zeros", "tif", lambda: dear_tiff(WIDE, tall, 16, 34925, rows=970)),
        ("PIECES", "LZMA, zeros", "tif", lambda: dear_tiff(WIDE, large, 16, 34925)),
        ("PIECES", "LZMA, noise", "tif", lambda: dear_tiff(WIDE, deep, 16, 34925, True)),
        ("PIECES", "Deflate, noise", "tif", lambda: dear_tiff(WIDE, deep, 16, 8, True)),
        ("PIECES", "of 8 bits", "tif", lambda: dear_tiff(WIDE, flat, 8, 34925, True)),
    ]


def dear_ppms() -> list[Build]:
    """The dearest PBMs, PGMs and PPMs."""
    rows, slow, lines = most_rows("PPM", 3), side_of("SLOW"), LIMITS["SLOW"].megabytes * 490_000
    fewer = most_rows("PPM", 3) - 200
    header = f"{slow} {slow}".encode()
    plain = min(slow**2, int(lines * 2 / 12))
    return [
        ("PPM", "narrow", "ppm", lambda: b"P6 2047 %d 255\n" % rows + bytes(3 * WIDE * rows)),
        (
            "PPM",
            "comments",
            "ppm",
            lambda: b"P6\n" + b"#\n" * 524_000 + b"2047 %d 255\n" % fewer + bytes(3 * WIDE * fewer),
        ),
        (
            "SLOW",
            "1,023 values",
            "ppm",
            lambda: b"P6 " + header + b" 1023\n" + bytes(6 * slow**2),
        ),
        (
            "SLOW",
            "text",
            "ppm",
            lambda: b"P3 500 %d 65535\n" % (plain // 500) + b"777 " * (3 * plain),
        ),
        (
            "SLOW",
            "comments",
            "ppm",
            lambda: b"P3 9 9 255\n" + b"#\n" * int(lines) + b"7 " * 243,
        ),
    ]


def above_limits(
    folder: Path,  # an empty one
) -> list[tuple[str, list[str]]]:
    """Small files that would cost gigabytes, and the words of a command that reads each."""
    picture, run = folder / "large.png", folder / "run"
    Image.new("1", (13_300, 13_300)).save(picture, optimize=True)
    run.mkdir()
    (run / "config.json").write_text(json.dumps(record(Config())))
    tensor = {"dtype": "F32", "shape": [1000, 0], "data_offsets": [0, 0]}
    header = json.dumps({"head.weight": tensor, "stem.0.weight": tensor}, separators=(",", ":"))
    weights = struct.pack("<Q", len(header)) + header.encode()
    (run / "model.safetensors").write_bytes(weights)
    Image.new("RGB", (32, 32)).save(folder / "sound.png")
    words = ["--layers", "layer4", "--out", str(folder / "out.png")]
    size = picture.stat().st_size
    return [
        (f"13,300 x 13,300 PNG of {size:,} bytes", ["explain", str(picture), *words]),
        (
            f"weights of {len(weights)} bytes, shapes [1000, 0]",
            ["explain", str(folder / "sound.png"), "--run", str(run), *words],
        ),
    ]


def row_of(
    kind: str,  # a key of LIMITS, or "above"
    construction: str,  # in words
    size: tuple[float, float],  # megapixels and megabytes
    found: dict,  # of `check_process`
    base: dict,  # of a sound small PNG
) -> dict:
    """A row of `measure_limits`."""
    return {
        "kind": kind,
        "construction": construction,
        "megapixels": round(size[0], 2),
        "megabytes": round(size[1], 3),
        "exit code": found["code"],
        "extra seconds": round(found["seconds"] - base["seconds"], 1),
        "extra MB": round(found["megabytes"] - base["megabytes"]),
        "fault": found["fault"],
    }


def megapixels_of(
    path: Path,  # a sound picture of any size
) -> float:
    """Its size by Pillow."""
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    with Image.open(path) as picture:
        Image.MAX_IMAGE_PIXELS = most
        return picture.width * picture.height / 1e6


def fails(
    row: dict,  # of `row_of`
    code: int,  # the exit code that it should have
) -> bool:
    """Whether a file cost too much, or had another answer than expected."""
    dear = row["extra seconds"] > SECONDS or row["extra MB"] > MEGABYTES
    return bool(dear or row["fault"] or row["exit code"] != code)


def measure_limits() -> dict:
    """What the dearest pictures that pass cost more than a small one, and two that must not pass.

    A cost is the smaller of two if the first is near what is allowed.
    """
    rows, bases = [], []
    builds = dear_pngs() + dear_jpegs() + dear_others() + dear_tiffs() + dear_ppms()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "small.png"
        Image.new("RGB", (32, 32), "grey").save(small)
        for number, (kind, construction, ending, build) in enumerate(builds):
            path = folder / f"{number}.{ending}"
            path.write_bytes(build())
            if number % 4 == 0:  # how fast a shared machine is changes
                bases.append(check_picture(small))
                base = {key: min(b[key] for b in bases[-2:]) for key in ("seconds", "megabytes")}
            size, found = (megapixels_of(path), path.stat().st_size / 1e6), check_picture(path)
            if found["seconds"] - base["seconds"] > 0.9 * SECONDS:
                found = min(found, check_picture(path), key=lambda one: one["seconds"])
            rows.append(row_of(kind, construction, size, found, base))
            path.unlink()
        failed = [row for row in rows if fails(row, 0)]
        for construction, words in above_limits(folder):
            rows.append(row_of("above", construction, (0, 0), check_process(words), base))
            failed += [row for row in rows[-1:] if fails(row, 3)]
    return {"allowed": {"seconds": SECONDS, "MB": MEGABYTES}, "files": rows, "failed": failed}
