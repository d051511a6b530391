"""The base of every configuration section."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, values: Any) -> Any:
        """YAML reads ``on`` and ``yes`` as true, which would pass for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else bool
            if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
                raise ValueError(f"{name}={str(value).lower()} is a yes or no: give a number or a quoted text")
        return values


def changed(section: Section) -> set[str]:
    """The keys that differ from their defaults."""
    fields = type(section).model_fields
    return {name for name, field in fields.items() if getattr(section, name) != field.default}
