"""Many workers on shared runs, judged by what they noted.

    worker     one worker: it asks, and notes the answers
    program    one stress from beginning to end
    report     what is told at the end
"""
