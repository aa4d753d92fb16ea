"""Programs that use the store with many processes, on its public API only.

    python -m workers fleet       agents that share one store, verified at the end
    python -m workers replay DIR  recorded agent runs, loaded and compared
    python -m workers stress      a hundred workers on shared runs, judged by their histories
    python -m workers chaos       work while writer, workers, memory and disk are killed and filled

`python -m workers.fleet` and so on do the same.

    cli, screen, observer    options, exit codes; what a person sees
    pool, stores             worker processes and signals; stores that leave nothing behind
    judge                    checks: histories and final states as plain data, no processes
    fleet, stress, chaos     the programs; the replay is in `fleet`
"""
