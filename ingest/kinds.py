"""The kinds of file that are read: their MIME types, the endings of their names, and what people call them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class MediaType(StrEnum):
    """The kinds of file that can be parsed, as MIME types."""

    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    DOC = "application/msword"
    PPT = "application/vnd.ms-powerpoint"
    XLS = "application/vnd.ms-excel"
    ODT = "application/vnd.oasis.opendocument.text"
    ODP = "application/vnd.oasis.opendocument.presentation"
    ODS = "application/vnd.oasis.opendocument.spreadsheet"
    RTF = "application/rtf"
    EPUB = "application/epub+zip"
    MSG = "application/vnd.ms-outlook"
    EML = "message/rfc822"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    RST = "text/x-rst"
    ORG = "text/x-org"
    ASCIIDOC = "text/asciidoc"
    LATEX = "application/x-tex"
    CSV = "text/csv"
    TSV = "text/tab-separated-values"
    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    NOTEBOOK = "application/x-ipynb+json"
    XML = "application/xml"
    VTT = "text/vtt"
    SRT = "application/x-subrip"
    CODE = "text/x-source-code"
    TEXT = "text/plain"
    PNG = "image/png"
    JPEG = "image/jpeg"
    TIFF = "image/tiff"
    BMP = "image/bmp"
    WEBP = "image/webp"
    GIF = "image/gif"
    ZIP = "application/zip"
    TAR = "application/x-tar"
    """Compressed or not."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind that is not read."""

    name: str
    """As in "The file holds a RAR archive"."""
    advice: str = ""
    """What its owner can do, as a sentence."""


KIND_NAMES: Mapping[MediaType, str] = MappingProxyType(
    {
        MediaType.PDF: "a PDF document",
        MediaType.DOCX: "a Word document (docx)",
        MediaType.PPTX: "a PowerPoint presentation (pptx)",
        MediaType.XLSX: "an Excel workbook (xlsx)",
        MediaType.DOC: "a Word 97-2003 document (doc)",
        MediaType.PPT: "a PowerPoint 97-2003 presentation (ppt)",
        MediaType.XLS: "an Excel 97-2003 workbook (xls)",
        MediaType.ODT: "an OpenDocument text (odt)",
        MediaType.ODP: "an OpenDocument presentation (odp)",
        MediaType.ODS: "an OpenDocument spreadsheet (ods)",
        MediaType.RTF: "an RTF document",
        MediaType.EPUB: "an e-book (epub)",
        MediaType.MSG: "an Outlook message (msg)",
        MediaType.HTML: "an HTML page",
        MediaType.XML: "an XML document",
        MediaType.VTT: "WebVTT subtitles",
        MediaType.CODE: "a script",
        MediaType.TEXT: "plain text",
        MediaType.PNG: "a PNG image",
        MediaType.JPEG: "a JPEG image",
        MediaType.TIFF: "a TIFF image",
        MediaType.BMP: "a BMP image",
        MediaType.WEBP: "a WebP image",
        MediaType.GIF: "a GIF image",
        MediaType.ZIP: "a zip archive",
        MediaType.TAR: "a tar archive",
    }
)
"""All that content alone can tell."""

