"""The commands of ``spinverse``, a module each.

A module has ``add_arguments(parser)`` and ``run(arguments, comm)``; ``needs_output(arguments)``
where it may run without ``-o``; ``HELP``, a few words.
"""
