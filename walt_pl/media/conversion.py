"""Commands of ffmpeg that convert a file of the index, as a person types them."""

import shlex

from walt_pl.media.media_file import Media


def convert_with(media: Media, before: str, after: str) -> str:
    """Return what to type to convert a file with ffmpeg into a new one beside it.

    Args:
        media: The file; its name is quoted for a shell. A member of a shard has to be unpacked first.
        before: Options of reading; "" for none.
        after: Options of writing.
    """
    path = media.path.absolute()
    if media.offset >= 0:
        lead, old, new = "unpack it, and ", "FILE", "NEW.mp4"
    else:
        lead, old, new = "", shlex.quote(str(path)), shlex.quote(str(path.with_name(f"{path.stem}.new.mp4")))
    return f"{lead}convert it with: {' '.join(['ffmpeg', *before.split(), '-i', old, after, new])}"
