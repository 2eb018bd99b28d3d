"""Makes `import torchvision` work beside a CPU-only torch, inside a virtual environment.

PyPI's torchvision for Linux is built for CUDA. Beside a torch that was built for the CPU its
compiled library doesn't load, and `import torchvision` ends in "operator torchvision::nms does not
exist" (pytorch/vision#9085). With the signatures of the two missing operators defined first,
everything this project uses works: datasets, transforms, models, utils. What needs the compiled
library itself, `torchvision.io` and `torchvision.ops.nms`, stays unusable.

    .venv/bin/python scripts/repair_torchvision.py

repairs the environment that runs it, and only if the import fails in just this way. It copies this
file and a one-line `repair_torchvision.pth` into the environment's site-packages. To undo it,
delete these two files, or install a torch and a torchvision that come from the same place.
"""

import sys  # nothing slow here: every start of the interpreter imports this file by the .pth file

MISSING = "operator torchvision::nms does not exist"
OPERATORS = ("nms", "qnms")


class Watcher:
    "Waits in `sys.meta_path` for the first import of torchvision, and leaves when it comes."

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and compiled_library_fails(spec):
            define_operators()
        return spec


def watch():
    "Called by the .pth file when the interpreter starts."
    sys.meta_path.insert(0, Watcher())


def compiled_library_fails(
    spec,  # where torchvision is installed, as importlib describes it
):
    "Whether torch is built for the CPU and torchvision's own library does not load into it."
    from pathlib import Path

    import torch

    if torch.version.cuda is not None:
        return False
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(library)
            return False
        except OSError:
            pass
    return True


def define_operators():
    "Tell torch the signatures that `import torchvision` asks for."
    import torch

    # Kept for good: torch forgets the signatures when the object that defined them is gone.
    define_operators.library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        define_operators.library.define(
            f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )


def import_error():
    "The last line that `import torchvision` prints in a fresh interpreter; empty where it works."
    import subprocess

    result = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True
    )
    lines = result.stderr.strip().splitlines() or ["no message"]
    return lines[-1] if result.returncode else ""


def main():
    "Repair where needed; returns the exit status, after one line that says what was done."
    import shutil
    import sysconfig
    from importlib.util import find_spec
    from pathlib import Path

    if sys.prefix == sys.base_prefix:
        print("torchvision: not looked at, for this Python is not in a virtual environment.")
        return 1
    site_packages = Path(sysconfig.get_path("purelib"))
    module, start = (
        site_packages / "repair_torchvision.py",
        site_packages / "repair_torchvision.pth",
    )
    for file in (start, module):  # An earlier repair may be out of date, or needed no more.
        file.unlink(missing_ok=True)
    error = import_error()
    if not error:
        print("torchvision: works.")
        return 0
    if MISSING not in error or not compiled_library_fails(find_spec("torchvision")):
        print(f"torchvision: does not import, for a reason this script cannot repair: {error}")
        return 1
    shutil.copy(__file__, module)
    start.write_text("import repair_torchvision; repair_torchvision.watch()\n")
    error = import_error()
    if error:
        print(f"torchvision: still does not import after the repair: {error}")
        return 1
    print("torchvision: built for CUDA, and torch for the CPU; repaired in .venv, and only there.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
