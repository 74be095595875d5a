"""The column of a job's id."""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper


def collation(connection: Any) -> str:
    """What MySQL and MariaDB compare the queue's texts by, without padding: it tells "email" from "email "."""
    return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"


class JobIdField(models.UUIDField):  # type: ignore[type-arg]
    """Says which collation its column has, so that Django gives it to a foreign key that leads there."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql" and not connection.features.has_native_uuid_field:
            return {**parameters, "collation": collation(connection)}
        return parameters
