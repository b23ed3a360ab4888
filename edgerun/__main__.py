"""`python -m edgerun`."""

from edgerun.cli.main import main

if __name__ == "__main__":
    main()
