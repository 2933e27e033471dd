"""POST /v1/decisions: probabilities of fixed answers, read from the clean side at the place where a label would stand.

The probability of a label is that of the whole answer "label, end of turn", among all labels: softmax of the labels'
log likelihoods. Nothing is sampled.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from openmercury.server.errors import refused
from openmercury.server.request import check_model
from openmercury.server.service import Service
from openmercury.server.stream import while_connected
from openmercury.text import decide

router = APIRouter()

Told = str | dict[str, Any] | list[Any]
MOST_LABELS = 255


class NoulCriteria(BaseModel):
    """What the two answers stand for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    true: Told | None = None
    false: Told | None = None


class Asked(BaseModel):
    """What all questions have."""

    model_config = ConfigDict(strict=True, extra="forbid")

    instructions: Told | None = None


class Noul(Asked):
    """How likely is it true?"""

    type: Literal["noul"]
    criteria: NoulCriteria | None = None


class Choice(Asked):
    """Which label fits?"""

    type: Literal["choice"]
    criteria: Annotated[dict[Annotated[str, Field(min_length=1)], Told | None], Field(min_length=1, max_length=255)]


class Score(Asked):
    """Which of the levels, lowest first?"""

    type: Literal["score"]
    criteria: Annotated[list[Told], Field(min_length=1, max_length=MOST_LABELS)]


class DecisionRequest(BaseModel):
    """POST /v1/decisions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    state: Told
    questions: Annotated[
        dict[str, Annotated[Noul | Choice | Score, Field(discriminator="type")]], Field(min_length=1, max_length=255)
    ]


@router.post("/decisions")
async def decisions(request: Request, body: DecisionRequest) -> dict[str, Any]:
    """Answer questions about a state, each by itself."""
    service: Service = request.app.state.service
    check_model(body.model, service, request.app.state.settings)
    refuse_images(body.state, "state")
    for name, question in body.questions.items():
        refuse_images(question.instructions, f"questions.{name}.instructions")
    return await while_connected(request.receive, _answers(service, body))


async def _answers(service: Service, body: DecisionRequest) -> dict[str, Any]:
    llm, state = service.llm, _text(body.state)
    answers, read = {}, 0
    for name, asked in body.questions.items():
        question = decide.Question(_instructions(name, asked), _labels(asked))
        ids, labels = await asyncio.to_thread(decide.render, llm.tokenizer, state, question, llm.config.eos_ids[0])
        likelihoods = await service.engine.run(lambda ids=ids, labels=labels: llm.log_likelihoods(ids, labels))  # type: ignore[misc]
        answers[name] = answer(asked, dict(zip(question.labels, shares(likelihoods), strict=True)))
        read += len(ids)
    # Nothing is generated: labels are read where they would stand.
    return {"model": body.model, "answers": answers, "usage": {"input_tokens": read, "output_tokens": 0}}


def shares(likelihoods: Sequence[float]) -> list[float]:
    """Softmax."""
    most = max(likelihoods)
    odds = [math.exp(each - most) for each in likelihoods]
    return [each / sum(odds) for each in odds]


def answer(asked: Noul | Choice | Score, probabilities: dict[str, float]) -> dict[str, Any]:
    """A question's answer on the wire. A score is the mean of its levels, which count from 1."""
    if isinstance(asked, Noul):
        return {"type": "noul", "noul": probabilities["true"]}
    best = max(probabilities, key=probabilities.__getitem__)
    found = {"type": asked.type, "confidence": probabilities[best], "probabilities": probabilities}
    if isinstance(asked, Choice):
        return {**found, "choice": best}
    legend = {str(level): told for level, told in enumerate(asked.criteria, 1)}
    return {**found, "score": sum(int(level) * p for level, p in probabilities.items()), "legend": legend}


def refuse_images(given: object, where: str) -> None:
    """Raise ApiError for parts that are no text."""
    waiting = [given]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.get("type") == "image_url":
                raise refused(where, "holds an image: this model reads text only")
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _labels(asked: Noul | Choice | Score) -> dict[str, str | None]:
    if isinstance(asked, Score):
        return {str(level): _text(told) for level, told in enumerate(asked.criteria, 1)}
    told = {"true": None, "false": None} if isinstance(asked, Noul) else asked.criteria
    if isinstance(asked, Noul) and asked.criteria is not None:
        told = {"true": asked.criteria.true, "false": asked.criteria.false}
    return {label: None if each is None else _text(each) for label, each in told.items()}


def _instructions(name: str, asked: Asked) -> str:
    return name if asked.instructions is None else _text(asked.instructions)


def _text(given: Told) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
