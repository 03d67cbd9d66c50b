"""The commands of `acedit`, a file each.

    add(commands, shared)        # in every file: its parsers, whose `run` is called with the arguments

Adding a command is one file and its name in `acedit.cli.COMMANDS`.

Footgun: nothing heavy may be imported at the top of these files; `acedit --help` should come at once.
"""
