"""inmem for asyncio: the same names, arguments, results and errors, awaited."""
