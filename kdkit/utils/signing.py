"""Sign texts with a key of this user, to recognize later what the user wrote on this machine."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from kdkit.utils.files import exists, write


def sign(text: str) -> str | None:
    """Return the signature of a text; None if there is no key and none can be saved."""
    key = _key(create=True)
    return None if key is None else hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_signed(text: str, signature: object) -> bool:
    """Whether a signature of this text was made with the key of this user."""
    key = _key(create=False)
    if key is None or not isinstance(signature, str):
        return False
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    # A signature that is not ASCII may have lone surrogates, which cannot be encoded.
    return hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))


def _key(*, create: bool) -> bytes | None:
    try:
        # The XDG base directory specification has this folder for the state of a user on one machine.
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        file = Path(state) / "kdkit" / "key"
        if create and not exists(file):
            write(file, secrets.token_bytes(32), mode=0o600)
        key = file.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError if the user has no home folder
        return None
    return key if len(key) == 32 else None
