"""Benchmarks: a question each, beside peers and probes of the machine. `python -m bench` runs all.

    single, processes, contention, sync, ycsb, growth, recovery, memory, latency, tax
                         a question each
    operations           the short one, which the tests use
    anatomy              where the time of one operation goes, stage by stage
    connection           a client's own connection beside libzmq's
    harness, measuring   rounds and documents; processes that measure together
    busy                 processes that compute beside them
    timers, timed_writer what anatomy puts around functions; a writer with that
    workloads, probes    what is measured; what the machine gives without inmem
    peers                the stores that it is compared with
    targets, report, plots   what is asked; tables and pictures
"""
