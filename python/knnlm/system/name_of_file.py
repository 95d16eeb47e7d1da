"""Name of a file: a text that is the path of a file was probably meant as what is in it; a warning says so."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

LONGEST = 4096
"""Characters of the longest path that systems take."""

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def warn_of_name(text: Any, what: str = "text") -> None:
    """Warn (UserWarning), at the line that called the package, where a text is the path of a file that is there.

    what: the argument, for the message. A text that is no string, or has several lines, is none.
    """
    if not isinstance(text, str) or len(text) > LONGEST or "\n" in text or not os.path.isfile(text):
        return
    instead = "or read the file and give what is in it" if what == "text" else "read the file and give what is in it"
    score = f"to score the file call lm.evaluate({text!r}) (in commands knnlm eval STORE {text}), "
    warnings.warn(
        f"{what}: expected a text, found the path of a file, {text!r}, which is taken as the text itself: "
        f"{score if what == 'text' else ''}{instead}",
        stacklevel=_frames_of_the_package(),
    )


def _frames_of_the_package() -> int:
    """The `stacklevel` of the first frame outside of this package, for a warning of the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
