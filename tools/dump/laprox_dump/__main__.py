"""`python -m laprox_dump` is `laprox-dump`."""

import sys

from .cli import main

sys.exit(main())
