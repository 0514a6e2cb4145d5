"""``python -m implicitnets``: the same as the command ``implicitnets``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
