"""An engine that answers at once, for tests and for measuring everything around an engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable

from opengrm.engines.base import Completion, Request

Answer = Callable[[Request, int], str]


def boxed_scores_by_seed(request: Request, index: int) -> str:
    """A well-formed answer for as many responses as the prompt shows, random but fixed by the sample's seed."""
    n = request.messages[-1].content.count("[The Begin of Response ") or 1
    draw = random.Random(request.seeds[index])
    scores = ", ".join(str(draw.randint(1, 10)) for _ in range(n))
    head = "Specific Criteria: accuracy (60%), clarity (40%).\nAnalysis: compared one by one.\n"
    return f"{head}Scores: \\boxed{{{scores}}}"


class InstantEngine:
    """Completes every sample immediately, `shuffle` seeded for out-of-order completion within small groups."""

    def __init__(
        self,
        answer: Answer = boxed_scores_by_seed,
        *,
        model: str = "instant",
        shuffle: int | None = None,
        finish: str = "stop",
    ) -> None:
        self.model = model
        self.finish = finish
        self.asked = 0
        self._answer = answer
        self._random = None if shuffle is None else random.Random(shuffle)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        group: list[tuple[Request, int]] = []
        for request in requests:
            group.extend((request, i) for i in range(len(request.seeds)))
            if self._random is None or len(group) >= 64:
                yield from self._flush(group)
        yield from self._flush(group)

    def _flush(self, group: list[tuple[Request, int]]) -> Generator[Completion, None, None]:
        if self._random is not None:
            self._random.shuffle(group)
        while group:
            request, index = group.pop()
            self.asked += 1
            text = self._answer(request, index)
            count = len(text.split())
            yield Completion(request.id, index, text, self.finish, prompt_tokens=100, completion_tokens=count)

    def close(self) -> None:
        pass
