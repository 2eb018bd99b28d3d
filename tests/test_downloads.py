"""Thirty kinds of answer, kills, mirrors and archives put there by hand, all on this machine."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from cifar_cam_lib import runs

CONTENT = bytes((number * number // 7) % 251 for number in range(300_000))
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
SIZE, FOLDER = len(CONTENT), runs.CIFAR10_FOLDER


def reply(request, status=200, body=b"", **headers):
    """Send an answer; `length` is its Content-Length, None for none, else that of the body."""
    length = headers.pop("length", len(body))
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.end_headers()
    request.wfile.write(body)


def offset_of(request) -> int:
    return int(request.headers.get("Range", "bytes=0-")[6:-1])


def serve_from(request, content, most=None, **headers):
    """What the Range asks for, as a good server does; it hangs up after `most` bytes."""
    start, whole = offset_of(request), len(content)
    if start >= whole:
        return reply(request, 416, Content_Range=f"bytes */{whole}")
    if start:
        headers["Content_Range"] = f"bytes {start}-{whole - 1}/{whole}"
    body = content[start : None if most is None else start + most]
    return reply(request, 206 if start else 200, body, length=whole - start, **headers)


def without_length(request, content):
    reply(request, body=content, length=None)


def dropped_without_length(request, content):
    if offset_of(request):
        return serve_from(request, content)
    return reply(request, body=content[:100_000], length=None)


def range_ignored(request, content):
    first = len(request.server.asked) == 1
    reply(request, body=content[: 100_000 if first else None], length=len(content))


def range_refused(request, content):
    if len(request.server.asked) == 1:
        serve_from(request, content, most=100_000)
    elif offset_of(request):
        reply(request, 416)
    else:
        serve_from(request, content)


def wrong_range(request, content):
    if offset_of(request):
        return reply(request, 206, content, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}")
    return serve_from(request, content, most=100_000 if len(request.server.asked) == 1 else None)


def stalls(request, content):
    reply(request, body=content[:1000], length=len(content))
    request.server.closing.wait(20)


def drips(request, content):
    reply(request, length=len(content))
    for place in range(len(content)):
        request.wfile.write(content[place : place + 1])
        if request.server.closing.wait(0.01):
            return


def stalls_then_good(request, content):
    (stalls if len(request.server.asked) == 1 else serve_from)(request, content)


def chunked(request, content):
    reply(request, length=None, Transfer_Encoding="chunked")
    for place in range(0, len(content), 50_000):
        piece = content[place : place + 50_000]
        request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    request.wfile.write(b"0\r\n\r\n")


def broken_chunks(request, content):
    reply(request, length=None, Transfer_Encoding="chunked")
    request.wfile.write(b"3e8\r\n" + content[:1000] + b"\r\nno number\r\n")


def captive_portal(request, content):
    page = b"<html>Welcome to the hotel</html>"
    reply(request, body=page, length=None, Content_Type="text/html; charset=utf-8")


def another_version(request, content):
    serve_from(request, content[::-1])


def damaged_when_resumed(request, content):
    first = len(request.server.asked) == 1
    other = content[::-1] if offset_of(request) else content
    serve_from(request, other, most=100_000 if first else None)


def too_short(request, content):
    serve_from(request, content[:200_000])


def too_short_without_length(request, content):
    reply(request, body=content[:200_000], length=None)


def too_long(request, content):
    serve_from(request, content + bytes(5000))


def endless(request, content):
    reply(request, length=None)
    while not request.server.closing.is_set():
        request.wfile.write(content)


def busy_then_good(request, content):
    if len(request.server.asked) < 3:
        return reply(request, 503, b"busy", Retry_After="1")
    return serve_from(request, content)


def busy(request, content):
    reply(request, 503, b"busy", Retry_After="100000000000000000000000")


def not_found(request, content):
    reply(request, 404, b"no\x1b[31m such file")


def redirect(request, content):
    if request.path.endswith("/there"):
        return serve_from(request, content)
    return reply(request, 302, Location=request.path + "/there")


def redirect_loop(request, content):
    reply(request, 302, Location=request.path)


def redirect_to_a_file(request, content):
    reply(request, 302, Location="file:///etc/passwd")


def zipped_again(request, content):
    reply(request, body=gzip.compress(content), Content_Encoding="gzip")


def called_zipped(request, content):
    """As old servers call each .tar.gz: the bytes are right as they are."""
    reply(request, body=content, Content_Encoding="gzip")


def zips_on_request(request, content):
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return zipped_again(request, content)
    return serve_from(request, content)


def garbage(request, content):
    request.wfile.write(b"\x00\xff SSH-2.0-OpenSSH\x1b[31m\r\n\r\n" * 3)


def closed_at_once(request, content):
    pass


def dropped(request, content):
    serve_from(request, content, most=100_000)


GOOD = {  # kinds of answer after which the file must be there
    "whole": serve_from,
    "without length": without_length,
    "dropped": dropped,
    "dropped without length": dropped_without_length,
    "range ignored": range_ignored,
    "range refused": range_refused,
    "wrong range": wrong_range,
    "stalls, then good": stalls_then_good,
    "chunked": chunked,
    "damaged when resumed": damaged_when_resumed,
    "busy, then good": busy_then_good,
    "redirect": redirect,
    "called zipped": called_zipped,
    "zips on request": zips_on_request,
}
BAD = {  # kinds of answer after which one line must say why, here as a pattern
    "stalls": (stalls, "Read timed out"),
    "drips": (drips, "less than 65,536 bytes came in"),
    "broken chunks": (broken_chunks, "IncompleteRead"),
    "captive portal": (captive_portal, "a web page came in its place"),
    "another version": (another_version, "was damaged on the way, or is newer"),
    "too short": (too_short, "the file there has 200,000 bytes, expected 300,000"),
    "too short without length": (too_short_without_length, "broke off after 200,000 of 300,000"),
    "too long": (too_long, "the file there has 305,000 bytes"),
    "endless": (endless, "more came than the expected 300,000 bytes"),
    "busy": (busy, "the server answers 503, try again later"),
    "not found": (not_found, "the server answers 404"),
    "redirect loop": (redirect_loop, "Exceeded 30 redirects"),
    "redirect to a file": (redirect_to_a_file, "No connection adapters"),
    "zipped again": (zipped_again, "the file there has [0-9,]+ bytes, expected 300,000"),
    "garbage": (garbage, "BadStatusLine"),
    "closed at once": (closed_at_once, "closed connection without response"),
}
ANSWERS = GOOD | {name: handler for name, (handler, _) in BAD.items()}  # each (request, content)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers in the way that the first part of the path names, such as /too%20long/file."""

    def do_GET(self):  # noqa: N802
        self.server.asked.append(self.headers.get("Range", ""))
        name = self.path.split("/")[1].replace("%20", " ").replace("%2C", ",")
        with contextlib.suppress(OSError):  # the other side may have hung up
            ANSWERS[name](self, self.server.content)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """On a free port of this machine; `asked` holds the Range of each request."""

    daemon_threads = block_on_close = True

    def __init__(self, content: bytes = CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.closing = content, [], threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def address(self, name: str) -> str:
        """Where it answers in this way."""
        quoted = name.replace(" ", "%20").replace(",", "%2C")
        return f"http://127.0.0.1:{self.server_port}/{quoted}/file"

    def handle_error(self, request, client_address):
        pass

    def stop(self):
        self.closing.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Downloads are allowed, and nobody waits long."""
    for name in ("IN_TEST", "CIFAR_CAM_MIRROR", "no_proxy", "NO_PROXY", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runs, "PAUSE", 0.001)
    monkeypatch.setattr(runs, "LONGEST_PAUSE", 0.002)


def impatient(name):
    """Short times for a server that would never end, and the usual ones for all others."""
    silence = {"stalls": 0.05, "stalls, then good": 0.5}.get(name, 30)
    slowest = 0.05 if name == "drips" else 60
    return mock.patch.multiple(runs, TIMEOUT=(10, silence), SLOWEST=slowest)


def fetch(server, name, path):
    with impatient(name):
        return runs.fetch("the file is not here", server.address(name), path, DIGEST, SIZE)


@pytest.mark.parametrize("name", GOOD)
def test_an_answer_that_can_be_used_is_used(server, tmp_path, name):
    path = fetch(server, name, tmp_path / "new" / "file")
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_cannot_be_used_is_one_line(server, tmp_path, name):
    _, pattern = BAD[name]
    with pytest.raises(FileNotFoundError, match=pattern) as caught:
        fetch(server, name, tmp_path / "file")
    message = str(caught.value)
    assert message.startswith("the file is not here, and can't be fetched from http://127.0.0.1")
    assert message.isprintable() and len(message) < 400 + len(str(tmp_path))
    assert not (tmp_path / "file").exists()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= SIZE + runs.SIZE_TOLERANCE
    # What can't go better next time isn't asked again
    again = {"stalls", "drips", "broken chunks", "busy", "garbage", "closed at once"}
    again |= {"too short without length", "redirect loop"}
    assert (len(server.asked) > 1) == (name in again)


@pytest.mark.parametrize("name", BAD)
def test_after_a_bad_answer_a_good_one_helps(server, tmp_path, name):
    with pytest.raises(FileNotFoundError):
        fetch(server, name, tmp_path / "file")
    assert fetch(server, "whole", tmp_path / "file").read_bytes() == CONTENT


def test_there_are_enough_kinds():
    assert len(ANSWERS) >= 18


def test_a_break_is_continued_where_it_was(server, tmp_path):
    fetch(server, "dropped", tmp_path / "file")
    assert server.asked == ["", "bytes=100000-", "bytes=200000-"]


def test_a_part_of_an_earlier_process_is_continued(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:250_000])
    fetch(server, "whole", tmp_path / "file")
    assert server.asked == ["bytes=250000-"]


@pytest.mark.parametrize(
    "part, asked",
    [
        (CONTENT, []),  # whole: killed before it got its name
        (b"x" * 1000 + CONTENT[1000:250_000], ["bytes=250000-", ""]),  # damaged
        (CONTENT + b"x" * 500, ["bytes=300500-", ""]),  # longer than the file: 416
        (CONTENT * 2, [""]),  # far longer
        (b"", [""]),
    ],
    ids=["whole", "damaged", "longer", "twice", "empty"],
)
def test_any_part_leads_to_the_file(server, tmp_path, part, asked):
    (tmp_path / "file.part").write_bytes(part)
    assert fetch(server, "whole", tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == asked and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["captive portal", "not found", "busy", "too long", "garbage"])
def test_a_bad_answer_does_not_cost_the_part(server, tmp_path, name):
    (tmp_path / "file.part").write_bytes(CONTENT[:250_000])
    with pytest.raises(FileNotFoundError):
        fetch(server, name, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:250_000]


def test_an_endless_answer_is_cut_off(server, tmp_path):
    with pytest.raises(FileNotFoundError):
        fetch(server, "endless", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["file.lock"])


def test_a_file_that_is_there_is_not_fetched_and_a_damaged_one_is(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fetch(server, "not found", path)
    assert server.asked == []
    path.write_bytes(CONTENT[:-1])
    assert fetch(server, "whole", path).read_bytes() == CONTENT


def test_a_busy_server_says_how_long_to_wait(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(runs.time, "sleep", slept.append)
    monkeypatch.setattr(runs, "PAUSE", 0.25)
    monkeypatch.setattr(runs, "LONGEST_PAUSE", 30)
    fetch(server, "busy, then good", tmp_path / "file")
    assert slept == [1, 1]
    slept.clear()
    with pytest.raises(FileNotFoundError):
        fetch(server, "busy", tmp_path / "other")
    assert slept == [30, 30, 30]
    slept.clear()
    with pytest.raises(FileNotFoundError):
        fetch(server, "closed at once", tmp_path / "other")
    assert slept == [0.5, 1, 2]


def test_a_line_that_drops_often_gets_as_many_tries_as_it_needs(server, tmp_path, monkeypatch):
    def four_per_cent(request, content):
        serve_from(request, content, most=12_000)

    monkeypatch.setitem(ANSWERS, "four", four_per_cent)
    fetch(server, "four", tmp_path / "file")
    assert len(server.asked) == 25 > runs.TRIES


@pytest.mark.parametrize(
    "address, pattern",
    [
        ("http://127.0.0.1:1/file", "Connection refused"),
        ("http://127.0.0.1:99999/file", "Failed to parse|Invalid URL"),
        ("http://[::1/file", "Failed to parse|Invalid"),
        ("http:///file", "No host supplied"),
        ("ftp://127.0.0.1/file", "No connection adapters"),
        ("mirror.example/file", "No scheme supplied"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(tmp_path, address, pattern):
    with pytest.raises(FileNotFoundError, match=pattern) as caught:
        runs.fetch("it is not here", address, tmp_path / "file", DIGEST, SIZE)
    assert str(caught.value).isprintable()


def test_a_server_without_tls_is_one_line(server, tmp_path):
    address = server.address("whole").replace("http:", "https:")
    with pytest.raises(FileNotFoundError, match="SSL"):
        runs.fetch("it is not here", address, tmp_path / "file", DIGEST, SIZE)


@pytest.mark.parametrize(
    "proxy", ["127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:port", "socks9://x"]
)
def test_a_wrong_proxy_is_one_line(server, tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy if "//" in proxy else f"http://{proxy}")
    with pytest.raises(FileNotFoundError, match="can't be fetched") as caught:
        fetch(server, "whole", tmp_path / "file")
    assert str(caught.value).isprintable() and server.asked == []


def test_a_full_disk_is_one_line_and_keeps_the_part(server, tmp_path):
    """A file of Linux that is always full takes the place of the part."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(FileNotFoundError, match="No space left on device"):
        fetch(server, "whole", tmp_path / "file")
    assert len(server.asked) == 1  # no second try: it isn't the network's fault


def test_in_a_test_and_without_a_home_nothing_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no home folder to keep it in: set TORCH_HOME"):
        fetch(server, "whole", Path("~/.cache/file"))
    monkeypatch.setenv("IN_TEST", "1")
    with pytest.raises(FileNotFoundError, match="a test does not download"):
        fetch(server, "whole", tmp_path / "new" / "file")
    assert server.asked == [] and os.listdir(tmp_path) == []


def refuse(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="taken can't be written to"):
        fetch(server, "whole", tmp_path / "taken" / "file")
    monkeypatch.setattr(os, "open", refuse)  # as the lock, on a read-only disk
    with pytest.raises(FileNotFoundError, match=r"can't be written to \(Permission denied\)"):
        fetch(server, "whole", tmp_path / "file")
    assert server.asked == []


@pytest.mark.parametrize("live, switched_off, shown", [(1, 0, 1), (0, 0, 0), (1, 1, 0)])
def test_the_bar_is_for_terminals(server, tmp_path, monkeypatch, live, switched_off, shown):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if switched_off:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    said = io.StringIO()
    said.isatty = lambda: bool(live)
    monkeypatch.setattr(sys, "stderr", said)
    fetch(server, "whole", tmp_path / "file")
    assert said.getvalue().startswith("Fetching http://127.0.0.1")
    assert ("%|" in said.getvalue()) == bool(shown)


# CIFAR-10


def make_archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None):
    """A tar.gz of these files and symbolic links; its digest."""
    with tarfile.open(path, "w:gz") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return "md5:" + hashlib.md5(path.read_bytes()).hexdigest()


