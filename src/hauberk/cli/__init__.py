"""The command line. Commands import torch only when they run, so that help answers at once."""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from hauberk.core.errors import RemoteUserError, UserError, printable, unknown_name

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.EPIPE)  # and of pipes
# command: (module, what it does)
COMMANDS = {
    "demo": ("demo", "train at, trades and mail-trades on handwritten digits, bound and compare them; two minutes"),
    "train": ("train", "train a robust classifier, or resume a run"),
    "evaluate": ("evaluate", "measure clean and robust accuracy of a trained model"),
    "certify": ("certify", "prove for which examples no attack on a trained model can succeed"),
    "compare": ("compare", "train methods with several seeds, or take evaluations, and set them side by side"),
    "study": ("study", "repeat an experiment of the papers: table, picture, and whether it agrees"),
    "report": ("info", "one HTML file with pictures of a run, an evaluation, a comparison or studies"),
    "export": ("info", "write a trained model as state dict, safetensors, torch.export or ONNX"),
    "data": ("info", "list data sets, check their files, download them"),
    "methods": ("info", "list training methods, explain one"),
    "attacks": ("info", "list attacks, and the suites that evaluations run"),
    "models": ("info", "list networks"),
    "doctor": ("info", "versions, device, precision, what is missing"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        The exit code: 0 done, 2 the user's mistake, 1 anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()  # while it can still be said that this fails
        return code
    except RemoteUserError:  # the process whose error it is says it
        return 2
    except UserError as error:
        print(f"hauberk: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hauberk: stopped", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        with suppress(OSError, ValueError):  # what is left of the output, which Python would try to write at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # the reader of our output, such as head, has gone
            print(f"hauberk: cannot write: {printable(str(error))}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from hauberk import __version__

        print(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = getattr(import_module(f"hauberk.cli.{COMMANDS[name][0]}"), name)
    return int(command(arguments[1:]))


def _help() -> str:
    rows = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    return (
        "hauberk: train robust classifiers, and measure how robust they are\n\n"
        f"usage: hauberk COMMAND [options]\n\n{rows}\n\n"
        "'hauberk COMMAND --help' explains each. Start with 'hauberk demo'."
    )
