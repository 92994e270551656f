"""Settings files for the tests of reading and checking them."""

import pytest
from hypothesis import HealthCheck, settings

from engine.settings.layers import load_settings
from models.settings import UserError

BODY = "name: a\nmodel: {name: vit}\ndata: {name: digits}\n"
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(cfg, *overrides):
    with pytest.raises(UserError) as error:
        load_settings(str(cfg), list(overrides))
    line = str(error.value)
    assert "\n" not in line
    return line
