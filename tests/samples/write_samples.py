"""Writes the sample documents of the invented Vellmouth archive whose formats are binary: PDF, Word, Excel, PowerPoint.

Run as `python tests/samples/write_samples.py`; the files land in data/samples/, beside the hand-written text formats.
A rerun writes the same bytes: PDFs in reportlab's invariant mode, Office files with fixed dates inside and in the zip.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import docx
import openpyxl
import pptx
from openpyxl.styles import Alignment, Font, PatternFill
from pptx.util import Cm, Pt
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import B5
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, KeepTogether, PageTemplate, Spacer
from reportlab.platypus import PageBreak as PdfPageBreak
from reportlab.platypus import Paragraph as PdfParagraph
from reportlab.platypus import Table as PdfTable

FOLDER = Path(__file__).resolve().parents[2] / "data" / "samples"
ARCHIVE = "Vellmouth Seed and Scroll Archive"
WRITTEN_AT = datetime(2025, 2, 3, 9, tzinfo=UTC)


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullet:
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PageBreak:
    pass


Block = Heading | Paragraph | Bullet | Table | PageBreak


def write_samples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writers: tuple[tuple[str, Callable[[Path, list[Block]], None], str], ...] = (
        ("icehouse-vault-manual.pdf", write_pdf, ICEHOUSE_VAULT_MANUAL),
        ("visitor-leaflet.pdf", write_pdf, VISITOR_LEAFLET),
        ("scroll-conservation-handbook.docx", write_docx, SCROLL_CONSERVATION_HANDBOOK),
        ("annual-report-2024.docx", write_docx, ANNUAL_REPORT_2024),
        ("project-lantern-plan.pptx", write_pptx, PROJECT_LANTERN_PLAN),
        ("germination-tests-2024.xlsx", write_xlsx, GERMINATION_TESTS_2024),
    )
    for name, write, text in writers:
        write(folder / name, read_blocks(text))
        print(folder / name)


def read_blocks(text: str) -> list[Block]:
    """Reads the small markup of the texts below: `#` headings, `-` bullets, `|` table rows, `---` page breaks."""
    blocks: list[Block] = []
    for part in text.strip().split("\n\n"):
        lines = part.splitlines()
        if part == "---":
            blocks.append(PageBreak())
        elif part.startswith("#"):
            marks, title = part.split(" ", 1)
            blocks.append(Heading(len(marks), title))
        elif part.startswith("- "):
            blocks.extend(Bullet(line) for line in " ".join(lines).removeprefix("- ").split(" - "))
        elif part.startswith("| "):
            rows = (tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines)
            blocks.append(Table(tuple(rows)))
        else:
            blocks.append(Paragraph(" ".join(lines)))
    return blocks


def first_heading(blocks: list[Block]) -> str:
    return next(block.text for block in blocks if isinstance(block, Heading))


# PDF

SEA, MIST, INK = HexColor("#14505c"), HexColor("#e6f0f1"), HexColor("#22303a")
BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10.5, leading=15.5, spaceAfter=7, textColor=INK)
BULLET = ParagraphStyle("bullet", BODY, leftIndent=12, bulletIndent=2, spaceAfter=3)
HEADINGS = {
    1: ParagraphStyle("h1", fontName="Helvetica-Bold", fontSize=21, leading=26, spaceAfter=8, textColor=SEA),
    2: ParagraphStyle("h2", fontName="Helvetica-Bold", fontSize=15, leading=20, spaceAfter=6, textColor=SEA),
    3: ParagraphStyle(
        "h3", fontName="Helvetica-Bold", fontSize=11.5, leading=16, spaceBefore=7, spaceAfter=3
    ),
}


def write_pdf(path: Path, blocks: list[Block]) -> None:
    title = first_heading(blocks)

    def draw_edges(canvas: Canvas, template: BaseDocTemplate) -> None:
        width, height = B5
        canvas.setFillColor(SEA)
        canvas.rect(0, height - 8 * mm, width, 8 * mm, stroke=0, fill=1)
        canvas.setFont("Helvetica", 8)
        canvas.drawString(20 * mm, 12 * mm, f"{ARCHIVE} - {title}")
        canvas.drawRightString(width - 20 * mm, 12 * mm, f"Page {template.page}")

    template = BaseDocTemplate(str(path), pagesize=B5, title=title, author=ARCHIVE, invariant=1)
    frame = Frame(20 * mm, 18 * mm, B5[0] - 40 * mm, B5[1] - 36 * mm, 0, 0, 0, 0)
    # Drawn at the page's end, so that the footer is the last text on a page for those who read the text in file order.
    template.addPageTemplates(PageTemplate(frames=[frame], onPageEnd=draw_edges))
    template.build([flowable for block in blocks for flowable in pdf_flowables(block)])


def pdf_flowables(block: Block) -> list[Flowable]:
    match block:
        case Heading(level, text):
            return [PdfParagraph(text, HEADINGS[level])]
        case Paragraph(text):
            return [PdfParagraph(text, BODY)]
        case Bullet(text):
            return [PdfParagraph(text, BULLET, bulletText="\u2022")]
        case Table(rows):
            return [KeepTogether([pdf_table(rows), Spacer(0, 8)])]
        case PageBreak():
            return [PdfPageBreak()]


def pdf_table(rows: tuple[tuple[str, ...], ...]) -> PdfTable:
    table = PdfTable(rows, hAlign="LEFT", repeatRows=1)
    table.setStyle([
        ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8.5),
        ("FONT", (0, 1), (-1, -1), "Helvetica", 8.5),
        ("TEXTCOLOR", (0, 0), (-1, 0), HexColor("#ffffff")),
        ("BACKGROUND", (0, 0), (-1, 0), SEA),
        ("ROWBACKGROUNDS", (0, 1), (-1, -1), [HexColor("#ffffff"), MIST]),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, SEA),
        ("TOPPADDING", (0, 0), (-1, -1), 4),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
    ])  # fmt: skip
    return table


# Office


def write_docx(path: Path, blocks: list[Block]) -> None:
    document = docx.Document()
    properties = document.core_properties
    properties.title, properties.author = first_heading(blocks), ARCHIVE
    for block in blocks:
        match block:
            case Heading(level, text):
                document.add_heading(text, level)
            case Paragraph(text):
                document.add_paragraph(text)
            case Bullet(text):
                document.add_paragraph(text, style="List Bullet")
            case Table(rows):
                table = document.add_table(len(rows), len(rows[0]), style="Light Grid Accent 1")
                for table_row, cells in zip(table.rows, rows, strict=True):
                    for table_cell, text in zip(table_row.cells, cells, strict=True):
                        table_cell.text = text
                document.add_paragraph()
            case PageBreak():
                pass  # only the PDFs promise which page a fact is on
    document.save(str(path))
    freeze_office_file(path)


def write_pptx(path: Path, blocks: list[Block]) -> None:
    """Each heading starts a slide; its bullets follow, and a table takes the lower half."""
    deck = pptx.Presentation()
    deck.core_properties.title, deck.core_properties.author = first_heading(blocks), ARCHIVE
    for block in blocks:
        match block:
            case Heading(level, text):
                layout_title_only, layout_bullets = deck.slide_layouts[0], deck.slide_layouts[1]
                slide = deck.slides.add_slide(layout_title_only if level == 1 else layout_bullets)
                slide.shapes.title.text = text
                text_frame = slide.placeholders[1].text_frame
            case Paragraph(text) | Bullet(text):
                paragraph = text_frame.paragraphs[0] if not text_frame.text else text_frame.add_paragraph()
                paragraph.text, paragraph.font.size = text, Pt(20)
            case Table(rows):
                frame = slide.shapes.add_table(len(rows), len(rows[0]), Cm(1.5), Cm(10.5), Cm(22), Cm(6))
                for row, cells in enumerate(rows):
                    for column, text in enumerate(cells):
                        frame.table.cell(row, column).text = text
            case PageBreak():
                pass  # each heading starts a slide already
    deck.save(str(path))
    freeze_office_file(path)


def write_xlsx(path: Path, blocks: list[Block]) -> None:
    """Each heading starts a sheet; paragraphs and table rows fill it from the top. Whole numbers become numbers."""
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    workbook.properties.title, workbook.properties.creator = first_heading(blocks), ARCHIVE
    for block in blocks:
        match block:
            case Heading(_, text):
                sheet = workbook.create_sheet(text)
            case Paragraph(text) | Bullet(text):
                sheet.append([text])
            case Table(rows):
                header_row = sheet.max_row + 1
                for cells in rows:
                    sheet.append([int(cell) if cell.isdigit() else cell for cell in cells])
                for cell in sheet[header_row]:
                    cell.font, cell.fill = Font(bold=True), PatternFill("solid", "E6F0F1")
                for column in sheet.iter_cols(min_row=header_row):
                    longest = max(len(str(cell.value)) for cell in column)
                    sheet.column_dimensions[column[0].column_letter].width = min(longest + 2, 60)
                    for cell in column:
                        cell.alignment = Alignment(vertical="top", wrap_text=True)
            case PageBreak():
                pass  # each heading starts a sheet already
    workbook.save(path)
    freeze_office_file(path)


def freeze_office_file(path: Path) -> None:
    """Replaces the time of writing, which the libraries put into the zip and into docProps/core.xml."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    written_at = rb"\g<1>" + WRITTEN_AT.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            is_properties = name == "docProps/core.xml"
            frozen = re.sub(rb"(<dcterms:\w+[^>]*>)[^<]*", written_at, content) if is_properties else content
            archive.writestr(zipfile.ZipInfo(name, WRITTEN_AT.timetuple()[:6]), frozen, zipfile.ZIP_DEFLATED)


