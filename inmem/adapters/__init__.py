"""inmem in programs of others: each module stores what its framework hands over, by the public API alone.

Each is of an extra of its own, and imports its framework when it is used.
"""
