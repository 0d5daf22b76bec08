"""Who is let in: token, Host, Origin, sizes, names. Asked over real sockets, as an attacker would."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner
from gui_pages import TOKEN, page_of, write_leg

from tfmuscle.cli import tfmuscle_group
from tfmuscle.gui import guard
from tfmuscle.gui.app import make_app


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard") / "folder"
    folder.mkdir()
    write_leg(folder)
    (folder.parent / "secret.nii.gz").write_bytes(b"secret")
    (folder.parent / "folder-beside").mkdir()
    (folder.parent / "folder-beside" / "a.nii.gz").write_bytes(b"secret")
    (folder / "way_out").symlink_to(folder.parent)
    (folder / "linked.nii.gz").symlink_to(folder.parent / "secret.nii.gz")
    (folder / "inner.nii.gz").symlink_to(folder / "leg.nii.gz")
    (folder / ".hidden.nii.gz").write_bytes(b"secret")
    with page_of(folder) as page:
        yield page


def test_the_first_visit_trades_the_token_for_a_cookie(page):
    status, _ = page.call("GET", "/", headers={"X-Tfmuscle-Token": None}, token=TOKEN)
    assert status == 303 and page.headers["location"] == "/"
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert "max-age" not in cookie.lower() and "expires" not in cookie.lower()  # a page may stay open for days
    with_cookie = {"X-Tfmuscle-Token": None, "Cookie": cookie.split(";")[0]}
    status, content = page.call("GET", "/", headers=with_cookie)
    assert status == 200 and b"<canvas" in content
    status, _ = page.call("GET", "/api/workspace", headers=with_cookie)
    assert status == 200


def test_two_servers_do_not_take_each_others_cookie(page):
    one, other = (make_app(page.folder, port=port, token=TOKEN)._cookie for port in (8001, 8002))
    assert one != other  # cookies know no ports


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "\u00e4"])
@pytest.mark.parametrize("path", ["/", "/api/workspace", "/static/app.js", "/api/jobs", "/nothing"])
def test_without_the_token_nothing_is_shown(page, path, token):
    status, content = page.call("GET", path, headers={"X-Tfmuscle-Token": token})
    assert status == 401 and "tfmuscle gui printed" in content["error"]


@pytest.mark.parametrize("cookie", ["tfmuscle_1=x", "a=b; c", "tfmuscle_{port}=wrong", "{bad", "tfmuscle_{port}"])
def test_wrong_cookies_are_no_token(page, cookie):
    headers = {"X-Tfmuscle-Token": None, "Cookie": cookie.replace("{port}", str(page.port))}
    assert page.call("GET", "/api/workspace", headers=headers)[0] == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_a_foreign_name_for_this_machine_is_refused(page, host):
    status, content = page.call("GET", "/api/workspace", headers={"Host": host.replace("{port}", str(page.port))})
    assert status == 421 and "this server is 127.0.0.1" in content["error"]


def test_localhost_is_this_machine(page):
    assert page.call("GET", "/api/workspace", headers={"Host": f"localhost:{page.port}"})[0] == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:{port}"]
)
@pytest.mark.parametrize("path", ["/api/jobs", "/api/uploads?name=a.nii", "/api/edits", "/"])
def test_what_changes_something_needs_the_pages_origin(page, path, origin):
    headers = {"Origin": origin and origin.replace("{port}", str(page.port))}
    status, content = page.call("POST", path, body=b"{}", headers=headers)
    assert status == 403 and "Origin" in content["error"]


def test_a_foreign_page_may_not_even_read(page):
    assert page.call("GET", "/api/workspace", headers={"Origin": "http://evil.example"})[0] == 403


def test_every_answer_keeps_foreign_hosts_out_of_the_page(page):
    for path in ("/", "/api/workspace", "/static/app.js", "/nothing"):
        page.call("GET", path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "http" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"


def announced(page, path, size):
    """Announces a body without sending it; returns the first line of the answer."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: {page.home}\r\n"
        head += f"X-Tfmuscle-Token: {TOKEN}\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        return connection.recv(4096).split(b"\r\n")[0]


def test_ten_gigabytes_are_refused_before_they_are_sent(page):
    assert b" 413 " in announced(page, "/api/uploads?name=big.nii", 10 << 30)
    assert b" 413 " in announced(page, "/api/jobs", (1 << 20) + 1)  # takes no files
    assert b" 413 " in announced(page, "/static/app.js", 10 << 30)
    assert not list((page.folder / ".tfmuscle").glob("uploads/*"))


