"""The page is tested on each engine."""

from homes import fresh, home

__all__ = ["fresh", "home"]
