"""Man pages and HTML as the plain text a reader sees.

Guarantees that no macro, escape or tag is left, that literal blocks keep their lines, and that a blank line stands
between paragraphs.

    roff(".SH NAME\nls \\- list\n.B files")    # "NAME\n\nls - list files"
    html("<p>One <b>two</b></p><p>three</p>")  # "One two\n\nthree"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

# man(7) and mdoc(7): the requests that break the text, and those whose arguments are text.
_HEADINGS = {"SH", "SS", "Sh", "Ss"}
_PARAGRAPHS = {"PP", "P", "LP", "Pp", "HP", "sp"}
_LINES = {"TP", "TQ", "IP", "It", "br", "RS", "RE", "nf", "fi", "EX", "EE", "Bd", "Ed", "Bl", "El", "Cd", "Ft", "In"}
_LITERAL = {"nf": True, "EX": True, "Bd": True, "fi": False, "EE": False, "Ed": False}
_ALTERNATING = {"BR", "RB", "BI", "IB", "IR", "RI"}
_MAN_TEXT = {"B", "I", "SM", "SB", "UR", "MT"} | _HEADINGS | _ALTERNATING
_MDOC_TEXT = set(
    re.findall(
        r"\w+",
        "Ad An Ao Aq Ar Bo Bq Brq Bx Cd Cm Dq Dv Em Er Ev Fa Fl Ft Fx Ic In It Li Lk Nd Ns Nx Op Ox Pa Po Pq Ql Qq Sq "
        "Sx Sy Tn Va Vt",
    )
)
_MDOC = _MDOC_TEXT | {"Ac", "Bc", "Fc", "Nm", "Oc", "Oo", "Pc", "Xr"}
_PUNCTUATION = set(".,;:?!)")

_SKIPPED_BLOCK = re.compile(r"^[.'](?:TS.*?^\.TE|(?:de|ig|am)\b.*?^\.\.|EQ.*?^\.EN).*?$", re.MULTILINE | re.DOTALL)
_REQUEST = re.compile(r"[.']\s*(?P<name>[A-Za-z]+)\s*(?P<rest>.*)")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_STYLE = re.compile(r"\\f(?:\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\m\[[^]]*\]|\\[hvw]'[^']*'|\\\".*")
_ESCAPE = re.compile(r"\\(?:\*?\((?P<two>..)|\*?\[(?P<long>[^]]*)\]|(?P<one>.))")
_CHARACTERS = {
    **{"-": "-", " ": " ", "~": " ", "0": " ", "e": "\\", "\\": "\\", "'": "\u00b4", "`": "`", ".": ".", "t": "\t"},
    **{"aq": "'", "Aq": "'", "dq": '"', "bu": "•", "co": "©", "em": "—", "en": "\u2013", "hy": "-", "mi": "-"},
    **{"lq": "“", "rq": "”", "Lq": "“", "Rq": "”", "oq": "\u2018", "cq": "\u2019", "Fo": "«", "Fc": "»", "Do": "$"},
    **{"ti": "~", "ha": "^", "ga": "`", "rs": "\\", "at": "@", "sh": "#", "no": "¬"},
    **{"->": "→", "<=": "≤", ">=": "≥", "+-": "±", "mu": "\u00d7"},
}


def roff(source: str) -> str:
    """The text of one man page: paragraphs filled, fonts and the running title dropped, tables left out."""
    source = _SKIPPED_BLOCK.sub("", source.replace("\\\n", ""))
    return _tidy("".join(_roff_pieces(source)))


def _roff_pieces(source: str) -> Iterator[str]:
    literal, page = False, ""
    for line in source.splitlines():
        request = _REQUEST.match(line)
        if request is None:
            text = "" if line.startswith((".", "'")) else line
        else:
            name, arguments = request["name"], [quoted or bare for quoted, bare in _ARGUMENT.findall(request["rest"])]
            page = page or (arguments[0] if name == "Nm" and arguments else "")
            literal = _LITERAL.get(name, literal)
            yield "\n\n" if name in _HEADINGS | _PARAGRAPHS else "\n" if name in _LINES else ""
            text = _request_text(name, arguments, page)
        if text:
            yield _plain(text).rstrip() + ("\n" if literal else " ")
        if request and request["name"] in _HEADINGS:
            yield "\n\n"


def _request_text(name: str, arguments: list[str], page: str) -> str:
    """What one request shows of its arguments."""
    words = [word for word in arguments if word not in _PUNCTUATION]
    end = "".join(word for word in arguments if word in _PUNCTUATION)
    if name == "Nm":
        return (" ".join(words) or page) + end
    if name in {"Xr", "Fn"} and words:
        return f"{words[0]}({', '.join(words[1:])}){end}"
    if name in {"Fo", "Fc"}:
        return f"{words[0]}(" if words else f"){end}"
    if name in _ALTERNATING:
        return "".join(arguments)
    if name == "IP":
        return "".join(arguments[:1])
    if name in _MDOC_TEXT:
        return _mdoc([name, *arguments])
    return " ".join(arguments) if name in _MAN_TEXT else ""


_LEADING = {"Fl": "-", "Nd": "- "}  # what a macro sets before its first word


def _mdoc(words: list[str]) -> str:
    """The words of an mdoc line, which calls macros among its arguments."""
    shown, leading = list[str](), ""
    for word in words:
        if word in _MDOC:
            leading = _LEADING.get(word, "")
        else:
            shown.append(leading + word)
            leading = ""
    return re.sub(r" ([.,;:?!)])|([(]) ", lambda found: found[1] or found[2], " ".join(shown))


def _plain(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        return _CHARACTERS.get(found["two"] or found["long"] or found["one"] or "", "")

    return _ESCAPE.sub(character, _STYLE.sub("", text))


_HIDDEN = {"script", "style", "svg", "head", "nav", "button"}
_BLOCKS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "hr"}
_ITEMS = {"br", "li", "dt", "dd", "tr"}


class _Reader(HTMLParser):
    """Collects the text of a document; hidden elements are left out, `pre` keeps its white space."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = list[str]()
        self.hidden = self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in _HIDDEN
        self.verbatim += tag == "pre"
        self.pieces.append("\n\n" if tag in _BLOCKS else "\n" if tag in _ITEMS else " " if tag in {"td", "th"} else "")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in _HIDDEN and self.hidden > 0
        self.verbatim -= tag == "pre" and self.verbatim > 0
        self.pieces.append("\n\n" if tag in _BLOCKS else "")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def html(source: str) -> str:
    """The text of one HTML document, as a reader without a browser would write it down."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    return _tidy("".join(reader.pieces))


def _tidy(text: str) -> str:
    """Without trailing blanks, a lone leading blank on a line, or more than one blank line running."""
    lines = (line[1:] if re.match(r" \S", line) else line for line in text.replace("\xa0", " ").splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")