CODE_EXTENSIONS = (
    *(
        ".py",
        ".pyi",
        ".js",
        ".mjs",
        ".cjs",
        ".jsx",
        ".ts",
        ".tsx",
        ".java",
        ".kt",
        ".kts",
        ".scala",
        ".groovy",
    ),
    *(
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hpp",
        ".hh",
        ".m",
        ".mm",
        ".cs",
        ".fs",
        ".vb",
        ".go",
        ".rs",
        ".swift",
    ),
    *(".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".dart", ".ex", ".exs", ".erl", ".hs", ".ml", ".clj"),
    *(
        ".lisp",
        ".el",
        ".sh",
        ".bash",
        ".zsh",
        ".fish",
        ".ps1",
        ".bat",
        ".cmd",
        ".sql",
        ".css",
        ".scss",
        ".less",
    ),
    *(
        ".vue",
        ".svelte",
        ".proto",
        ".tf",
        ".cmake",
        ".gradle",
        ".asm",
        ".s",
        ".zig",
        ".nim",
        ".v",
        ".vhd",
        ".sol",
    ),
)

EXTENSIONS: Mapping[str, MediaType] = MappingProxyType(
    {
        ".pdf": MediaType.PDF,
        ".docx": MediaType.DOCX,
        ".pptx": MediaType.PPTX,
        ".xlsx": MediaType.XLSX,
        ".doc": MediaType.DOC,
        ".ppt": MediaType.PPT,
        ".xls": MediaType.XLS,
        ".odt": MediaType.ODT,
        ".odp": MediaType.ODP,
        ".ods": MediaType.ODS,
        ".rtf": MediaType.RTF,
        ".epub": MediaType.EPUB,
        ".msg": MediaType.MSG,
        ".eml": MediaType.EML,
        ".html": MediaType.HTML,
        ".htm": MediaType.HTML,
        ".xhtml": MediaType.HTML,
        ".md": MediaType.MARKDOWN,
        ".markdown": MediaType.MARKDOWN,
        ".rst": MediaType.RST,
        ".org": MediaType.ORG,
        ".adoc": MediaType.ASCIIDOC,
        ".asciidoc": MediaType.ASCIIDOC,
        ".tex": MediaType.LATEX,
        ".csv": MediaType.CSV,
        ".tsv": MediaType.TSV,
        ".tab": MediaType.TSV,
        ".json": MediaType.JSON,
        ".ndjson": MediaType.NDJSON,
        ".jsonl": MediaType.NDJSON,
        ".ipynb": MediaType.NOTEBOOK,
        ".xml": MediaType.XML,
        ".nxml": MediaType.XML,
        ".vtt": MediaType.VTT,
        ".srt": MediaType.SRT,
        ".txt": MediaType.TEXT,
        ".png": MediaType.PNG,
        ".jpg": MediaType.JPEG,
        ".jpeg": MediaType.JPEG,
        ".tif": MediaType.TIFF,
        ".tiff": MediaType.TIFF,
        ".bmp": MediaType.BMP,
        ".webp": MediaType.WEBP,
        ".gif": MediaType.GIF,
        ".zip": MediaType.ZIP,
        ".tar": MediaType.TAR,
        ".tgz": MediaType.TAR,
        ".tbz2": MediaType.TAR,
        ".txz": MediaType.TAR,
        ".tar.gz": MediaType.TAR,
        ".tar.bz2": MediaType.TAR,
        ".tar.xz": MediaType.TAR,
        **dict.fromkeys(CODE_EXTENSIONS, MediaType.CODE),
    }
)
"""What a name promises. A text with any other ending is read as plain text."""

FOREIGN_EXTENSIONS = frozenset(
    {
        *(
            ".docm",
            ".xlsm",
            ".pptm",
            ".xlsb",
            ".odg",
            ".pages",
            ".numbers",
            ".key",
            ".heic",
            ".svgz",
            ".psd",
            ".eps",
        ),
        *(
            ".gz",
            ".bz2",
            ".xz",
            ".7z",
            ".rar",
            ".zst",
            ".jar",
            ".apk",
            ".iso",
            ".dmg",
            ".exe",
            ".dll",
            ".so",
            ".class",
            ".wasm",
            ".o",
        ),
        *(
            ".parquet",
            ".feather",
            ".h5",
            ".sqlite",
            ".db",
            ".pkl",
            ".pickle",
            ".joblib",
            ".npy",
            ".npz",
            ".pt",
            ".pth",
        ),
        *(".safetensors", ".onnx", ".mp3", ".mp4", ".wav", ".mov", ".avi", ".mkv", ".ogg", ".flac", ".m4a"),
    }
)
"""Names that promise something which is not read, so that a text with such a name is no text to its owner."""
