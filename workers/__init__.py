"""Agent-fleet programs: what real processes do with the store, on its public API only.

    fleet     `python -m workers.fleet`: agents that share one store, verified at the end
    replay    `python -m workers.replay DIR`: recorded agent runs, loaded and compared

Each program is made of a pure part (what should happen), a part that makes it
happen in worker processes, and a part that reads everything back and compares:

    canonical       values as text in which two values are equal only if their types are too
    plan            what each agent of a fleet does, from a seed: pure
    expect          the state that a plan must leave behind, without a store: pure
    agent           one agent at work: a plan carried out on the store
    verify          what was read back against what was expected and acknowledged
    trajectories    recorded runs as steps, events and state: pure
    storable        JSON to values that the store keeps exactly: pure
    loading         one recorded run into the store, and back
    pool, lifetime  worker processes, signals, and stores that leave nothing behind
    report, live    what a person sees
    cli             options, exit codes
"""
