"""`python -m acedit`: the command line."""

import sys

from acedit.cli import main

if __name__ == "__main__":
    sys.exit(main())
