"""Text never becomes markup, whatever it holds."""

import html.parser
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.media.html import data_block, definitions, join, table, tag


class Texts(html.parser.HTMLParser):
  """Collects the elements and the text of a piece of HTML."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.elements, self.attributes, self.text = [], [], ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs

  def handle_data(self, data):
    self.text += data


# a parser of HTML drops NUL and rewrites line ends; neither makes markup
TEXT = st.text(st.characters(blacklist_characters="\0\r", blacklist_categories=["Cs"]))


@settings(deadline=None)  # a busy machine is no fault
@given(TEXT, TEXT)
def test_text_and_attributes_come_back_as_they_were(text, attribute):
  read = Texts(tag("p", text, tag("b", text), title=attribute))
  assert read.elements == ["p", "b"]
  assert read.attributes == [("title", attribute)]
  assert read.text == text + text


def test_none_and_false_are_left_out_and_true_is_bare():
  assert tag("video", None, loop=True, muted=False, poster=None, class_="a") == (
    '<video loop class="a"></video>'
  )
  assert join("<", tag("br_"), None) == "&lt;<br_></br_>"


@settings(deadline=None)
@given(TEXT)
def test_data_cannot_end_its_element(text):
  block = data_block({"name": text + "</script><!--"})
  assert block.count("<") == 2
  body = block.removeprefix('<script type="application/json">').removesuffix("</script>")
  assert json.loads(body) == {"name": text + "</script><!--"}


def test_lists_and_tables_escape():
  for markup in (definitions({"<a>": "<b>"}), table(["<a>", "x"], [["<b>", 1]], numbers=1)):
    assert "<a>" not in markup and "<b>" not in markup
    assert "&lt;a&gt;" in markup and "&lt;b&gt;" in markup