# Texts

ICEHOUSE_VAULT_MANUAL = """
# Icehouse Vault Operations Manual

Edition 7, in force from 3 February 2025. Edition 7 replaces edition 6 of 12 February 2024.

## 1. Purpose, building and people

The Vellmouth Seed and Scroll Archive keeps seeds and scrolls on Lantern Quay in the harbour of Vellmouth. The seeds
lie in the Icehouse, a granite building at the north end of the quay. This manual describes how the Icehouse is run by
day and by night. This manual binds staff, volunteers and contractors alike.

### The building

The Icehouse was built in 1958 inside the walls of an older fish store. The granite walls of the Icehouse are 1.2
metres thick. The Icehouse has four rooms: the plant room, the antechamber, the drying room and the seed vault. The
seed vault has nine aisles, which carry the letters A to I. The seed vault has room for 16,200 accession boxes.

An accession is one sample of seeds from one depositor, gathered at one place in one season. Each accession has one
number, which begins with the letter V, and one box in the seed vault.

### The people

- The Vault Engineer is Tamsin Orrey, on extension 27.
- The Seed Curator is Perpetua Lund, on extension 31.
- The Night Warden is Bram Tolliver, on extension 5.
- The Keeper of the archive is Ottoline Brask, on extension 10.

The Vault Engineer decides on everything that concerns machines. The Seed Curator decides on everything that concerns
seeds. In an emergency, the first trained person on the spot decides until one of these two people arrives. The Vault
Engineer reviews this manual every February and sends proposed changes to the Keeper.

---

## 2. Climate

The Icehouse keeps the seed vault at minus 21 degrees Celsius. The permitted range in the seed vault is from minus 23
to minus 19 degrees Celsius. The antechamber is kept at 4 degrees Celsius, so that people and boxes warm up slowly. The
drying room is kept at 15 degrees Celsius and at 14 percent relative humidity.

### Measuring

Eleven loggers of model DL-9 record the temperature in the seed vault. Each logger takes one reading every 4 minutes.
The archive keeps the logger readings for 25 years. Logger L5 hangs in aisle E, which is the warmest place in the seed
vault. When two loggers in the same aisle differ by more than 0.8 degrees, the Vault Engineer replaces both loggers.

### Frost

Frost on the shelves slows down the air. Staff scrape frost away when the layer is thicker than 6 millimetres. Frost is
scraped with a wooden paddle. Metal scrapers are forbidden in the seed vault because metal scrapers tear the foil bags.

### Working in the cold

A person may stay in the seed vault for at most 35 minutes at a time. After each stay in the seed vault, the person
rests in the warm for 20 minutes. Everyone in the seed vault wears an orange parka of type PK-7 and lined gloves. The
lights in the seed vault go out after 6 minutes without movement. A red cord along each aisle switches the lights on
again and also rings the bell in the antechamber.

---

## 3. Cooling plant

Two chillers cool the Icehouse. The chillers are named Heron and Plover. Both chillers are of model HX-40 and were made
by Tollgarth Works. One chiller runs while the other chiller stands by. Each chiller holds 38 kilograms of carbon
dioxide as its refrigerant.

### The weekly switch

The Vault Engineer switches from one chiller to the other every Tuesday at 10:00. The switch has five steps.

- Step 1: read the oil pressure of the resting chiller, which must lie between 2.8 and 3.6 bar.
- Step 2: open the blue valve of the resting chiller by two full turns.
- Step 3: start the resting chiller and wait for 9 minutes.
- Step 4: stop the running chiller and close its blue valve.
- Step 5: write the time and both oil pressures on form IH-1.

### Defrosting

Each running chiller defrosts itself every 8 hours. One defrost lasts 22 minutes. A defrost warms the seed vault by less
than 1 degree, and this is no reason for concern.

### Wear and spare parts

The chiller oil is changed after every 2,600 running hours. The compressor seal of each chiller has the part number
TG-4417-B and is replaced every three years. The oil filter has the part number TG-2208 and is replaced at each oil
change. The spare parts for the chillers lie in cabinet 3 of the plant room. The archive keeps at least two compressor
seals and four oil filters in stock.

Only the Vault Engineer and the technicians of Tollgarth Works may open the refrigerant circuit.

---

## 4. Alarms

The alarm panel of the Icehouse hangs beside the antechamber door. The panel shows a code, rings a bell and sends the
code by radio to the Lamp Tower. The person on watch silences the bell with the grey button, reads the code, and takes
the first action from table 1 within the time in the last column.

### Table 1: alarm codes

| Code | Meaning | First action | Act within |
| ICE-101 | Vault warmer than minus 19 degrees | Start the standby chiller | 15 minutes |
| ICE-104 | Vault warmer than minus 15 degrees | Begin the cold-box drill | 5 minutes |
| ICE-212 | Drying room humidity above 18 percent | Change filter DF-615 | 4 hours |
| ICE-230 | Antechamber door left open | Close and latch the inner door | 10 minutes |
| ICE-305 | Chiller oil pressure too low | Stop the chiller and switch over | 15 minutes |
| ICE-317 | Refrigerant leak in the plant room | Leave and start the roof fan | 2 minutes |
| ICE-417 | Sump pump blocked | Open drain valve D6 | 45 minutes |
| ICE-420 | Storm gate not shut | Wind the gate shut by hand | 20 minutes |
| ICE-509 | Logger battery low | Fit a new B-22 battery pack | 2 days |
| ICE-611 | Radio link to the Lamp Tower lost | Telephone extension 9 | 1 hour |

### The cold-box drill

The cold-box drill saves the base collection when both chillers fail. The base collection is the 480 oldest accession
boxes, and the base collection stands in aisle A. Four people carry the base collection into 24 cold boxes of type
CB-24. A closed cold box keeps seeds below minus 10 degrees Celsius for 16 hours. The drill must be finished within 50
minutes.

A false alarm is also written down. Three false alarms with the same code in one month are reported to the Keeper.

---

## 5. Power failure and flood

### Power failure

The generator of the Icehouse is named Old Maud. Old Maud stands on the roof of the plant room and delivers 60
kilowatts. Old Maud starts by herself within 45 seconds after the mains fail. A full tank holds 900 litres of diesel. A
full tank keeps Old Maud running for 62 hours.

The Night Warden orders more diesel when the tank falls below 350 litres. Old Maud is tested on the first Monday of
every month at 09:30, with a load of at least 40 kilowatts for 20 minutes.

When the mains and Old Maud both fail, the doors of the seed vault stay shut. With shut doors the seed vault warms up by
about 1 degree in 5 hours.

### Flood

The floor of the Icehouse lies 4.6 metres above the harbour zero. The storm gate in front of the Icehouse is shut when
the forecast tide is higher than 3.4 metres. The winch of the storm gate has the part number SG-34. One person needs 14
minutes to wind the storm gate shut by hand.

When the tide passes 3.4 metres, the Night Warden also does three things.

- The Night Warden sets the flood boards FD-19 into the plant room door.
- The Night Warden switches the sump pump SP-220 to permanent running.
- The Night Warden reports the tide to the Lamp Tower every 30 minutes on radio channel 12.

The Icehouse is left by everyone when the tide passes 4.3 metres. The meeting point is the bell post on Cooper's Hill.

---

## 6. Seeds in and seeds out

### Taking seeds in

A depositor sends at least 600 seeds for each accession. Every new accession rests in quarantine for 21 days in the
Ropewalk. After quarantine, the seeds dry in the drying room until their moisture is 5.5 percent. Drying takes between
30 and 70 days for most crops.

Dry seeds are packed in foil bags of type FB-140. One foil bag holds at most 140 grams. Each foil bag is closed with the
heat sealer HS-3 at 165 degrees Celsius. Two labels are written with a carbon pen: one label lies inside the foil bag
and one label is glued outside.

### Testing

The Seed Curator tests the germination of every accession once in seven years. One test uses 100 seeds from the
accession. An accession that germinates below 85 percent is grown again in the next season. The new seeds are grown on
Gull Field, the trial ground of the archive behind Cooper's Hill.

### Giving seeds out

A grower may receive at most 30 seeds of one accession in one year. Seeds are sent out on Thursdays only. The Seed
Curator signs form CP-9 for each parcel of seeds. No seeds leave an accession that holds fewer than 250 seeds.

Before a foil bag is opened, the foil bag stands in the antechamber for 24 hours. A cold foil bag that is opened too
early draws water from the air, and the seeds lose years of life.

---

## 7. Doors, keys and visitors

### The two-person rule

Nobody enters the seed vault alone. The second person may wait in the antechamber but must see the vault door at all
times. The two-person rule has no exception for the Keeper.

### Keys and codes

The seed vault has three brass keys. The first brass key is carried by the Vault Engineer. The second brass key is
carried by the Seed Curator. The third brass key lies in a sealed envelope in the safe of the Customs House. A broken
seal is reported to the Keeper on the same day.

The antechamber door has a six-digit code. The code is changed on the first working day of each quarter. The Vault
Engineer tells the new code to each authorised person by word of mouth. The code is never written down or sent by mail.

A lost brass key costs the archive a new lock. The Vault Engineer changes the lock within 8 hours after a loss.

### Visitors and contractors

Visitors on a tour may enter the antechamber but not the seed vault. A tour group in the Icehouse has at most 12
visitors. Contractors sign the visitor book and wear a yellow badge. A member of staff stays with each contractor for
the whole visit.

Food, open drinks and scented hand cream are forbidden in the whole Icehouse. Telephones stay in the lockers of the
antechamber. The antechamber has 16 lockers.

---

## 8. Maintenance and records

Table 2 lists the regular work in the Icehouse. Work that falls on a holiday is done on the next working day.

### Table 2: maintenance calendar

| Task | How often | Form | Done by |
| Switch the chillers | Every Tuesday | IH-1 | Vault Engineer |
| Test the generator | First Monday of the month | IH-2 | Night Warden |
| Rinse the sump and the pump | Every six weeks | IH-3 | Night Warden |
| Replace the dehumidifier filter | Every four months | IH-4 | Seed Curator |
| Calibrate the loggers | Every year in May | IH-5 | Vault Engineer |
| Replace the vault door gasket | Every 18 months | IH-6 | Vault Engineer |
| Hold the cold-box drill | March and September | IH-7 | Keeper |

### Records

Forms are filled in with a carbon pen. The forms of the Icehouse are kept for 40 years in the green chests of the
Customs House. The Vault Engineer reads all forms of the past month on the first Friday of the month and signs them.

### Training

New staff take the Icehouse course before their first shift. The Icehouse course lasts two days and ends with a
practical test. The practical test asks for one chiller switch, one cold-box drill and the answers to five alarm codes.
The certificate of the Icehouse course is valid for three years.

### Changes since edition 6

Edition 7 lowers the tide at which the storm gate is shut from 3.7 to 3.4 metres. Edition 7 adds the alarm code ICE-420.
Both changes follow from the Martinmas storm of November 2024. Edition 7 also raises the number of cold boxes from 18 to
24.
"""

