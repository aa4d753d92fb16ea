"""`python -m workers fleet|chaos|stress|replay`: see `workers.cli`."""

from workers.cli import app

if __name__ == "__main__":
    app(prog_name="python -m workers")
