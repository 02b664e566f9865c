"""Rows of an array on the ranks that want them, and files that all ranks read and write.

Nothing here holds an array of mesh size on one rank.
"""
