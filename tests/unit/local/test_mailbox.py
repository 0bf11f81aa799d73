from email.message import EmailMessage

from taskflux.local.inbox.mailbox import headers_of, preview, read_mail


def mail() -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Grüße aus Köln, " * 6
    message["To"] = "ada@example.org"
    message.set_content("Guten Tag,\n\nalles gut.\n")
    message.add_alternative("<p>Guten Tag</p>", subtype="html")
    message.add_attachment(b"\x00\x01", maintype="application", subtype="pdf", filename="plan é.pdf")
    return message


def test_text_html_and_attachments_are_decoded() -> None:
    read = read_mail(mail().as_bytes())
    assert read.text == "Guten Tag,\n\nalles gut.\n"
    assert read.html == "<p>Guten Tag</p>\n"
    assert [(each.name, each.type, each.content) for each in read.attachments] == [
        ("plan é.pdf", "application/pdf", b"\x00\x01")
    ]


def test_an_inline_image_stands_in_the_html_and_an_unknown_one_stays_as_it_is() -> None:
    message = EmailMessage()
    message.set_content("Hello")
    message.add_alternative("<img src=\"cid:logo%40x\"><img src='cid:other@x'><img SRC=cid:logo@x>", subtype="html")
    html = message.get_payload()[1]  # type: ignore[index]
    html.add_related(b"GIF89a", maintype="image", subtype="gif", cid="<logo@x>")  # type: ignore[union-attr]
    data = "data:image/gif;base64,R0lGODlh"
    expected = f"<img src=\"{data}\"><img src='cid:other@x'><img SRC={data}>"
    assert (read_mail(message.as_bytes()).html or "").strip() == expected


def test_an_encoded_and_folded_subject_reads_as_it_was_written() -> None:
    assert read_mail(mail().as_bytes()).headers["Subject"] == ("Grüße aus Köln, " * 6).strip()


def test_a_subject_in_bare_utf8_reads_as_it_was_written() -> None:
    assert headers_of("Subject: Köln ✓\r\n\r\n".encode())["subject"] == "Köln ✓"


def test_a_preview_is_the_text_in_one_line() -> None:
    assert preview(mail().as_bytes()) == "Guten Tag, alles gut."


def test_an_invalid_mail_can_still_be_read() -> None:
    for content in (
        b"",
        b"\xff\xfe\x00",
        b"Subject: =?x?b?!!?=\r\n\r\nx",
        b"Content-Type: text/plain; charset=no\r\n\r\nx",
    ):
        assert read_mail(content).attachments == ()
