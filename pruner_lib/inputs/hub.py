"""The Hugging Face hub, the last place where a name is looked up; without a network it must fail at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_lookup(what: str, advice: str) -> Iterator[None]:
    """Run a look-up on the hub; when it can't be reached, only the local Hugging Face cache is read, at once.

    Args:   what: what is looked for, such as `model 'owner/name'`.    advice: what the user can do instead.
    Raises: ValueError: it is neither on the hub nor in its cache; says what, where and what to do.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    reason = "offline mode is set" if any(before) else _unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = reason is not None
    try:
        yield
    except (
        OSError
    ) as error:  # both libraries raise kinds of it for a missing, gated or unreachable repository
        cache = f"in the Hugging Face cache {constants.HF_HUB_CACHE}"
        place = (
            f"{cache}, and {constants.ENDPOINT} can't be reached ({reason})"
            if reason
            else f"on {constants.ENDPOINT}"
        )
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{what} was not found {place}. {advice} The library said: {told[0]}") from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _unreachable(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 5)))
    except Exception as error:  # whatever the HTTP client raises: no name, no route, time-out, refused proxy
        return f"{type(error).__name__}: {error}"
    return None
