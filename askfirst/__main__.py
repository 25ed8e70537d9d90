"""`python -m askfirst` is the command `askfirst`."""

from askfirst.cli import main

if __name__ == "__main__":
    main()
