"""`python -m ballot.preload train.py ...` (see `ballot.preload.command`)."""

import sys

from ballot.preload.command import main

if __name__ == "__main__":
    sys.exit(main())
