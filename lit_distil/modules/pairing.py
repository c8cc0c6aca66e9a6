"""Which teacher each objective compares with."""

from __future__ import annotations

from dataclasses import dataclass

from lit_distil.objectives import Objective


@dataclass(frozen=True)
class Comparisons:
    """Which teacher each objective compares with.

    Attributes:
        objectives: By name.
        teachers: Names of all teachers.
        teacher_of: Names of objectives to the one teacher that they compare with.
    """

    objectives: dict[str, Objective]
    teachers: tuple[str, ...]
    teacher_of: dict[str, str]

    def teachers_of(self, name: str) -> tuple[str, ...]:
        """Those that an objective compares with: none, one, or the mean of all."""
        if not self.objectives[name].needs_teacher:
            return ()
        return (self.teacher_of[name],) if name in self.teacher_of else self.teachers

    def with_teacher(self, teacher: str) -> dict[str, Objective]:
        """The objectives that compare with a teacher, alone or among others."""
        return {name: one for name, one in self.objectives.items() if teacher in self.teachers_of(name)}

    def mixing(self, teacher: str) -> list[str]:
        """Names of those that compare with the mean of this teacher and others."""
        return [name for name in self.with_teacher(teacher) if len(self.teachers_of(name)) > 1]
