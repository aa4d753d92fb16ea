"""The release of this package: all that must know it reads it here."""

__version__ = "0.1.0"
