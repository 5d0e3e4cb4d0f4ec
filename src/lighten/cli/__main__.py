"""``python -m lighten.cli``: the same as ``lighten``."""

import sys

from lighten.cli.main import main

sys.exit(main())
