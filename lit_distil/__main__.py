"""`python -m lit_distil` is `lit-distil`."""

from lit_distil.cli import main

if __name__ == "__main__":
    main()
