"""`python -m workers.chaos`: the same as `python -m workers chaos`."""

from workers.cli import main

if __name__ == "__main__":
    main("chaos")
