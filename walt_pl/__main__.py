"""Entry point of `python -m walt_pl`."""

from walt_pl.cli.main import main

if __name__ == "__main__":
    main()
