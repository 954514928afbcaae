"""The one line of an error's text that says what happened, for lists, logs and messages."""

import re

_FRAME = '  File "'
_GROUP = "Exception Group Traceback (most recent call last):"
# What a traceback of an exception group has to the left of each line, and between its exceptions.
_MARGIN = re.compile(r" +[|+] ")
_RULE = re.compile(r" +\+[-+]")
_CUT = re.compile(r"\.\.\. [0-9,]+ characters cut \.\.\.")


def error_line(error: str | None) -> str:
    """The line with the exception's type and what it says, below its traceback; else the first line. Empty if there is none.

    What a message says in further lines, and notes, are left out. Of exceptions that led to one another it is the last; of a
    group it is the last one in it, as the group's own line says only how many there are.
    """
    lines = (error or "").splitlines()
    if error and _GROUP in error:
        lines = ["" if _RULE.match(line) else _MARGIN.sub("", line, count=1) for line in lines]
    frames = [number for number, line in enumerate(lines) if line.startswith(_FRAME)]
    below = lines[frames[-1] + 1 :] if frames else []
    said = [line for line in below if line.strip() and not line[0].isspace() and not _CUT.fullmatch(line)]
    told = [line for line in lines if any(map(str.isalnum, line))]
    return next(iter(said or told or [error or ""])).strip()
