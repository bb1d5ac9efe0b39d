"""Groups of keys as clients name them: of a key, and as readers and writers of vector stores and documents."""

from typing import Annotated

from pydantic import Field, StringConstraints

Group = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,63}$")]
Groups = Annotated[list[Group], Field(min_length=1, max_length=64)]
