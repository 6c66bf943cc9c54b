"""`python -m fusevol`."""

import sys

from fusevol.cli import main

sys.exit(main())
