"""What is kept, in the console: zero data retention of the tenant and of keys, and for how long the audit log stays."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import func, select

from app.access.retention import NONE, set_retention
from app.console.keys import must_be_promised
from app.console.session import SignedInAdmin
from app.console.views import ConsoleRoute, views_of
from app.routes.caller import UseServices
from retrieval.tables import AuditEntry, Key, Tenant

router = APIRouter(prefix="/console/admin/retention", include_in_schema=False, route_class=ConsoleRoute)

MOST_KEYS = 200


@router.get("")
def retention_page(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    of_tenant = Key.tenant_id == visitor.scope.tenant_id
    with services.database.read() as session:
        tenant = session.get_one(Tenant, visitor.scope.tenant_id)
        keeping_nothing = session.scalars(
            select(Key).where(of_tenant, Key.keeps_nothing, Key.revoked_at.is_(None)).limit(MOST_KEYS)
        ).all()
        of_log = AuditEntry.tenant_id == tenant.id
        count = session.scalar(select(func.count()).where(of_log))
        oldest = session.scalar(select(AuditEntry.time).where(of_log).order_by(AuditEntry.seq).limit(1))
    return views_of(request).page(
        "retention.html",
        visitor,
        tenant=tenant,
        keys=keeping_nothing,
        obstacles=services.retention.obstacles(),
        keep_days=services.settings.audit.keep_days,
        entries=count,
        oldest=oldest,
    )


@router.post("")
def change_retention(
    services: UseServices, visitor: SignedInAdmin, retention: Annotated[str, Form()] = ""
) -> Response:
    """Of all keys of the tenant."""
    keeps_nothing = retention == NONE
    if keeps_nothing:
        must_be_promised(services)
    with services.database.write() as session:
        tenant = session.get_one(Tenant, visitor.scope.tenant_id)
        set_retention(session, tenant, keeps_nothing=keeps_nothing, by=visitor.scope)
    return Response(headers={"HX-Refresh": "true"})
