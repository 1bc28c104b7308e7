"""``python -m budwood``, and with it ``accelerate launch -m budwood run ...``."""

import sys

from budwood.cli import main

if __name__ == "__main__":
    sys.exit(main())
