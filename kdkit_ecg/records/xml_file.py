"""Open ECGs in XML files (GE MUSE and HL7 aECG) with expat: ElementTree expands entities, which may fill the memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from kdkit import DataError
from kdkit_ecg.records.aecg import parse_aecg
from kdkit_ecg.records.muse import parse_muse
from kdkit_ecg.records.waveforms import EcgFile, WaveformSource, open_waveform
from kdkit_ecg.utils.messages import shown

MAX_XML_BYTES = 1 << 28  # a day of three leads has about this number

# Parsers, by the name of the outermost element.
_PARSERS: Mapping[str, Callable[[Element], EcgFile]] = MappingProxyType(
    {"RestingECG": parse_muse, "AnnotatedECG": parse_aecg}
)


def open_xml(path: Path) -> WaveformSource:
    """Return the record of an XML file of GE MUSE or HL7 aECG.

    Channels whose unit is not a unit of voltage are not read. Raises DataError, which names the file, if it cannot be
    read or is another XML file.
    """
    return open_waveform(path, parse_xml)


def parse_xml(path: Path) -> EcgFile:
    """Return the waveforms of a file. Raises DataError."""

    def refuse_entity(*_: object) -> None:  # an entity could expand to any size, or name another file
        raise DataError("it defines entities, which no ECG needs")

    if path.stat().st_size > MAX_XML_BYTES:
        raise DataError(f"expected at most {MAX_XML_BYTES:,} bytes, got {path.stat().st_size:,}")
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition(":")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(":")[2])  # without namespaces
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse_entity
    with path.open("rb") as file:
        try:
            parser.ParseFile(file)
        except expat.ExpatError as error:
            raise DataError(f"it is not a complete XML file: {error}") from error
    root = builder.close()
    if root.tag not in _PARSERS:
        philips = " (Philips, whose waveforms are compressed)" if root.tag == "restingecgdata" else ""
        raise DataError(
            f"expected the XML of GE MUSE (RestingECG) or HL7 aECG (AnnotatedECG), got {shown(root.tag)}{philips}; "
            "export it as one of these, or as DICOM"
        )
    return _PARSERS[root.tag](root)
