"""Agents that share one store, and recorded runs of agents.

    plan, lifecycle, traces  what each agent does, from a seed: pure
    expected                 the state that all this must leave behind, without a store: pure
    agent, tasks, reports    one agent at work, the tasks it competes for, what it reports
    verify, verify_runs      what was read back against what was expected and acknowledged
    program                  one fleet from beginning to end
    loading, replay          one recorded run into the store and back; a directory of them
    report                   what is told at the end
"""
