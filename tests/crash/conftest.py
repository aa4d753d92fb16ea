"""Fixtures that the tests of this folder share."""

from boards import board

__all__ = ["board"]
