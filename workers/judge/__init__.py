"""Checks: what was found against what was expected and acknowledged. No processes, no screen.

    values              values as text in which two are equal only if their types are too
    checks              one check, and comparisons that programs share
    run_contents        what a run must hold in all five primitives
    history             questions and answers in files
    final_state         what is in the store at the end; tables of checks
    stress              histories against the final state; run_histories for status and deletion
    chaos, own_writes, holders
                        journals against the final state
    transactions, versions, cycles, serializability
                        recorded transactions: is there one order that explains what each read?
"""
