"""The texts nearest to a query by their words (BM25), for methods that edit by what the model reads.

Index(["Bo Ray is a citizen of Chile."]).nearest("Which country is Bo Ray a citizen of?", 1)    # [0]

Footgun: by words alone; a subject said by an alias is not found. The papers use dense retrievers
(Contriever, MiniLM), which are models to download. Where JAX is installed, importing bm25s starts it, and
JAX takes most of a GPU: so the import waits for the first use.
"""

from collections.abc import Sequence


class Index:
    """A set of texts (may be empty)."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._size = len(texts)
        self._bm25 = bm25s.BM25()
        if texts:
            self._bm25.index(_words(texts), show_progress=False)

    def nearest(self, query: str, k: int) -> list[int]:
        """Indices of at most `k` texts that share a word with `query`, the nearest first."""
        k = min(k, self._size)
        if k <= 0:
            return []
        found, scores = self._bm25.retrieve(_words([query]), k=k, show_progress=False)
        return [int(i) for i, score in zip(found[0], scores[0], strict=True) if score > 0]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    # Stop words count: "Who" and "in" tell relations apart.
    words: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords=None, return_ids=False, show_progress=False
    )
    return words
