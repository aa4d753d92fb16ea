"""The engine on PostgreSQL: the same facades for the processes of many machines."""
