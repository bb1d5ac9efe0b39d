"""Reads e-books chapter by chapter, in the order in which their reader turns the pages."""

import posixpath
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from ingest.elements import Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.archives import check_package, damaged
from ingest.parse.build import DocumentBuilder
from ingest.parse.decoding import decode
from ingest.parse.documents import add_html


def parse_epub(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """An EPUB 2 or 3. Raises ParseFailed."""
    check_package(path)
    with zipfile.ZipFile(path) as book:
        members = set(book.namelist())
        if "META-INF/encryption.xml" in members and b"adept" in book.read("META-INF/encryption.xml"):
            raise ParseFailed(
                ParseFailure.ENCRYPTED,
                "This e-book is protected (DRM), and no password opens it. Upload a copy without protection.",
            )
        package_name = _first(_xml(book, "META-INF/container.xml"), "//*[local-name()='rootfile']/@full-path")
        if package_name not in members:
            raise damaged()
        package = _xml(book, package_name)
        builder = DocumentBuilder(title=_first(package, "//*[local-name()='title']/text()") or None)
        hrefs = {
            str(entry.get("id")): str(entry.get("href"))
            for entry in package.iterfind(".//{*}manifest/{*}item")
            if entry.get("media-type") in _CHAPTER_TYPES
        }
        folder = posixpath.dirname(package_name)
        for reference in package.iterfind(".//{*}spine/{*}itemref"):
            href = urllib.parse.unquote(hrefs.get(str(reference.get("idref")), ""))
            member = posixpath.normpath(posixpath.join(folder, href.partition("#")[0]))
            if member in members:
                add_html(builder, decode(book.read(member)))
                yield from builder.ready()
        yield from builder.finish()


_CHAPTER_TYPES = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml"}


def _xml(book: zipfile.ZipFile, member: str) -> etree._Element:
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        return etree.fromstring(book.read(member), parser)
    except (KeyError, etree.XMLSyntaxError) as error:
        raise damaged() from error


def _first(element: etree._Element, path: str) -> str:
    found = element.xpath(path)
    return str(found[0]).strip() if isinstance(found, list) and found else ""
