"""Contracts are held against stores on each engine."""

from homes import fresh, home, shared_db

__all__ = ["fresh", "home", "shared_db"]
