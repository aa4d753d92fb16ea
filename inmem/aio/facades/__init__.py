"""The facades for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""
