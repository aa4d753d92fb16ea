"""What `inmem doctor` has found so far: each thing that will hurt, or should be known, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inmem.errors import InmemError
from inmem.host.files import hint_of, text_of
from inmem.host.interrupts import let_through


@dataclass(frozen=True, slots=True)
class Symptom:
    """One finding: what it is about, what it is, and what to do; a note hurts nobody by itself."""

    is_problem: bool
    about: str
    text: str
    hint: str


class Diagnosis:
    """Collects symptoms. An error that is met while something is looked at is one of them."""

    def __init__(self) -> None:
        self.symptoms: list[Symptom] = []

    @property
    def is_well(self) -> bool:
        """Whether nothing will hurt."""
        return not any(symptom.is_problem for symptom in self.symptoms)

    def problem(self, about: str, text: str, hint: str) -> None:
        """Something that will hurt."""
        self._add(Symptom(True, about, text, hint))

    def note(self, about: str, text: str, hint: str) -> None:
        """Something that should be known."""
        self._add(Symptom(False, about, text, hint))

    def _add(self, symptom: Symptom) -> None:
        if symptom not in self.symptoms:  # two looks may meet one error
            self.symptoms.append(symptom)

    @contextmanager
    def looking_at(self, about: str) -> Iterator[None]:
        """What fails inside the block is a problem, with the hint that its error has."""
        try:
            yield
        except InmemError as error:
            self.problem(about, error.message, error.hint)
        except OSError as error:
            let_through(error)
            self.problem(about, text_of(error), hint_of(error))
