"""``python -m helpers`` was the course's command; it is ``python -m course`` now."""

import sys

from course.__main__ import main

sys.exit(main())
