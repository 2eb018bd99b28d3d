"""Colab's packages as constraints: what is pinned of a freeze, and what is said of it."""

import re
import sys

import pytest

from scripts import colab_constraints

FREEZE = """# made by pip freeze
torch==2.11.0+cu128
torchvision @ https://example.org/whl/cpu/torchvision-0.26.0%2Bcpu-cp313-cp313-linux_x86_64.whl
Model_small @ https://example.org/model_small-3.8.0-py3-none-any.whl#sha256=00ff
albumentations==1.3.1
Pillow==11.3.0
python-apt==0.0.0
nvidia-nccl-cu13==2.31.2
triton==3.6.0
google-colab @ file:///dist/google_colab-1.0.0.tar.gz
gateway @ git+https://example.org/gateway@b134e99
-e git+https://example.org/tool@b134e99#egg=tool
broken==of the day
"""


def run(monkeypatch, folder, freeze):
    """The pins that the command writes for a freeze, and the comments above them."""
    (folder / "pip-freeze.txt").write_text(freeze)
    arguments = ["--freeze", str(folder / "pip-freeze.txt"), "--out", str(folder / "colab.txt")]
    monkeypatch.setattr(sys, "argv", ["colab_constraints", *arguments])
    colab_constraints.main()
    lines = (folder / "colab.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    return pins, "\n".join(line for line in lines if line.startswith("#"))


def test_what_an_index_has_is_pinned_without_the_mark_of_a_build(monkeypatch, tmp_path, capsys):
    (tmp_path / "os-info.txt").write_text("Ubuntu 22.04.5 LTS\nPython 3.13.15\n")
    pins, comments = run(monkeypatch, tmp_path, FREEZE)
    assert pins == [
        "model-small==3.8.0",
        "pillow==11.3.0",
        "python-apt==0.0.0",
        "torch==2.11.0",
        "torchvision==0.26.0",
    ]
    assert "pip-freeze.txt, read on 20" in comments and "For Python 3.13.15." in comments
    assert "not pinned: albumentations 1.3.1." in comments  # settings.ini asks for a newer one
    assert "tyro" in re.search("takes the newest: (.*)", comments)[1].rstrip(".").split(", ")
    assert capsys.readouterr().out.splitlines() == comments.replace("# ", "").splitlines()


def test_the_address_may_be_a_web_page_and_os_info_be_missing(monkeypatch, tmp_path):
    class Answer:
        text = FREEZE

        def raise_for_status(self):
            pass

    def get(address, timeout):
        if "os-info-gpu.txt" in address:
            raise colab_constraints.requests.ConnectionError("no network")
        return Answer()

    monkeypatch.setattr(colab_constraints.requests, "get", get)
    address = "https://example.org/main/pip-freeze.gpu.txt"
    head = colab_constraints.write_constraints(address, address, tmp_path / "colab.txt")
    assert address in head and "For Python ?." in head
    assert "torch==2.11.0\n" in (tmp_path / "colab.txt").read_text()


def test_a_file_without_torch_is_refused_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="^.*holds no version of torch[^\n]*$"):
        run(monkeypatch, tmp_path, "numpy==2.1.3\n")
    assert not (tmp_path / "colab.txt").exists()
