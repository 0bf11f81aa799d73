from __future__ import annotations

import subprocess
import sys
import time

import pytest

from taskflux.providers.message import MOST_HTML, plain_text

OL = "5. a\n6. * b\n\n9. c\n10. d\n\n1. e"
DEEP = "\n\n".join("  " * min(depth, 8) + "* a" for depth in range(40))


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>hi</p>", "hi"),
        ("no html at all", "no html at all"),
        (
            "<h1>Title</h1><p>One  two\n three<br>four</p><div>five</div>six",
            "Title\n\nOne two three\nfour\n\nfive\nsix",
        ),
        ("<p>a<b>b</b>c &amp; &lt;d&gt; &euro;&nbsp;5 &#128512;</p>", "abc & <d> € 5 😀"),
        ("<table><tr><th>Name<th>Price<tr><td>Öl<td><b>3</b> €</table>", "Name | Price\nÖl | 3 €"),
        ("<table><tr><td><table><tr><td><p>in</p></td></tr></table></td><td>out</td></tr></table>", "in\n\nout"),
        ("<ul><li>a<li><p>b</p><ol><li>c<li>d</ol></ul>", "* a\n* b\n\n  1. c\n  2. d"),
        ("<ol start=5><li>a<li><ul><li>b</ul><li value=9>c<li value=x>d</ol><ol><li>e</ol>", OL),
        ("<ul><li>a" * 40, DEEP),
        ("<pre>  a\n    b  c</pre>", "  a\n    b  c"),
        ("<br><br><br><br>a<br><br><br><br>b", "a\n\nb"),
        ('<?xml version="1.0" encoding="latin-1"?><html><meta charset="latin-1"><p>日本</p></html>', "日本"),
        ("<div>" * 5000 + "deep", "deep"),
        ("\x1e\x1fa\x1db\x1c", "ab"),
    ],
)
def test_html_becomes_lines_of_text(html: str, text: str) -> None:
    assert plain_text(html) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<a href="https://example.org/?a=1&amp;b=2">the <b>page</b></a>', "the page <https://example.org/?a=1&b=2>"),
        ('<a href=" https://example.org/\n?a ">here</a>', "here <https://example.org/?a>"),
        ('<a href="https://example.org/">https://example.org</a>', "https://example.org"),
        ('<a href="mailto:ann@example.org">ann@example.org</a>', "ann@example.org"),
        ('<a href="mailto:ann@example.org">Ann</a>', "Ann <mailto:ann@example.org>"),
        ('<a href="#top">top</a> <a href="javascript:x()">run</a> <a>nowhere</a>', "top run nowhere"),
        (
            '<a href="https://example.org"><img src="cid:logo" alt="Logo"></a><img src="x">',
            "[Logo] <https://example.org>",
        ),
    ],
)
def test_a_link_says_where_it_leads_unless_it_shows_that(html: str, text: str) -> None:
    assert plain_text(html) == text


@pytest.mark.parametrize(
    "html",
    [
        "",
        " \n ",
        "<!-- a -->",
        "<p> &nbsp; </p>",
        "<img src='https://example.org/pixel'>",
        "<head><title>a</title><style>p {}</style></head><script>a()</script><template>a</template>",
        '<p style="color: red; DISPLAY : none !important">a</p><p hidden>b</p>',
        "<svg><text>a</text></svg>",
        "a" * (MOST_HTML + 1),
    ],
)
def test_what_is_not_shown_is_left_out(html: str) -> None:
    assert plain_text(html) == ""


@pytest.mark.parametrize("part", ["<p>", "<b>", "<a href=x>", "<table><tr><td>", "<ol><li>", "<", "&", "<!--", "<br>"])
def test_broken_html_takes_seconds_and_no_recursion(part: str) -> None:
    began = time.process_time()
    plain_text(part * (100_000 // len(part)))
    assert time.process_time() - began < 20


def test_the_library_is_imported_only_where_a_text_is_made() -> None:
    program = "import sys, taskflux.handlers.process_email; print('justhtml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
