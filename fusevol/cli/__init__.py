"""The command `fusevol`.

`run` is the frame: it starts a command and turns what it raises into a line and an exit status. `app` knows the
commands; each is in a module `<name>_cmd` and does its imports inside its function, so that `fusevol --help` loads
next to nothing. `settings`, `options`, `output`, `sizes` and `objects` are what they share.
"""

from fusevol.cli.run import main

__all__ = ["main"]
