"""Entry point of `python -m nanochat_lit`."""

import sys

from nanochat_lit.cli import main

if __name__ == "__main__":
    sys.exit(main())
