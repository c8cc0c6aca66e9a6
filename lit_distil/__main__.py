"""`python -m lit_distil` is `lit-distil`."""

import os
import sys

# Python puts the working directory first, so a file there such as tokenizers.py would hide an installed package
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    sys.path.append(sys.path.pop(0))

from lit_distil.cli import main

if __name__ == "__main__":
    main()
