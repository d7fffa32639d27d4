"""``python -m hauberk``: the command line."""

import sys

from hauberk.cli import main

sys.exit(main())
