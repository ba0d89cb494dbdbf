"""Text for the terminal: that of files and folders never carries control characters to it.

Nothing but the standard library is imported: the message that a package is missing is printed from here, too.
"""

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, characters that turn the direction of writing, and lone surrogates."""


def printable(text: str) -> str:
    """Return a text for the terminal: control characters other than line ends and tabs are written as escapes.

    A terminal obeys control characters: they hide text, change its title, or answer as if someone had typed.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else ascii(found[0])[1:-1], text)
