"""Work while everything around it is killed, stopped and filled.

    schedule     what is done, and when: from a seed, pure
    worker       one worker: the moves of the stress, and more; all of it in a journal
    holders      its moves with jobs and leases
    processes    the worker processes, killed and replaced, stopped and continued
    writer       the writer: found, killed, stopped, seen to serve again
    pressure     memory and disk, filled and emptied; checkpoints
    directory    where it takes place, and what must not be left of it
    program      one run from beginning to end
    result, report   how it is run, what came of it, how that is told
"""
