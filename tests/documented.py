"""A client that holds every answer of the task API against its openapi.json."""

import re
from functools import cached_property
from typing import Any

from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator


class DocumentedClient(TestClient):
    """Fails where a documented operation answers what the document doesn't tell."""

    @cached_property
    def _document(self) -> dict[str, Any]:
        return self.app.openapi()

    def request(self, method: str, url: Any, **given: Any) -> Any:
        answer = super().request(method, url, **given)
        for told in (*answer.history, answer):
            self._check(told)
        return answer

    def _check(self, answer: Any) -> None:
        request = answer.request
        if request.url.host != self.base_url.host:
            return
        operation = self._operation(request.method.lower(), request.url.path)
        if operation is None:
            return
        said = f"{request.method} {request.url.path} answered {answer.status_code}"
        assert str(answer.status_code) in operation["responses"], f"{said}, which isn't documented"
        content = operation["responses"][str(answer.status_code)].get("content", {})
        if schema := content.get("application/json", {}).get("schema"):
            whole = schema | {"components": self._document["components"]}
            Draft202012Validator(whole).validate(answer.json())

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template, operations in self._document["paths"].items():
            pattern = re.escape(template).replace(r"\{name\}", ".+")
            if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", pattern), path):
                found: dict[str, Any] | None = operations.get(method)
                return found
        return None
