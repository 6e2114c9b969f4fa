"""Public documents that resemble an owner's text, on which a router may be tuned in its stead.

A classifier of own against public text is made on the owner's machine and stays there, as do its scores. All that is
meant to leave is the ids of as many public documents as the charter asks for; docs/routing.md says what even those
reveal. No document is judged by a classifier that has seen it, and none is named that repeats the owner's own text.

    proxies = choose_proxies(own.train, public.train, count=200, seed=0)
    print("\\n".join(proxies.lines()))     # for the owner's eyes
    proxies.ids                           # what leaves

The method is FlexOlmo's (arXiv 2507.07024, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from motet.client.near_duplicates import apart
from motet.client.sampling import sample
from motet.protocols.errors import ConfigurationError, DataError
from motet.protocols.split import document_id

CONSIDERED_DOCUMENTS = 20_000
"""Documents of either text that the classifier sees, at most."""
FOLDS = 5
FEATURES = 1 << 18
PREVIEWED = 72
"""Characters of a document in the preview."""

_SCORE_DIGITS = 4
"""Scores that agree to so many decimals are ties: machines differ in the last bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """A public document, its id, and what stays at home: the log odds, classes balanced, that it is own text."""

    id: str
    score: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxies:
    """The public documents most like the owner's text, the most alike first, out of `considered`."""

    chosen: tuple[Proxy, ...]
    considered: int

    @property
    def ids(self) -> tuple[str, ...]:
        """What leaves: "sha256:…" of each chosen document, sorted, so that the order tells no score."""
        return tuple(sorted(proxy.id for proxy in self.chosen))

    def lines(self) -> list[str]:
        """What would leave, in full, and for the owner's eyes each document's score and first words."""
        alike = sum(proxy.score > 0 for proxy in self.chosen)
        return [
            f"{len(self.chosen)} ids of public documents would leave, sorted by themselves, and nothing else",
            f"chosen out of {self.considered}; {alike} of them look more like your text than like public text",
            *(f"{proxy.id}  {proxy.score:+6.2f}  {_first_words(proxy.text)}" for proxy in self.chosen),
        ]


def choose_proxies(own: Sequence[str], public: Sequence[str], *, count: int, seed: int) -> Proxies:
    """The `count` public documents that a classifier takes for own text most readily; ties go by id.

    Args:
        own: the owner's training documents.
        public: public documents to choose from: training ones, since a router tuned on held-out text is not scored.
        count: how many, the same for every owner, so that the number itself tells nothing.
        seed: another seed folds, and samples from more than `CONSIDERED_DOCUMENTS`, in another way.

    Raises:
        ConfigurationError: `count` is below 1, or scikit-learn is not installed.
        DataError: there is no own text, or less public text than that, copies of own text left out.
    """
    if count < 1:
        raise ConfigurationError(f"saw a count of {count} proxies, wanted 1 or more; to give none, do not choose any")
    mine = sample(own, CONSIDERED_DOCUMENTS, seed=seed)
    others = sample([public[index] for index in apart(public, own)], CONSIDERED_DOCUMENTS, seed=seed)
    wanted = max(count, FOLDS)
    if not mine or len(others) < wanted:
        raise DataError(
            f"saw {len(mine)} own documents and {len(others)} public ones that do not repeat them, wanted at least 1 "
            f"and {wanted}; give more text, or decline to name proxies"
        )
    scored = [
        Proxy(id=document_id(text), score=score, text=text)
        for text, score in zip(others, _cross_fitted(mine, others), strict=True)
    ]
    chosen = sorted(scored, key=lambda proxy: (-proxy.score, proxy.id))[:count]
    return Proxies(chosen=tuple(chosen), considered=len(others))


def require_classifier() -> None:
    """Raise ConfigurationError when scikit-learn, which judges the documents, is not installed."""
    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "saw no scikit-learn, wanted it to choose proxies; pip install 'motet[proxies]', or set proxies = false "
            "under [contribution] in owner.toml"
        ) from error


def _cross_fitted(own: Sequence[str], public: Sequence[str]) -> list[float]:
    """Log odds own : public of each public document, from a classifier fitted on own text and the other folds.

    `public` comes in the order of its hashes, so that every fifth document is a fold drawn at random.
    """
    rows = _vectorised([*own, *public])
    mine, everything = range(len(own)), range(len(own), len(own) + len(public))
    scores = [0.0] * len(public)
    for fold in range(FOLDS):
        judged = everything[fold::FOLDS]
        seen = [index for index in everything if index not in judged]
        classifier = _fit(rows[[*mine, *seen]], [1] * len(mine) + [0] * len(seen))
        for index, score in zip(judged, classifier.decision_function(rows[list(judged)]), strict=True):
            scores[index - len(own)] = round(float(score), _SCORE_DIGITS)
    return scores


def _vectorised(texts: Sequence[str]) -> Any:  # noqa: ANN401 - scikit-learn is untyped
    """Words and pairs of words counted, hashed and scaled to length 1, without a vocabulary: (texts, FEATURES)."""
    require_classifier()
    from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped]

    words = r"\w+"
    return HashingVectorizer(token_pattern=words, ngram_range=(1, 2), n_features=FEATURES).transform(texts)


def _fit(rows: Any, labels: Sequence[int]) -> Any:  # noqa: ANN401
    """Logistic regression: from a start at zero, without chance; balanced, so that the sizes of a fold shift nothing.

    Newton's method, since with more features than documents L-BFGS stops earlier and takes twice as long.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    return LogisticRegression(class_weight="balanced", solver="newton-cg", tol=1e-6, max_iter=1000).fit(rows, labels)


def _first_words(text: str) -> str:
    """The beginning of a document on one line, without characters that would steer a terminal."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= PREVIEWED else line[:PREVIEWED] + "…"
