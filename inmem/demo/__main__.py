"""`python -m inmem.demo`: the same as `inmem demo`."""

import sys

from inmem.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
