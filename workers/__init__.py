"""Agent-fleet programs: what real processes do with the store, on its public API only.

    fleet     `python -m workers.fleet`: agents that share one store, verified at the end
    replay    `python -m workers.replay DIR`: recorded agent runs, loaded and compared
    stress    `python -m workers.stress`: a hundred workers on shared runs, judged by their histories

Each program is made of a pure part (what should happen), a part that makes it
happen in worker processes, and a part that reads everything back and compares:

    canonical       values as text in which two values are equal only if their types are too
    checking        what was found against what was expected, counted and told
    plan            what each agent of a fleet does, from a seed: pure
    life            what becomes of its runs, and which tasks it claims: pure
    reasoning       what it thinks, as trees of traces: pure
    expect          the state that all this must leave behind, without a store: pure
    agent, board    one agent at work: a plan carried out on the store
    account         what an agent accounts for
    verify          what was read back against what was expected and acknowledged
    verify_runs     the same, of runs, cells and traces
    trajectories    recorded runs as steps, events and state: pure
    recorded_traces a recorded step as a tree of traces: pure
    storable        JSON to values that the store keeps exactly: pure
    loading         one recorded run into the store, and back
    mixing          one worker of the stress: it asks, and notes the answers
    history         questions and answers in files
    judge           histories against the final state: pure; judge_runs for status and deletion
    pool, lifetime  worker processes, signals, and stores that leave nothing behind
    report, live    what a person sees
    cli             options, exit codes
"""
