"""The command `cifar-cam`, also as `python -m cifar_cam_lib`: its words first, PyTorch afterwards."""

import sys

from .settings import parse


def start() -> int:
    """Run the command of the terminal and return its exit code, see `cifar_cam_lib.main.execute`."""
    command = parse(sys.argv[1:])  # --help, --version and a mistake end here, before torch is loaded
    from .main import execute

    return execute(command)


if __name__ == "__main__":
    sys.exit(start())
