"""``python -m c2m3_fl.cli``."""

import sys

from c2m3_fl.cli.main import main

sys.exit(main())
