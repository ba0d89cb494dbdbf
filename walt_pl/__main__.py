"""Entry point of ``python -m walt_pl``."""

import sys

from walt_pl.data.batch import DataError
from walt_pl.media.types import MediaError

if __name__ == "__main__":
    from walt_pl.cli.main import main

    try:
        main()
    except (ValueError, OSError, MediaError, DataError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
