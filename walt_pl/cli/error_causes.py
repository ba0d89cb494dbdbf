"""Find the sentence of our own code inside an error of the parser."""

OWN = ("walt_pl", "stages", "datamodules")
"""Packages whose errors are sentences for the user."""


def cause_of(error: BaseException) -> Exception | None:
    """Return the innermost error of our own code behind an error of the parser; None where there is none.

    jsonargparse wraps the sentence of a class that refuses its arguments in a list of the types that it tried.
    """
    found: Exception | None = None
    step: BaseException | None = error
    seen: set[int] = set()  # an error that was raised again is in its own context
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        if isinstance(step, ValueError | OSError) and _is_own(_raised_in(step)):
            found = step
        step = step.__cause__ or step.__context__
    return found


def _raised_in(error: BaseException) -> str:
    """Return the module that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in OWN
