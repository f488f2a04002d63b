"""``python -m tfx``: the ``tfx`` command, where another package took its name."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="tfx")
