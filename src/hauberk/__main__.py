"""``python -m hauberk``: the command line."""

import os
import sys

from hauberk.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # gloo may abort while the interpreter ends, though all work is done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
