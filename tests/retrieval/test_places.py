"""Places survive the way into SQL and back."""

import json

from retrieval.places import Box, Place, places_from_rows, places_to_rows, under_headings


def test_places_come_back_from_json_rows_as_they_were() -> None:
    places = (
        Place(0, 10, page=1, box=Box(72.0, 700.25, 300.5, 712.0)),
        Place(10, 20, page=2),
        Place(20, 30),
        Place(30, 31, page=1, box=Box(0.0, 0.0, 0.0, 0.0)),
    )
    assert places_from_rows(json.loads(json.dumps(places_to_rows(places)))) == places


def test_rows_are_flat_lists_with_nulls() -> None:
    places = (Place(0, 3, page=1, box=Box(1.0, 2.0, 3.0, 4.0)), Place(3, 4))
    assert places_to_rows(places) == [[0, 3, 1, [1.0, 2.0, 3.0, 4.0]], [3, 4, None, None]]


def test_the_heading_path_stands_in_front_of_the_text() -> None:
    assert under_headings(("Vault", "Keys"), "In the hall.") == "Vault > Keys\nIn the hall."
    assert under_headings((), "In the hall.") == "In the hall."
