"""What a store said, in one line for people: out of the text of obstore's errors, which has pages of it."""

import re

__all__ = ["in_words"]

_REQUEST = re.compile(
    r"Error performing [A-Z]+ (?P<server>[a-z]+://[^/\s]+)\S* in [^ ,]+(?:, after (?P<retries>\d+) retries,[^-]*)?"
    r"\s*- (?P<answer>.*)",
    re.DOTALL,
)
_STATUS = re.compile(r"Server returned \S+ status code: (?P<status>\d+ [^:\n]*)")
#: The body of an answer, of S3 and those that are like it.
_BODY = re.compile(r"<Code>(?P<code>[^<]*)</Code>\s*(?:<Message>(?P<message>[^<]*)</Message>)?")
#: What went wrong where there was no answer, in what is there for debugging; the innermost is the last.
_CAUSE = re.compile(
    r'\b(?:message|error): "(?P<text>[^"]+)"|\bsource: (?P<late>TimedOut)\b'
    r"|\berror: (?P<tls>Invalid\w+)\(\s*(?P<what>\w+)"
)
#: What somebody who sees this has forgotten, most likely.
_HINTS = (
    ("//169.254.169.254", "there are no credentials, in config or as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("builder error", "without TLS, client_options has to have allow_http = true"),
)
_DEBUGGING = "\n\nDebug source:\n"


def in_words(text: str) -> str:
    """The server, what it said or why it said nothing, and how often it was asked; or else the first line."""
    said, _, debugging = text.partition(_DEBUGGING)
    request = _REQUEST.search(said)
    if request is None:
        return said.partition("\n")[0]
    answer = request["answer"]
    if status := _STATUS.match(answer):
        words = [status["status"].strip()]
        if body := _BODY.search(answer):
            words += [part.strip() for part in body.groups() if part]
    else:
        causes = list(_CAUSE.finditer(debugging))
        words = [_cause(causes[-1]) if causes else answer.partition("\n")[0]]
    if hint := next((hint for sign, hint in _HINTS if sign in f"{request['server']} {words[-1]}"), ""):
        words.append(hint)
    asked = f" (asked {int(request['retries']) + 1} times)" if request["retries"] else ""
    return " ".join(f"{request['server']}: {': '.join(words)}{asked}".split())


def _cause(found: re.Match[str]) -> str:
    if found["late"]:
        return "it does not answer in time"
    return found["text"] or f"no TLS: {found['tls']}, {found['what']}"
