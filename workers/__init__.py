"""Agent-fleet programs: what real processes do with the store, on its public API only.

    fleet     `python -m workers.fleet`: agents that share one store, verified at the end
    replay    `python -m workers.replay DIR`: recorded agent runs, loaded and compared
    stress    `python -m workers.stress`: a hundred workers on shared runs, judged by their histories
    chaos     `python -m workers.chaos`: work while writer, workers, memory and disk are killed and filled

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
    loading         one recorded run into the store, and back (what it becomes: `inmem.exchange`)
    mixing          one worker of the stress: it asks, and notes the answers
    history         questions and answers in files
    judge           histories against the final state: pure; judge_runs for status and deletion
    transactions, versions, cycles, serializability
                    recorded transactions: is there one order that explains what each read? pure
    chaos_plan      what is done to a store and its workers, and when: pure
    chaos_worker, chaos_crew, chaos_writer, chaos_pressure, chaos_scratch
                    who works, who is killed, what is filled, and where it takes place
    chaos_judge, chaos_judge_own, chaos_tally, chaos_result
                    journals against the final state, the sums, and how they are told
    pool, lifetime  worker processes, signals, and stores that leave nothing behind
    report, live    what a person sees
    cli, chaos_cli  options, exit codes
"""
