"""The demonstration: a whole federation on one machine, made of the commands that anyone can type.

It imports neither side: every owner and the coordinator is a set of processes of their own.
"""
