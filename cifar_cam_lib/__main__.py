"""The command `cifar-cam`, also as `python -m cifar_cam_lib`: it stops with care, loads its words first and PyTorch
afterwards."""

import contextlib
import os
import signal
import sys
import time
import warnings

# Ctrl-C, the end of a program, the end of its terminal; Windows lacks the last
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class PatientOutput:
    """Standard output or error that a closed pipe, a full disk or a foreign alphabet stops nothing."""

    def __init__(self, stream):
        self.stream = stream
        stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write at once; what can't be written is dropped, which is said once on the other stream."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())  # also for what the stream still holds
            os.close(nothing)
            if self is sys.stdout:
                print(
                    f"cifar-cam: standard output is lost ({error.strerror}), the work goes on",
                    file=sys.stderr,
                )
        return len(text)


def name_of(number: int) -> str:
    """A signal as people call it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stop_at_once(number: int, frame):
    """Nothing has begun yet, so there is nothing to lose."""
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first says it for all
        with contextlib.suppress(OSError):
            os.write(2, f"cifar-cam: stopped by {name_of(number)}\n".encode())
    os._exit(128 + number)


def stop_with_care(first: list, parent: int):
    """What to do at a signal: end as at Ctrl-C; impatience, more signals within ten seconds, changes nothing.

    A terminal tells worker processes, too. They leave it to their parent, which ends them.
    """

    def stop(number: int, frame):
        since = time.monotonic() - first[-1] if first else None
        if os.getpid() != parent:
            if since and since > 3:  # it is the parent that insists
                os._exit(128 + number)
            first.append(time.monotonic())
        elif since is None or since > 10:
            first.append(time.monotonic())
            if hasattr(signal, "SIGCHLD"):  # that the workers end, too, is no error any more
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise KeyboardInterrupt(number)

    return stop


def listen(action):
    """Have the signals answered by `action`, but for those that were switched off, as `nohup` does."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, action)


def start() -> int:
    """Run the command of the terminal and return its exit code, see `cifar_cam_lib.runs.report_error`."""
    listen(stop_at_once)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (none if it was closed)
        setattr(sys, name, PatientOutput(stream) if hasattr(stream, "reconfigure") else stream)
    if (
        not sys.warnoptions
    ):  # those of other libraries are for programmers, who call `python -W default`
        warnings.simplefilter("ignore")
    from .settings import parse

    command = parse(sys.argv[1:])  # --help and a mistake end here, before torch is loaded
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, so no window is opened
    # What Apple's GPU can't do is done by the CPU, and PyTorch says so.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    try:
        from .main import execute
    except ImportError as error:  # half an installation, or a system without what a library needs
        reason = " ".join(str(error).split())
        print(
            f"cifar-cam: {error.name or 'a library'} can't be loaded ({reason}): install cifar_cam_lib "
            "anew, in an environment of its own",
            file=sys.stderr,
        )
        return 3

    listen(stop_with_care([], os.getpid()))
    code = execute(command)
    listen(signal.SIG_IGN)  # all is written; impatience shall not change the exit code
    return code


if __name__ == "__main__":
    sys.exit(start())
