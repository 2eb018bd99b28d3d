"""Runs every notebook as a test with nbdev_test, and makes sure that none was left out.

    .venv/bin/python -m scripts.publish.test_notebooks

nbdev_test says "Success." also if it passed over a notebook, or found none; so the notebooks that
it completed are counted against those in the folder. Cells marked `#| eval: false` don't run here.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.project import ROOT

# One thread a process, because nbdev_test runs a notebook on each core.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TQDM_DISABLE": "1",
}


def main():
    "Returns the exit status; the last line says how many notebooks passed."
    programs = Path(
        sys.executable
    ).parent  # where `nbdev_test`, and `cifar-cam` for the cells, are installed
    environment = (
        os.environ
        | ENVIRONMENT
        | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
    )
    there = {
        path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    }
    workers = (
        min(os.cpu_count() or 1, 8) + 1
    )  # one more than cores, so that none is idle while the last long notebooks run
    nbdev_test = shutil.which("nbdev_test", path=environment["PATH"]) or "nbdev_test"
    command = [nbdev_test, "--do_print", "--timing", "--n_workers", str(workers)]
    output = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        for line in process.stdout:
            output += line
            print(line.replace(f"{ROOT}{os.sep}", ""), end="", flush=True)
    # Two processes may print on one line, so this does not go by lines.
    completed = {Path(name) for name in re.findall(r"- Completed (.+?\.ipynb)", output)}
    failures = output.partition("nbdev Tests Failed On The Following Notebooks:")[2].count(".ipynb")
    for path in sorted(there - completed):
        print(f"not run: {path.relative_to(ROOT)}")
        failures += 1
    print(
        f"notebooks: {len(there) - failures} passed, {failures} failed"
        if there
        else "notebooks: none found"
    )
    return int(bool(process.returncode or failures or not there))


if __name__ == "__main__":
    sys.exit(main())