VISITOR_LEAFLET = """
# Visit the Archive on Lantern Quay

Welcome to the Vellmouth Seed and Scroll Archive. Four old harbour buildings hold 3,276 scrolls and 11,840 kinds of
seed. This leaflet is valid from 1 March to 31 October 2025.

### Opening hours

The exhibition in the Customs House is open from Tuesday to Sunday, from 09:30 to 17:00. The exhibition is closed on
Mondays. The last visitors are let in at 16:15.

### Tickets

| Ticket | Price |
| Adult | 9 crowns |
| Student or pensioner | 6 crowns |
| Child under 14 | free |
| Icehouse tour, added to any ticket | 4 crowns |
| Year card | 35 crowns |

Tickets are sold at the front desk of the Customs House. The front desk takes cards and coins. Groups of ten or more
people book one week ahead on extension 18.

### The Icehouse tour

The Icehouse tour starts on Wednesdays and Saturdays at 11:00 and at 14:00. The Icehouse tour lasts 50 minutes. A tour
group has at most 12 visitors. The archive lends a warm coat to each visitor. Children must be at least 8 years old to
join the Icehouse tour.

---

## Finding your way

### How to reach the archive

Ferry line 6 sails from Sallow Pier to Lantern Quay every 40 minutes. The crossing takes 17 minutes. Drivers leave the
car at the Tannery car park, which is 600 metres from the quay. No cars are allowed on Lantern Quay.

### The Lamp Tower

The Lamp Tower has 118 steps and no lift. The view from the Lamp Tower reaches to the Sallowby hills on a clear day.
The Lamp Tower is closed when the wind is stronger than 60 kilometres per hour.

### The Bollard tea room

The tea room is named The Bollard. The Bollard is open from 10:00 to 16:00. The speciality of The Bollard is barley
cake, which is baked with Vell Black Barley from Gull Field.

### Good to know

- Dogs are welcome in the courtyard but not inside the buildings.
- Wheelchairs can enter the Customs House and the Ropewalk by the ramp on the east side.
- Large bags stay in the lockers, which take a coin of 1 crown and give the coin back.
- Photographs without flash are allowed in the exhibition.

### The candle walk

The candle walk takes place on 2 February every year. Visitors carry 212 candles along the quay, one candle for each
scroll that was saved in the flood of 1931. The candle walk starts at 18:30 at the bell post on Cooper's Hill and is
free.
"""

