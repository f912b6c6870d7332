"""`python -m vidgen.cli VERB`, the same as the `vidgen` script."""

import sys

from vidgen.cli import main

sys.exit(main())
