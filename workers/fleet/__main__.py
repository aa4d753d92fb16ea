"""`python -m workers.fleet`: the same as `python -m workers fleet`."""

from workers.cli import main

if __name__ == "__main__":
    main("fleet")
