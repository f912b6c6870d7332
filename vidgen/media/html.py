"""HTML from Python: text is escaped unless it was made here, so no prompt can become markup."""

import html
import json
from typing import Any


class Html(str):
  """Text that is markup already."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
  """An element; children that are not `Html` are escaped text, and None is left out.

  Attributes are written as `class_` or `aria_label`; True is a bare attribute, None or False none.
  """
  opening = name
  for key, value in attributes.items():
    key = key.rstrip("_").replace("_", "-")
    if value is True:
      opening += f" {key}"
    elif value is not None and value is not False:
      opening += f' {key}="{html.escape(str(value))}"'
  if name in ("img", "path"):
    return Html(f"<{opening}/>")
  return Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
  """Children one after another, escaped where they are plain text."""
  return Html(
    "".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None)
  )


def data_block(tree: Any) -> Html:
  """JSON for a script of the page to read; nothing in it can end the element."""
  text = json.dumps(tree, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
  return Html(f'<script type="application/json">{text}</script>')


def definitions(rows: dict[str, Any], **attributes: Any) -> Html:
  """A list of names and values."""
  pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in rows.items())
  return tag("dl", *pairs, **attributes)


def table(head: list[Any], rows: list[list[Any]], *, numbers: int = 0, **attributes: Any) -> Html:
  """A table whose first column names its rows; the last `numbers` columns stand flush right."""
  first = len(head) - numbers

  def cells(row: list[Any], kind: str) -> Html:
    return join(
      *(
        tag(
          "th" if kind == "col" or not i else "td", cell,
          scope=kind if kind == "col" or not i else None, class_="number" if i >= first else None,
        )
        for i, cell in enumerate(row)
      )
    )  # fmt: skip

  body = (tag("tr", cells(row, "row")) for row in rows)
  return tag(
    "div",
    tag("table", tag("thead", tag("tr", cells(head, "col"))), tag("tbody", *body), **attributes),
    class_="scroll",
  )


def section_head(title: str, *beside: Html, note: Any = None) -> Html:
  """A section's title, what stands beside it, and a sentence below."""
  return tag(
    "div",
    tag("h2", title),
    *beside,
    tag("p", note, class_="note") if note else None,
    class_="head",
  )


def absent(reason: str) -> Html:
  """Says that a part is not there, and why."""
  return tag("p", reason, class_="absent")
