"""A page parsed, to look at what is in it."""

from html.parser import HTMLParser

VOID = {"meta", "img", "path", "circle", "br"}


class Page(HTMLParser):
    """The parsed page; tags that close no open tag, or stay open, fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(str(html))  # slices of markup are escaped again
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] != "style" else ""

    def named(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in (None, attrs.get("class"))]
