"""Filters as clients send them, in OpenAI's form, checked and turned into those of the search."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.filters import AllOf, AnyOf, Comparator, Comparison, Filter

MAX_DEPTH = 8


class ComparisonBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Comparator
    key: str = Field(min_length=1, max_length=64)
    value: bool | float | str | list[bool | float | str]

    @model_validator(mode="after")
    def value_fits_type(self) -> "ComparisonBody":
        wants_list = self.type in (Comparator.IN, Comparator.NIN)
        if wants_list != isinstance(self.value, list):
            raise ValueError(f"'{self.type.value}' needs {'a list' if wants_list else 'a single value'}")
        return self


class CompoundBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["and", "or"]
    filters: list["FilterBody"] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def is_not_too_deep(self) -> "CompoundBody":
        if _depth(self) > MAX_DEPTH:
            raise ValueError(f"filters nest deeper than {MAX_DEPTH} levels")
        return self


FilterBody = Annotated[ComparisonBody | CompoundBody, Field(union_mode="smart")]


def to_filter(body: ComparisonBody | CompoundBody) -> Filter:
    if isinstance(body, CompoundBody):
        inner = tuple(to_filter(each) for each in body.filters)
        return AllOf(inner) if body.type == "and" else AnyOf(inner)
    value = tuple(body.value) if isinstance(body.value, list) else body.value
    return Comparison(comparator=body.type, key=body.key, value=value)


def _depth(body: ComparisonBody | CompoundBody) -> int:
    return 1 + max(map(_depth, body.filters)) if isinstance(body, CompoundBody) else 0
