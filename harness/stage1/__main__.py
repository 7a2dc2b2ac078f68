"""`python -m stage1` is the program `stage1`."""

import sys


def main() -> None:
    """Run the program; Ctrl-C is Ctrl-C in its first second, too, while its modules are loaded."""
    try:
        from stage1.cli import main as program

        program()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
