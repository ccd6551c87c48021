"""``python -m eggroll_rl``: the command line."""

from eggroll_rl.cli import main

main()
