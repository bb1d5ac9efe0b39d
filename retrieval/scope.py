"""Who asks: the one object that every catalog and search query takes. There is no query without it."""

from dataclasses import dataclass

from retrieval.tables import Role

RANKS = {role: rank for rank, role in enumerate((Role.READER, Role.WRITER, Role.ADMIN))}


@dataclass(frozen=True)
class Scope:
    """Made from a verified key, never from anything else in a request. What it sees, `retrieval.access` says."""

    tenant_id: str
    key_id: str
    role: Role
    groups: frozenset[str] = frozenset()
    keeps_nothing: bool = False
    """Zero data retention: nothing that it asks or is answered may be stored."""

    def may_act_as(self, role: Role) -> bool:
        """Each role includes those before it."""
        return RANKS[self.role] >= RANKS[role]

    @property
    def may_write(self) -> bool:
        return self.may_act_as(Role.WRITER)

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def cache_salt(self) -> str:
        """Keys of other groups do not share what was computed for one of them, nor see it in its speed."""
        if not self.groups:
            return self.tenant_id
        return "\n".join([self.tenant_id, *sorted(self.groups)])


def within(tenant_id: str, actor: str) -> Scope:
    """Of work of our own, which sees all of a tenant: ingestion, sweeps, upkeep."""
    return Scope(tenant_id=tenant_id, key_id=actor, role=Role.ADMIN)
