"""``python -m spinverse`` is the command ``spinverse``."""

import sys

from .cli import main

sys.exit(main())
