"""What was said, who is muted, and who spoke: a conversation without its server.

talk = Conversation(experts=("law", "math", "news"))
talk.command("/mute news")              # lines to show
talk.excluded                           # ("news",): for the next request
talk.spoke({"anchor": 3.0, "law": 9.0}) # gate mass of the last answer, for /who
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ANCHOR = "anchor"
HELP = (
    "/mute NAME ...    these experts say no more",
    "/unmute NAME ...  they may speak again",
    "/only NAME ...    these experts alone, beside the anchor",
    "/all              everybody may speak again",
    "/experts          who is there, and who is muted",
    "/who              who spoke in the last answer, by share of gate mass",
    "/forget           begin anew; who is muted stays so",
    "/help             this",
    "/quit             the end",
)


@dataclass(slots=True)
class Conversation:
    """Messages so far, the closed experts of the model, and those of them that are muted.

    closed: experts of the model that must not be used here and now.
    """

    experts: tuple[str, ...]
    closed: tuple[str, ...] = ()
    system: str | None = None
    muted: frozenset[str] = frozenset()
    messages: list[dict[str, str]] = field(default_factory=list)
    over: bool = False
    _mass: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        self._forget([])

    @property
    def excluded(self) -> tuple[str, ...]:
        """The experts that the next answer is to do without."""
        return tuple(name for name in self.experts if name in self.muted)

    def spoke(self, mass: Mapping[str, float]) -> None:
        """Takes in the gate mass of an answer, by expert."""
        self._mass = dict(mass)

    def command(self, line: str) -> list[str]:
        """Does what a line that begins with / asks for; lines that say what became of it."""
        word, *names = line.split()
        known: dict[str, Callable[[Sequence[str]], list[str]]] = {
            "/mute": lambda names: self._named(names, self.muted | set(names)),
            "/unmute": lambda names: self._named(names, self.muted - set(names)),
            "/only": lambda names: self._named(names, frozenset(self.experts) - set(names)),
            "/all": lambda _: self._mute(frozenset()),
            "/experts": lambda _: self._listed(),
            "/who": lambda _: self._who(),
            "/forget": self._forget,
            "/help": lambda _: list(HELP),
            "/quit": self._quit,
        }
        if word not in known:
            return [f"saw {word}, wanted one of these:", *HELP]
        return known[word](names)

    def _named(self, names: Sequence[str], muted: frozenset[str]) -> list[str]:
        if ANCHOR in names and names != [ANCHOR]:
            return self._named([name for name in names if name != ANCHOR], muted)
        if not names:
            return [f"saw no name, wanted some of {', '.join(self.experts) or 'none: there is only the anchor'}"]
        if unknown := sorted(set(names) - {*self.experts, ANCHOR}):
            wanted = ", ".join(self.experts) or "none: there is only the anchor"
            return [f"saw {', '.join(unknown)}, wanted some of {wanted}{self._barred()}"]
        return self._mute(muted)

    def _mute(self, muted: frozenset[str]) -> list[str]:
        self.muted = muted & frozenset(self.experts)
        return self._listed()

    def _listed(self) -> list[str]:
        speaking = [name for name in self.experts if name not in self.muted]
        silent = f"; muted: {', '.join(self.excluded)}" if self.excluded else ""
        return [f"speaking: {', '.join([ANCHOR, *speaking])}{silent}{self._barred()}"]

    def _barred(self) -> str:
        return f"; not to be used with this key now: {', '.join(self.closed)}" if self.closed else ""

    def _who(self) -> list[str]:
        if self._mass is None:
            return ["nobody has spoken yet"]
        total = sum(self._mass.values())
        ranked = sorted(self._mass.items(), key=lambda item: (-item[1], item[0]))
        return [f"{name:<16} {100 * mass / total if total else 0.0:5.1f} %" for name, mass in ranked]

    def _forget(self, _: Sequence[str]) -> list[str]:
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._mass = None
        return ["begun anew"]

    def _quit(self, _: Sequence[str]) -> list[str]:
        self.over = True
        return []


def as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as a prompt, for models without a template of their own; an answer ends before `NEXT`."""
    said = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
    return "".join(said) + "Assistant:"


NEXT = "\nUser:"
