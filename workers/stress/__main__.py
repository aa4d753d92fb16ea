"""`python -m workers.stress`: the same as `python -m workers stress`."""

from workers.cli import main

if __name__ == "__main__":
    main("stress")
