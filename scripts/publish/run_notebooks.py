"""Runs notebooks from top to bottom, each in a kernel of its own, and saves their outputs.

    .venv/bin/python -m scripts.publish.run_notebooks                    all but the three levels
    .venv/bin/python -m scripts.publish.run_notebooks nbs/01_data.ipynb  some
    .venv/bin/python -m scripts.publish.run_notebooks --check            look only at what is saved

The levels take half an hour each, so `make levels` runs them. Cells marked `#| eval: false` don't
run and keep the outputs that they have. A notebook with a failure, or with an output that names a
folder of this computer, isn't saved.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.clean import nbdev_clean
from PIL import Image

from scripts.project import ROOT

# Folders of one computer: this one's, or the usual homes and temporary folders. Colab's /content
# is for everybody.
ONE_COMPUTER = re.compile(
    rf"({re.escape(str(ROOT))}/|(?<![\w.-])/(home|root|Users|tmp|var/folders)/|[A-Z]:\\(Users|Windows))[^\s'\"]*"
)


# So that `nbconvert --to script` writes .py; without the version, which differs by machine.
LANGUAGE = {"file_extension": ".py", "name": "python", "nbconvert_exporter": "python"}
NOT_RUN = re.compile(r"^#\|\s*eval:\s*false\b", re.MULTILINE)


class Client(NotebookClient):
    "Runs the cells that are not marked `#| eval: false`, and shows what they print if asked to."

    watch = False

    async def async_execute_cell(self, cell, cell_index, **options):
        if cell.cell_type == "code" and NOT_RUN.search(cell.source):
            return cell
        return await super().async_execute_cell(cell, cell_index, **options)

    def process_message(self, msg, cell, cell_index):
        if self.watch and msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def written(
    cell,  # a notebook's cell
):
    "The cell's source, and the text of its outputs."
    yield cell.source
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        yield from (
            text for kind, text in output.get("data", {}).items() if kind.startswith("text/")
        )


def faults(
    notebook,  # a notebook as nbformat reads it
):
    "What must not be saved in a notebook, one line for each."
    if "widgets" in notebook.metadata:
        yield "carries widget state, which GitHub refuses to show"
    for number, cell in enumerate(notebook.cells):
        for text in written(cell):
            if path := ONE_COMPUTER.search(text):
                yield f"cell {number} names a folder of one computer: {path[0]}"
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            yield f"cell {number} holds an error as its output"
        if any(
            "widget-view" in kind
            for output in cell.get("outputs", [])
            for kind in output.get("data", {})
        ):
            yield f"cell {number} shows a widget, which no saved page can"


def add_alternative_text(
    notebook,  # a notebook that has run
):
    "Give each saved picture the words of its `#| fig-alt:`, in the place where nbconvert looks."
    for cell in notebook.cells:
        words = re.search(r'^#\|\s*fig-alt:\s*"(.*)"', cell.source, re.MULTILINE)
        for output in cell.get("outputs", []) if words else []:
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {})["alt"] = words[1]


def with_palette(
    picture,  # a PNG, base64
):
    "The same PNG with at most 256 colours, if that makes it smaller."
    whole, small = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    if whole.mode == "RGBA" and whole.getextrema()[3][0] < 255:
        return picture  # it shows what is behind it
    colours = whole.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(small, "PNG", optimize=True, dpi=whole.info.get("dpi"))
    found = base64.b64encode(small.getvalue()).decode()
    return min(picture, found, key=len)


def use_palettes(
    notebook,  # a notebook that has run
):
    "Make its saved pictures a half or a third as large."
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(output.data["image/png"])


def prepare():
    "Set up the environment that the kernels inherit."
    os.environ |= {
        # figures are saved, whatever the caller draws with
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "TQDM_DISABLE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def run(
    path,  # the notebook's file
    watch=False,  # show what the cells print while they run
):
    "Run the notebook, and save it with its outputs; returns what keeps it from being saved."
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        kernel_name="python3",  # the one of this virtual environment
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],  # no warning per kernel that it talks over TCP
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.watch = watch
    try:
        client.execute()
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return [f"{error.ename}: {error.evalue}"]
    except DeadKernelError as error:
        return [str(error)]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = LANGUAGE
    add_alternative_text(notebook)
    use_palettes(notebook)
    found = list(faults(notebook))
    if not found:
        nbformat.write(notebook, path)
        nbdev_clean(fname=str(path))
    return found


def main():
    "Returns the exit status."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="files to run; without any, all but the levels"
    )
    parser.add_argument(
        "--check", action="store_true", help="run nothing; look only at what is saved"
    )
    options = parser.parse_args()
    everything = sorted(
        path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    )
    prepare()
    failed = False
    chosen = [path for path in everything if options.check or path.parent.name != "levels"]
    for path in options.notebooks or chosen:
        start = time.perf_counter()
        found = list(faults(nbformat.read(path, as_version=4))) if options.check else run(path)
        for fault in found:
            print(f"{path.resolve().relative_to(ROOT)}: {fault}")
        if not options.check and not found:
            print(
                f"{path.resolve().relative_to(ROOT)}: {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
