"""Damage files of weights: headers of safetensors, pickles in files of torch, and indices of several files."""

import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from kdkit.nets.weights import load_weights, read_state_dicts
from kdkit.utils.sealed import tensor_parts
from tests.fuzz.damage import DAMAGE, VALUES, damaged
from tests.fuzz.meter import for_inputs

SIZES = st.sampled_from([0, 1, 2, 3, 6, 7, 255, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, -1, 1.5])
DTYPES = ["F64", "F32", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "F6_E2M3", "X", "", None]
# A header of any tensors, with offsets that mostly do not fit.
TENSORS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(DTYPES), "shape": st.lists(SIZES, max_size=5)},
    optional={"data_offsets": st.lists(SIZES, min_size=1, max_size=3), "more": VALUES},
)
KEYS = st.sampled_from(
    ["weight", "bias", "module.weight", "__metadata__", "", "\0", "../weight", "\x1b[2J", "net." * 9000]
)
HEADERS = st.tuples(
    st.dictionaries(KEYS, st.one_of(TENSORS, TENSORS, VALUES), max_size=4),
    st.one_of(st.none(), SIZES),  # the length of the header, if it is not right
    st.binary(max_size=32),  # the content
)
# Parts of pickles that torch.save writes, and others that `weights_only` allows or has to refuse.
OPCODES = st.sampled_from(
    [
        *(bytes([op]) for op in b"(.0123NI}]){atuseb\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8f\x90\x93\x94Qq\x00\x01"),
        *(b"c%s\n" % name for name in (b"os\nsystem", b"builtins\neval", b"builtins\ngetattr", b"__builtin__\nexec")),
        *(b"c%s\n" % name for name in (b"collections\nOrderedDict", b"collections\nCounter", b"torch\nSize")),
        *(b"c%s\n" % name for name in (b"torch\nTensor", b"torch\nFloatStorage", b"torch\ndevice", b"builtins\nset")),
        *(b"ctorch._utils\n%s\n" % name for name in (b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor")),
        *(b"ctorch._utils\n%s\n" % name for name in (b"_rebuild_meta_tensor_no_storage", b"_rebuild_qtensor")),
        *(b"c%s\n" % name for name in (b"builtins\nbytearray", b"_codecs\nencode", b"argparse\nNamespace")),
        *(b"c%s\n" % name for name in (b"numpy\ndtype", b"numpy._core.multiarray\nscalar", b"pathlib\nPosixPath")),
        *(b"K" + bytes([number]) for number in (0, 1, 2, 255)),
        *(b"J" + number.to_bytes(4, "little", signed=True) for number in (-1, 2**31 - 1, 10**9)),
        *(b"\x8a\x08" + number.to_bytes(8, "little", signed=True) for number in (-1, 2**62, 2**63 - 1)),
        b"M\x02\x00", b"M\xff\xff", b"X\x06\x00\x00\x00weight", b"X\xff\xff\xff\x7f", b"X\x02\x00\x00\x00f4",
    ]
)  # fmt: skip
POSITIONS = st.integers(0, 2**16)
PICKLES = st.lists(st.tuples(POSITIONS, st.integers(0, 9), st.lists(OPCODES, max_size=3)), min_size=1, max_size=3)
SHARDS = ["a.safetensors", "b.bin", "../plain.pt", "/dev/zero", "model.safetensors.index.json", "none", "", ".", "\0"]
INDICES = st.one_of(
    st.dictionaries(KEYS, st.one_of(st.sampled_from(SHARDS), VALUES), max_size=4).map(
        lambda files: {"weight_map": files}
    ),
    VALUES,
)


def state():
    """Return tensors that fit the net, and one that another program may have saved."""
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2), "steps": torch.tensor(3)}


def base_files():
    """Return the content of valid files by their names."""
    contents = {}
    for name, legacy in (("plain.pt", False), ("legacy.bin", True)):
        buffer = io.BytesIO()
        content = {"state_dict": OrderedDict(state()), "epoch": 3, "ema": state()}
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
        contents[name] = buffer.getvalue()
    contents["plain.safetensors"] = save(state(), {"format": "pt"})
    contents["sealed.safetensors"] = b"".join(map(bytes, tensor_parts(state(), {"format": 2})))
    contents["pickle.pth"] = pickle.dumps({"weight": [1.0, 2.0]}, protocol=2)
    return contents


def with_header(header, size, content):
    """Return a safetensors file. size: that of the header as the file has it; the right one if None."""
    text = json.dumps(header).encode()
    number = len(text) if size is None or isinstance(size, float) else size % 2**64
    return number.to_bytes(8, "little") + text + content


def with_header_damaged(content, damage):
    """Return a safetensors file with a damaged header of the right length."""
    end = 8 + int.from_bytes(content[:8], "little")
    text = damaged(content[8:end].rstrip(), damage)
    return len(text).to_bytes(8, "little") + text + content[end:]


def with_pickle(content, edits):
    """Return a file of torch in whose pickle some bytes are replaced by opcodes."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return edited(content, edits)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            part = source.read(entry)
            target.writestr(entry.filename, edited(part, edits) if entry.filename.endswith("data.pkl") else part)
    return buffer.getvalue()


def edited(raw, edits):
    for position, length, opcodes in edits:
        start = position % (len(raw) + 1)
        raw = raw[:start] + b"".join(opcodes) + raw[start + length :]
    return raw


def fuzz(folder, meter, inputs, first_seed=0):
    """Read this many damaged files of weights, each as a net and `kdkit evaluate` do."""
    warnings.simplefilter("ignore")  # torch warns of deprecated types
    bases = base_files()
    torch_names = [name for name in bases if not name.endswith(".safetensors")]
    (folder / "a.safetensors").write_bytes(bases["plain.safetensors"])
    (folder / "b.bin").write_bytes(bases["plain.pt"])
    module = nn.Linear(3, 2)

    def read(name, content):
        file = folder / name
        file.write_bytes(content)
        meter.read(
            lambda: read_state_dicts(file, "net"),
            more=(
                lambda: load_weights(module, file, "net"),
                lambda: load_weights(module, file, "net", strict=False),
                lambda: load_weights(module, file, "net", key="ema"),
            ),
        )

    names = st.sampled_from(sorted(bases))
    cases = st.one_of(
        st.tuples(names, DAMAGE).map(lambda case: (case[0], damaged(bases[case[0]], case[1]))),
        st.tuples(st.sampled_from(["plain.safetensors", "sealed.safetensors"]), DAMAGE).map(
            lambda case: (case[0], with_header_damaged(bases[case[0]], case[1]))
        ),
        HEADERS.map(lambda header: ("made.safetensors", with_header(*header))),
        *[
            st.tuples(st.sampled_from(torch_names), PICKLES).map(
                lambda case: (case[0], with_pickle(bases[case[0]], case[1]))
            )
        ]
        * 2,
        INDICES.map(lambda index: ("model.safetensors.index.json", json.dumps(index).encode())),
    )

    @for_inputs(meter, inputs, first_seed, case=cases)
    def check(case):
        read(*case)
