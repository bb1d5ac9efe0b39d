"""Who asks: the one object that every catalog and search query takes. There is no query without it."""

from dataclasses import dataclass

from retrieval.tables import Role


@dataclass(frozen=True)
class Scope:
    """Made from a verified key, never from anything else in a request."""

    tenant_id: str
    key_id: str
    role: Role

    @property
    def may_write(self) -> bool:
        return self.role in (Role.WRITER, Role.ADMIN)

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN
