"""`python -m stage1` is the program `stage1`."""

from stage1.cli import main

if __name__ == "__main__":
    main()
