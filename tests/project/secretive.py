"""Tasks whose concurrency keys are made of what is hidden."""

from django.tasks import task


@task
def log_in(email: str, api_token: str) -> None: ...


log_in.func.concurrency_key = "login:{email}:{api_token}"
log_in.func.concurrency_limit = 1


@task
def by_token(token: str) -> None: ...


by_token.func.concurrency_limit = 1


@task
def by_function(password: str, user: str) -> None: ...


by_function.func.concurrency_key = lambda password, user: f"user:{user}/{password}"
by_function.func.concurrency_limit = 1