FILES = {name: random.Random(name).randbytes(50_000) for name in runs.CIFAR10_MD5}
INSIDE = {f"{FOLDER}/{name}": content for name, content in FILES.items()}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small CIFAR-10: the path of its archive, which is not in the data folder."""
    archive = tmp_path / "small.tar.gz"
    digest = make_archive(archive, INSIDE | {f"{FOLDER}/readme.html": b"by Alex Krizhevsky"})
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(runs, "CIFAR10_MD5", md5)
    monkeypatch.setattr(runs, "CIFAR10_DIGEST", digest)
    monkeypatch.setattr(runs, "CIFAR10_SIZE", archive.stat().st_size)
    return archive


@pytest.fixture
def toronto(small, monkeypatch):
    server = Server(small.read_bytes())
    monkeypatch.setattr(runs, "CIFAR10_ADDRESS", server.address("whole"))
    yield server
    server.stop()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_cifar10_is_fetched_unpacked_and_tidied_up(toronto, root):
    folder = runs.have_cifar10(root)
    assert folder == root / FOLDER and os.listdir(root) == [FOLDER]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert runs.verify_cifar10(root) == (
        f"CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in {folder}, 7 files, "
        "0 MB, each with its published md5"
    )
    runs.have_cifar10(root)
    assert len(toronto.asked) == 1


def test_the_digests_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10

    listed = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert listed | {CIFAR10.meta["filename"]: CIFAR10.meta["md5"]} == runs.CIFAR10_MD5
    assert f"md5:{CIFAR10.tgz_md5}" == runs.CIFAR10_DIGEST
    assert CIFAR10.url == runs.CIFAR10_ADDRESS and CIFAR10.base_folder == FOLDER
    assert CIFAR10.filename == runs.CIFAR10_ARCHIVE


def test_without_download_it_is_only_looked_for(toronto, root, monkeypatch):
    message = f"^CIFAR-10 is not in the data folder {root}$"
    with pytest.raises(FileNotFoundError, match=message):
        runs.have_cifar10(root, download=False)
    monkeypatch.setenv("IN_TEST", "1")
    with pytest.raises(FileNotFoundError, match=message):
        runs.have_cifar10(root)
    assert toronto.asked == [] and not root.exists()


def test_a_mirror_is_asked_instead(toronto, small, root, monkeypatch):
    mirror = Server(small.read_bytes())
    monkeypatch.setenv("CIFAR_CAM_MIRROR", mirror.address("whole"))
    runs.have_cifar10(root)
    assert (len(mirror.asked), len(toronto.asked)) == (1, 0)
    shutil.rmtree(root)
    runs.have_cifar10(root, mirror=toronto.address("dropped"))  # the argument wins
    assert len(mirror.asked) == 1 and len(toronto.asked) >= 1
    mirror.stop()
    shutil.rmtree(root)
    monkeypatch.setenv("CIFAR_CAM_MIRROR", "mirror.example/cifar")
    with pytest.raises(ValueError, match="mirror is mirror.example/cifar, expected an address"):
        runs.have_cifar10(root)
    assert not root.exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_instead_of_the_archive_unpacks_nothing(toronto, root, name):
    absent = pytest.raises(FileNotFoundError, match="CIFAR-10 is not in the data folder .* fetched")
    with absent, impatient(name):
        runs.have_cifar10(root, mirror=toronto.address(name))
    assert not (root / FOLDER).exists()
    runs.have_cifar10(root)
    assert os.listdir(root) == [FOLDER]


def test_an_archive_put_there_by_hand_is_used_and_kept(toronto, small, root, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    root.mkdir()
    shutil.copy(small, root / runs.CIFAR10_ARCHIVE)
    runs.have_cifar10(root, download=False)
    runs.verify_cifar10(root)
    assert sorted(os.listdir(root)) == sorted([FOLDER, runs.CIFAR10_ARCHIVE])
    assert toronto.asked == []


def test_a_damaged_archive_put_there_by_hand_is_named_and_kept(toronto, small, root):
    root.mkdir()
    damaged = small.read_bytes()[:-100]
    (root / runs.CIFAR10_ARCHIVE).write_bytes(damaged)
    with pytest.raises(
        OSError, match="is truncated or altered .*: continue its download"
    ) as caught:
        runs.have_cifar10(root)
    assert not isinstance(caught.value, FileNotFoundError)  # damaged isn't absent
    assert (root / runs.CIFAR10_ARCHIVE).read_bytes() == damaged
    assert toronto.asked == [] and not (root / FOLDER).exists()


def test_a_read_only_folder_that_has_it_is_not_written(toronto, root, monkeypatch):
    runs.have_cifar10(root)
    for name in ("open", "mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert runs.have_cifar10(root) == root / FOLDER
    runs.verify_cifar10(root)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_read_only_folder_without_it_is_one_line(toronto, small, root, monkeypatch, by_hand):
    root.mkdir()
    if by_hand:
        shutil.copy(small, root / runs.CIFAR10_ARCHIVE)
    monkeypatch.setattr(os, "open", refuse)
    message = rf"^CIFAR-10 is not in .*, and the folder {root} can't be written to \(Permission"
    with pytest.raises(FileNotFoundError, match=message):
        runs.have_cifar10(root)
    assert toronto.asked == []


def test_half_a_folder_is_named_and_left(toronto, root):
    runs.have_cifar10(root)
    (root / FOLDER / "data_batch_3").unlink()
    (root / FOLDER / "data_batch_5").write_bytes(b"altered")
    runs.have_cifar10(root)
    with pytest.raises(OSError, match="data_batch_3 in the data folder .* is missing: delete"):
        runs.verify_cifar10(root)
    (root / FOLDER / "data_batch_3").write_bytes(FILES["data_batch_3"])
    with pytest.raises(OSError, match="data_batch_5 .* is truncated or altered"):
        runs.verify_cifar10(root)
    assert len(toronto.asked) == 1


EVIL = {
    "outside": (INSIDE | {f"{FOLDER}/../../evil": b"evil", "../test_batch": b"evil"}, {}, ""),
    "another folder": (INSIDE | {"evil/test_batch": b"evil", "test_batch": b"evil"}, {}, ""),
    "absolute": (INSIDE | {"/tmp/evil of cifar": b"evil"}, {}, ""),
    "a link to a file": (
        {name: text for name, text in INSIDE.items() if "test" not in name},
        {f"{FOLDER}/test_batch": "/etc/passwd"},
        "its test_batch is missing",
    ),
    "a link to a folder": (INSIDE, {FOLDER: "../.."}, ""),
    "a link to write through": (INSIDE, {f"{FOLDER}/test_batch": "../../evil"}, ""),
    "altered": (INSIDE | {f"{FOLDER}/test_batch": b"evil"}, {}, "its test_batch is truncated"),
    "not ours": ({"evil": b"evil"}, {}, "its data_batch_1 is missing"),
}


@pytest.mark.parametrize("filtered", [True, False], ids=["filter", "old python"])
@pytest.mark.parametrize("kind", EVIL)
def test_a_stranger_in_the_archive_gets_nowhere(small, root, tmp_path, monkeypatch, kind, filtered):
    """Even if the digest were right: nothing but the files that we know is written."""
    members, links, message = EVIL[kind]
    root.mkdir()
    digest = make_archive(root / runs.CIFAR10_ARCHIVE, members, links)
    monkeypatch.setattr(runs, "CIFAR10_DIGEST", digest)
    if not filtered:
        monkeypatch.delattr(tarfile, "data_filter")
    if message:
        with pytest.raises(OSError, match=rf"can't be unpacked \({message}"):
            runs.have_cifar10(root)
        assert os.listdir(root) == [runs.CIFAR10_ARCHIVE] or sorted(os.listdir(root)) == sorted(
            [runs.CIFAR10_ARCHIVE, f"{FOLDER}.lock"]
        )
    else:
        folder = runs.have_cifar10(root)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
        assert not any(path.is_symlink() for path in folder.iterdir())
    assert sorted(os.listdir(tmp_path)) == ["data", "small.tar.gz"]
    assert not Path("/tmp/evil of cifar").exists()


def test_what_a_killed_process_left_aside_is_swept_away(toronto, root):
    aside = root / f"{FOLDER}.unpacking"
    aside.mkdir(parents=True)
    (aside / "stray").write_bytes(b"half")
    folder = runs.have_cifar10(root)
    assert {path.name for path in folder.iterdir()} == set(FILES) and not aside.exists()


def test_a_reason_is_one_line_that_a_terminal_can_show():
    assert runs.reason_of(OSError("a\x1b[31m\n\r b")) == "a\\x1b[31m b"
    assert runs.reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert runs.reason_of(EOFError()) == "EOFError"
    assert len(runs.reason_of(OSError("x" * 5000))) == 200


def test_an_archive_that_is_none_is_one_line(root, monkeypatch, small):
    root.mkdir()
    (root / runs.CIFAR10_ARCHIVE).write_bytes(b"no archive at all")
    monkeypatch.setattr(
        runs, "CIFAR10_DIGEST", "md5:" + hashlib.md5(b"no archive at all").hexdigest()
    )
    with pytest.raises(OSError, match="can't be unpacked") as caught:
        runs.have_cifar10(root)
    assert "\n" not in str(caught.value)


# Processes, some of them killed

CHILD = """
import os, sys, time
from pathlib import Path
from cifar_cam_lib import runs
root, address, digest, size, md5, slow = sys.argv[1:]
runs.CIFAR10_ADDRESS, runs.CIFAR10_DIGEST, runs.CIFAR10_SIZE = address, digest, int(size)
runs.CIFAR10_MD5 = eval(md5)
if slow:  # stop at this step, as if it took long
    module, name = slow.split(":")
    owner = {"runs": runs, "tar": runs.tarfile.TarFile, "path": Path}[module]
    before = getattr(owner, name)
    def stop(*arguments, **options):
        if name == "extract" and not Path(root, "cifar-10-batches-py.unpacking").exists():
            return before(*arguments, **options)  # the first file goes through
        if name == "unlink" and not Path(root, "cifar-10-batches-py").exists():
            return before(*arguments, **options)
        print("here", flush=True)
        time.sleep(60)
    setattr(owner, name, stop)
