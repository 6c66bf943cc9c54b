"""For all tests: a shell has its background jobs ignore SIGINT, which the programs they start would inherit."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
