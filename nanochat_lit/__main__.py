"""`python -m nanochat_lit` is the console script."""

import sys

from nanochat_lit.cli import main

if __name__ == "__main__":
    sys.exit(main())