print(runs.have_cifar10(Path(root)))
"""


def start(root, address, slow=""):
    """A process that fetches the small CIFAR-10; it stops at the function `slow`."""
    code = textwrap.dedent(CHILD)
    values = (runs.CIFAR10_DIGEST, str(runs.CIFAR10_SIZE), repr(runs.CIFAR10_MD5), slow)
    words = [sys.executable, "-c", code, str(root), address, *values]
    package = str(Path(runs.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


STEPS = {  # where the process is killed, and how often the next one asks the server
    "before unpacking": ("runs:unpack", 0),
    "while unpacking": ("tar:extract", 0),
    "before renaming": ("runs:find_damage", 0),
    "before tidying up": ("path:unlink", 0),
}


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_the_next_try_goes_on(toronto, root, step):
    slow, asked = STEPS[step]
    process = start(root, toronto.address("whole"), slow)
    assert process.stdout.readline() == "here\n"
    kill(process)
    assert len(os.listdir(root)) > 1 and len(toronto.asked) == 1
    runs.have_cifar10(root)
    runs.verify_cifar10(root)
    assert set(os.listdir(root)) - {f"{FOLDER}.lock"} == {FOLDER}
    assert len(toronto.asked) == 1 + asked


def wait_for(condition):
    """Until the condition holds; a minute is the end of patience, not a measurement."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_after_a_kill_while_downloading_the_next_try_continues(toronto, root, monkeypatch):
    def half(request, content):
        reply(request, body=content[:150_000], length=len(content))
        request.server.closing.wait(60)

    monkeypatch.setitem(ANSWERS, "half", half)
    part = root / f"{FOLDER}.tar.gz.part"
    process = start(root, toronto.address("half"))
    wait_for(lambda: part.exists())
    kill(process)
    begun = part.stat().st_size  # what had left the process's memory
    runs.have_cifar10(root)
    runs.verify_cifar10(root)
    assert toronto.asked[1:] == [f"bytes={begun}-" if begun else ""]


def test_two_at_once_share_one_download(toronto, root, monkeypatch):
    go = threading.Event()

    def held_back(request, content):
        go.wait(60)
        serve_from(request, content)

    monkeypatch.setitem(ANSWERS, "held back", held_back)
    first = start(root, toronto.address("held back"))
    wait_for(lambda: toronto.asked)
    second = start(root, toronto.address("held back"))
    assert second.stderr.readline().startswith("Waiting for another process that makes")
    go.set()
    for process in (first, second):
        said, _ = process.communicate()
        assert (process.returncode, said) == (0, f"{root / FOLDER}\n")
    assert len(toronto.asked) == 1 and os.listdir(root) == [FOLDER]
