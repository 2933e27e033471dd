"""`python -m openmercury` is `openmercury`."""

from __future__ import annotations

import sys

from openmercury.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
