"""The command `cifar-cam`, also as `python -m cifar_cam_lib`: its words first, PyTorch afterwards."""

import os
import sys

from .settings import parse


def start() -> int:
    """Run the command of the terminal and return its exit code, see `cifar_cam_lib.main.execute`."""
    command = parse(sys.argv[1:])  # --help and a mistake end here, before torch is loaded
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, so no window is opened
    # What Apple's GPU can't do is done by the CPU, and PyTorch says so.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    from .main import execute

    return execute(command)


if __name__ == "__main__":
    sys.exit(start())
