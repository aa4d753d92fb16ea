"""`python -m workers.replay`: the same as `python -m workers replay`."""

if __name__ == "__main__":
    # Worker processes import this module again: what only the command needs stays out of it.
    from workers.cli import main

    main("replay")
