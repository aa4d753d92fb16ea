"""A small fleet of processes on one store: shown for some seconds, disturbed, and verified.

    plan        what there is to do, from a seed: pure
    link        a process's end of the pipe to its parent
    roles       planner, workers and reviewers, each a process
    process     the program that such a process runs
    children    processes that are started, heard, killed by their id, and gone at the end
    writer      the writer process, killed once, if it is the demo's own
    fleet       one demonstration from beginning to end
    facts       what is in the store at the end
    verify      that against what was acknowledged: pure
    screen      what a person sees
    page        the page of `inmem ui` beside it

Invariant: the verdict is good only if every check compared something and
found nothing, and every process that was killed has come back.
"""
