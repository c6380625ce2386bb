"""``python -m pof``, and with several processes ``torchrun -m pof``: the command line."""

import sys

from pof.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