SCROLL_CONSERVATION_HANDBOOK = """
# Scroll Conservation Handbook

This handbook is for the conservators and trained volunteers of the Ropewalk, the conservation studio of the Vellmouth
Seed and Scroll Archive. Idris Quellan, the Head of Conservation, keeps this handbook up to date. Idris Quellan can be
reached on extension 44.

## Storage of scrolls

The scroll store in the Ropewalk is kept at 17 degrees Celsius and at 48 percent relative humidity. Scrolls lie flat in
drawers, never upright. A drawer holds at most six scrolls. The light on a scroll must never be stronger than 45 lux.
The conservator measures the light with the lux meter LM-8 before a scroll is unrolled.

## Damage grades

Every scroll has a damage grade between D1 and D5. The grade is written into the scroll register.

| Grade | Meaning | Who may handle the scroll |
| D1 | The scroll is sound. | Readers |
| D2 | The scroll has small tears at the edge. | Readers, with a supervisor |
| D3 | The scroll has tears in the text. | Conservators and trained volunteers |
| D4 | The scroll has loose pieces or active mould. | Conservators |
| D5 | The scroll cannot be unrolled without loss. | The Head of Conservation |

## Opening a stiff scroll

A stiff scroll is made soft in the humidification chamber HC-76. The chamber is set to 76 percent relative humidity. The
scroll stays in the chamber for 90 minutes. The conservator then unrolls the scroll by at most 12 centimetres a minute
and weighs down the edges with felt bags. A scroll with iron gall ink is tested with a paper strip first. When the
paper strip turns pink, the scroll does not go into the chamber.

## Wheat paste

The Ropewalk uses wheat starch paste for all repairs. One part of starch is mixed with 4.5 parts of filtered water. The
paste simmers for 35 minutes and is stirred the whole time. The paste then rests for 12 hours and is pressed twice
through a horsehair sieve. Fresh paste keeps for 5 days in the cold cupboard. Paste that smells sour is thrown away.

## Repair papers

| Paper | Weight | Used for |
| Kessin 5 | 5 grams per square metre | Lining of written areas |
| Kessin 9 | 9 grams per square metre | Tears at the edge |
| Orle 17 | 17 grams per square metre | Missing corners |
| Dunmere 30 | 30 grams per square metre | New end sheets |

Repair paper is torn, not cut, because a torn edge hides better. The fibres of the repair paper run in the same
direction as the fibres of the scroll.

## Mould

A scroll with mould goes at once into the blue cabinet BC-2. The scroll stays in the blue cabinet for 28 days. The
conservator wears a mask of class M3 and brushes the dry mould off under the fume hood. A room in which active mould was
found is closed for two days. Idris Quellan alone decides when a scroll may leave the blue cabinet.

## Wet scrolls after a flood

Wet scrolls are frozen within 24 hours. Scrolls that are only damp are laid between sheets of blotting paper, and the
blotting paper is changed every 3 hours. Hair dryers and heaters are forbidden. Each wet or damp scroll is photographed
before the first treatment, and the photograph carries the scroll number.
"""

