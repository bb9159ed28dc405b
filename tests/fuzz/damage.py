"""Damage to files: bits, lengths, types, and numbers that are legal in JSON but not in a file of kdkit."""

import json

from hypothesis import strategies as st

WORDS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    "1e999",
    "9" * 5000,
    "-0",
    "1.5",
    '""',
    "[]",
    "{}",
    '"\\ud800"',
]
WORDS += ["[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '"' + "x" * 100_000 + '"', '"\\u001b[2J"']
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.integers(0, 2**31), min_size=1, max_size=8)),
    st.tuples(st.just("cut"), st.integers(0, 2**31)),
    st.tuples(st.just("insert"), st.integers(0, 2**31), st.binary(max_size=40)),
    st.tuples(st.just("repeat"), st.integers(0, 2**31), st.integers(1, 200)),
    st.tuples(st.just("replace"), st.binary(max_size=200)),
    st.tuples(st.just("value"), st.integers(0, 2**31), VALUES),
    st.tuples(st.just("word"), st.integers(0, 2**31), st.sampled_from(WORDS)),
)


def damaged(content, damage):
    """Return the content of a file after damage."""
    kind, *details = damage
    if kind == "flip":
        changed = bytearray(content)
        for bit in details[0]:
            changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        return bytes(changed)
    if kind == "cut":
        return content[: details[0] % (len(content) + 1)]
    if kind == "insert":
        at = details[0] % (len(content) + 1)
        return content[:at] + details[1] + content[at:]
    if kind == "repeat":
        at = details[0] % len(content)
        return content[:at] + content[at : at + 9] * details[1] + content[at:]
    if kind == "replace":
        return details[0]
    replacement = details[1] if kind == "word" else json.dumps(details[1])
    return exchanged(content, details[0], replacement)


def exchanged(content, index, replacement):
    """Return JSON with one of its values exchanged; bytes that are no JSON unchanged."""
    try:
        lines = content.decode().splitlines()
        if len(lines) > 1 and lines[0] == "{":
            lines = [content.decode()]
        line = index % len(lines)
        value = json.loads(lines[line])
    except (ValueError, ZeroDivisionError):
        return content
    paths = [*_paths(value)]
    mark = "\0mark\0"
    path = paths[index // 7 % len(paths)]
    if not path:
        text = json.dumps(mark)
    else:
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = mark
        text = json.dumps(value)
    lines[line] = text.replace(json.dumps(mark), replacement)
    return "\n".join(lines).encode(errors="surrogatepass")


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))
