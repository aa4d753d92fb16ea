"""Queues: work that is handed from process to process."""