ANNUAL_REPORT_2024 = """
# Annual Report 2024

This report was approved by the Council of the Vellmouth Seed and Scroll Archive on 21 January 2025. The Keeper,
Ottoline Brask, and the Treasurer, Marit Soole, signed the report.

## The year in brief

The archive held 11,840 seed accessions and 3,276 scrolls on 31 December 2024. The archive took in 318 new seed
accessions and 27 new scrolls during 2024. The Ropewalk conserved 146 scrolls. The exhibition counted 23,418 visitors,
which is 1,205 more than in 2023. The co-operative had 1,906 members at the end of the year. The busiest day of 2024 was
Saturday 10 August, with 412 visitors.

## The Martinmas storm

The Martinmas storm reached Vellmouth in the night of 16 to 17 November 2024. The tide rose to 3.9 metres. The mains
power was lost for 31 hours. The generator Old Maud carried the Icehouse for the whole time, and no seeds were lost.
Three scrolls became damp in the cellar of the Customs House. The repairs after the storm cost 12,950 crowns in 2024.
The Council decided on 3 December 2024 that no scrolls may be kept in the cellar of the Customs House any more.

## Money

The archive had an income of 285,750 crowns and spent 270,100 crowns in 2024. The surplus of 15,650 crowns was put into
the Roof Reserve. The Roof Reserve stood at 64,300 crowns on 31 December 2024.

| Income or expense | 2023 in crowns | 2024 in crowns |
| Income: membership fees | 79,850 | 84,200 |
| Income: grants | 118,000 | 132,500 |
| Income: tickets and shop | 38,900 | 41,750 |
| Income: donations | 24,100 | 27,300 |
| Expense: wages | 151,200 | 158,400 |
| Expense: energy | 52,300 | 46,900 |
| Expense: conservation materials | 17,400 | 18,650 |
| Expense: Project Lantern | 18,800 | 33,200 |
| Expense: storm repairs | 0 | 12,950 |

The Vellmouth Harbour Trust gave a grant of 90,000 crowns. The Estuary Learning Fund gave a grant of 42,500 crowns. The
energy costs fell because the new gasket on the vault door saves about 11 percent of the electricity.

## People

The archive employed 9 people at the end of 2024. In addition, 64 volunteers gave 9,730 hours of work. Lucan Thrale
became the Reading Room Supervisor on 1 September 2024. The archive said goodbye to Odile Marchbank, who had led the
Reading Room for 22 years.

## Project Lantern

Project Lantern makes digital copies of all scrolls. The team of Maëlle Corrigane had scanned 1,184 scrolls by the end
of 2024. The scanned scrolls fill 41,260 images.

## Plans for 2025

- The archive will replace the compressor seals of both chillers before the summer.
- The archive will grow four weak accessions again on Gull Field.
- The archive will open a small school room on the first floor of the Ropewalk in September 2025.
- The membership fee stays at 48 crowns a year.
"""

