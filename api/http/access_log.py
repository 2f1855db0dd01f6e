"""uvicorn's access log: without health probes, and without characters with which a client could forge a line."""

import logging
import re
from urllib.parse import quote

_PROBES = ("/livez", "/readyz")
_UNSAFE = re.compile(r"[^!#-~]")  # a space, a quote, and every other character that is not printable ASCII


class AccessLogFilter(logging.Filter):
    """Filters the records of `uvicorn.access`, whose arguments are client, method, path, HTTP version and status."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged, which a health probe is not; escape its texts.

        The path may have a prefix (`--root-path`), so only its end is compared. An unknown path is 404, and is logged.
        """
        if not isinstance(record.args, tuple):
            return True
        texts, status = record.args[:-1], record.args[-1]
        if str(texts[2]).partition("?")[0].endswith(_PROBES) and status in (200, 503):
            return False
        record.args = (*(_UNSAFE.sub(_escape, str(text)) for text in texts), status)
        return True


def _escape(match: re.Match[str]) -> str:
    return quote(match[0], safe="")
