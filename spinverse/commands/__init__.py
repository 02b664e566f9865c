"""The commands of ``spinverse``, a module each.

A module has ``add_arguments(parser)`` and ``run(arguments, comm)``; ``HELP``, a few words;
``NEEDS_OUTPUT = False`` where it runs without ``-o``, as all do that are given ``--dry-run``.
"""