PROJECT_LANTERN_PLAN = """
# Project Lantern: every scroll, readable everywhere

Plan for the Council of the Vellmouth Seed and Scroll Archive. Presented by Maëlle Corrigane, Digitisation Lead, on 11
March 2025.

## Why we scan

- Project Lantern makes digital copies of all 3,276 scrolls.
- A scanned scroll is handled 70 percent less often than a scroll without a scan.
- Readers from 19 countries asked for copies in 2024.
- The storm of November 2024 showed that paper alone is not safe.

## Three stages

- Stage 1 ended on 31 December 2024.
- Project Lantern will be finished on 30 June 2028.

| Stage | Years | Scrolls | Budget in crowns |
| Stage 1 | 2023 to 2024 | 1,184 | 52,000 |
| Stage 2 | 2025 to 2026 | 1,100 | 56,000 |
| Stage 3 | 2027 to June 2028 | 992 | 40,000 |

## How we scan

- The scanner is a Glassfen Q7 and stands in room 4 of the Ropewalk.
- Every scroll is scanned at 600 pixels per inch and saved as TIFF.
- A team of two people scans seven scrolls a day on average.
- Scrolls with damage grade D4 or D5 are conserved before they are scanned.

## Where the images are kept

- All images of Project Lantern will need 38 terabytes.
- The first copy of the images is kept in the Lamp Tower.
- The second copy of the images is kept in the Priory of Sallowby, 46 kilometres inland.
- The two copies are compared by checksum on the first day of every month.

## Risks

- The greatest risk is the lamp module GF-7720, because the maker needs 11 weeks to deliver a new one.
- The archive therefore keeps two spare lamp modules.
- A second risk is staff: Project Lantern loses one month when one of the two trained operators leaves.

## What we ask of the Council

- The team asks the Council to release the 56,000 crowns for stage 2.
- The team asks the Council for a third trained operator from 1 June 2025.
- The Council decides on these two requests on 8 April 2025.
"""

