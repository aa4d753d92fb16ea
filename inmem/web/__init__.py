"""`inmem ui`: a page over a running store. It reads as the command line does, and is told of each commit."""
