"""``python -m walt_pl``."""

import sys

from walt_pl.artifact import ArtifactError
from walt_pl.data.video import MediaError
from walt_pl.manifest import ManifestError

if __name__ == "__main__":
    from walt_pl.cli import main

    try:
        main()
    except (ManifestError, ArtifactError, MediaError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