GERMINATION_TESTS_2024 = """
# Germination 2024

Germination tests of the Seed Curator in 2024. One test uses 100 seeds. The limit for growing again is 85 percent.

| Accession | Variety | Test date | Germinated percent | Aisle | Remark |
| V-00001 | Hesper's Candle Bean | 2024-01-16 | 91 | A | Hesper's Candle Bean is the oldest accession of the archive. |
| V-00017 | Vell Black Barley | 2024-01-16 | 96 | A | Vell Black Barley germinated best of all varieties in 2024. |
| V-00058 | Ropemaker's Flax | 2024-01-30 | 88 | A | Ropemaker's Flax needed 9 days to germinate. |
| V-00342 | Quayside Blue Pea | 2024-02-13 | 93 | A | Quayside Blue Pea was tested at 18 degrees Celsius. |
| V-00610 | Gull Field Oat | 2024-02-13 | 90 | B | Gull Field Oat shows no loss since the test of 2017. |
| V-01125 | Cooper's Red Onion | 2024-03-05 | 71 | B | Cooper's Red Onion had the lowest result of 2024. |
| V-01409 | Sallowby Turnip | 2024-03-05 | 89 | C | Sallowby Turnip was tested twice because one dish dried out. |
| V-02210 | Saltmarsh Rye | 2024-04-09 | 79 | C | Saltmarsh Rye will be grown again on plot 3. |
| V-02877 | Pilot's Kale | 2024-04-09 | 92 | D | Pilot's Kale germinated within 4 days. |
| V-03316 | Foghorn Squash | 2024-05-14 | 87 | D | Foghorn Squash seeds were scarred with a file before the test. |
| V-04002 | Netmender's Lentil | 2024-05-14 | 82 | E | Netmender's Lentil will be grown again on plot 5. |
| V-05518 | Ebbtide Lettuce | 2024-06-11 | 94 | E | Ebbtide Lettuce was tested in the dark. |
| V-06230 | Priory Poppy | 2024-06-11 | 86 | F | Priory Poppy is one point above the limit of 85 percent. |
| V-07741 | Lamplighter Tomato | 2024-09-17 | 95 | G | Lamplighter Tomato was a gift of the school of Sallowby. |
| V-09083 | Anchor Broad Bean | 2024-09-17 | 77 | H | Anchor Broad Bean will be grown again on plot 8. |
| V-11522 | Drift Parsnip | 2024-10-22 | 89 | I | Drift Parsnip was tested one year after harvest. |

# Regrowing 2025

Plots on Gull Field for the accessions that germinated below 85 percent in 2024.

| Plot | Accession | Variety | Sowing date | Area in square metres | Remark |
| 2 | V-01125 | Cooper's Red Onion | 2025-03-18 | 24 | Cooper's Red Onion is sown on plot 2 under fleece. |
| 3 | V-02210 | Saltmarsh Rye | 2025-03-25 | 60 | Saltmarsh Rye on plot 3 is watered with brackish water. |
| 5 | V-04002 | Netmender's Lentil | 2025-04-15 | 36 | Netmender's Lentil on plot 5 is sown in six rows. |
| 8 | V-09083 | Anchor Broad Bean | 2025-02-25 | 48 | Anchor Broad Bean on plot 8 is grown inside a net cage. |
"""


if __name__ == "__main__":
    write_samples(FOLDER)