def test_a_body_that_never_ends_is_cut_off_and_leaves_nothing(page, monkeypatch):
    monkeypatch.setattr(guard, "MAX_UPLOAD_BYTES", 1 << 20)
    sent = 0

    def endless():
        nonlocal sent
        while sent < 64 << 20:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    try:
        status, content = page.call("POST", "/api/uploads", body=endless(), name="big.nii", headers={})
        assert status == 413 and "more than 1,048,576 bytes" in content["error"]
    except (BrokenPipeError, ConnectionResetError):  # the server hung up while the rest was being sent
        pass
    assert sent < 64 << 20
    assert not list((page.folder / ".tfmuscle").glob("uploads/*")) and not (page.folder / "results").exists()


@pytest.mark.parametrize(
    "name",
    ["../secret.nii.gz", "a/../../secret.nii.gz", "/etc/passwd", "..", "", "labels/..", "..\\secret.nii.gz", "a\0b",
     "./leg.nii.gz", "labels//leg.nii.gz", ".hidden.nii.gz", ".tfmuscle/jobs"],
)  # fmt: skip
@pytest.mark.parametrize("address", ["/api/file", "/api/scan", "/api/series"])
def test_names_that_are_no_names_in_the_folder(page, address, name):
    assert "no name of a file in the folder" in page.refused(address, path=name)


@pytest.mark.parametrize(
    "name", ["way_out/secret.nii.gz", "linked.nii.gz", "way_out/folder-beside/a.nii.gz", "way_out"]
)
def test_links_that_lead_out_of_the_folder(page, name):
    assert "leads outside the folder" in page.refused("/api/file", path=name)


def test_links_within_the_folder_are_followed(page):
    assert page.get("/api/scan", path="inner.nii.gz")["shape"] == [20, 24, 12]


def test_a_name_too_long_or_gone_is_one_line(page):
    assert "cannot be looked at" in page.refused("/api/file", path="x" * 5000)
    assert "no such file" in page.refused("/api/file", path="gone.nii.gz")
    assert "is a folder" in page.refused("/api/file", path="labels")


def test_an_unknown_address_and_a_missing_field_are_one_line(page):
    assert page.call("GET", "/nothing") == (404, {"error": "Not Found"})
    assert page.call("GET", "/api/scan") == (422, {"error": "path: field required"})


@pytest.mark.parametrize(
    "name", ["../a.nii", "a/b.nii", ".nii", ".a.nii", "a.py", "a", "a\0.nii", "a\n.nii", "b" * 300 + ".nii", "C:x.nii"]
)
def test_uploads_have_plain_names_of_images(page, name):
    status, content = page.call("POST", "/api/uploads", body=b"x", name=name)
    assert status == 400 and "rename it" in content["error"]


def test_an_upload_arrives_whole_and_never_replaces(page):
    for expected in ("results/uploads/knee.nii.gz", "results/uploads/knee-2.nii.gz"):
        status, content = page.call("POST", "/api/uploads", body=b"as it was", name="knee.nii.gz")
        assert status == 200 and content["path"] == expected
    assert (page.folder / "results" / "uploads" / "knee.nii.gz").read_bytes() == b"as it was"
    assert page.get("/api/file", path="results/uploads/knee.nii.gz") == b"as it was"


def test_the_command_prints_an_address_that_opens_and_ends_with_an_interrupt(tmp_path):
    words = [sys.executable, "-c", "from tfmuscle.cli import main; main()", "gui", str(tmp_path), "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(address, timeout=60) as answer:
                assert answer.status == 200 and b"<canvas" in answer.read()
                assert answer.url == address.partition("?")[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0 and process.stderr.read() == ""
        finally:
            process.kill()


def test_what_cannot_be_served_is_one_line(tmp_path, monkeypatch):
    def said(*words):
        result = CliRunner().invoke(tfmuscle_group, ["gui", *map(str, words), "--no-browser"])
        assert result.exit_code == 1 and result.output.count("\n") == 1
        return result.output

    assert "there is no such folder" in said(tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be had" in said(tmp_path, "--port", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "tfmuscle.gui.app", None)
    assert "pip install 'tfmuscle[gui]'" in said(tmp_path)
