"""``python -m xpformer`` is the command ``xpformer``."""

from xpformer.cli import main

if __name__ == "__main__":
    main()
