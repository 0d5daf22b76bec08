"""The client of served bundles, over real sockets, against servers that are slow, busy, killed, strange or hostile.

The network is a NumPy function, so that what is judged is the way there and back; `test_serving.py` has a real one.
"""

import http.server
import itertools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from known_networks import SCANS, make_spec, random_scan, scan_grid
from model_server import LOADING, GrpcServer, Model, RestServer, signature
from served_bundles import write_made_bundle
from served_function import probabilities

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.inference import Run, predict_volume
from tfmuscle.inference.volumes import mirrors
from tfmuscle.io import read_volume, write_volume
from tfmuscle.serving import Address, Patience, Server, client, rest_wire
from tfmuscle.serving.patience import FIRST_PAUSE, LONGEST_PAUSE, SHORTEST, keep_trying, said
from tfmuscle.volume import Volume
from tfmuscle.workflows.predicting import PredictOptions, predict

SPEC = make_spec("slices")
SERVERS = {"grpc": GrpcServer, "http": RestServer}
QUICK = Patience(deadline=20.0, limit=30.0)
COPIES = len(mirrors(Run(None, SPEC, TrainConfig(), Path("here")), True))
"""Requests of a little scan: one for each mirrored copy."""


class Here:
    """The same network in this process."""

    name, proven = "numpy", True

    def __call__(self, images):
        return probabilities(images)


def labels_here(image):
    return predict_volume(Run(None, SPEC, TrainConfig(), Path("here"), engine=Here()), image).array


def made_model(**changes):
    """`bones`, version 1, with both signatures."""

    def serving(image):
        return {"probabilities": probabilities(image)}

    def segment(volume, affine):
        geometry = SimpleNamespace(shape=volume.shape[:3], affine=np.asarray(affine))
        geometry = scan_grid(geometry.shape).__class__(tuple(geometry.shape), geometry.affine)
        return {"labels": labels_here(Volume(np.asarray(volume), geometry))}

    functions = {"serving_default": serving, "segment": segment} | changes.pop("functions", {})
    definitions = {
        "serving_default": signature(
            {"image": ("float32", (-1, 8, 8, 1))}, {"probabilities": ("float32", (-1, 8, 8, 3))}
        ),
        "segment": signature(
            {"volume": ("float32", (-1, -1, -1, 1)), "affine": ("float64", (4, 4))},
            {"labels": ("uint8", (-1, -1, -1))},
        ),
    } | changes.pop("definitions", {})
    return Model("bones", 1, definitions, functions)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The JSON files of the bundle that is served: its network is not here, as at a client's."""
    out = tmp_path_factory.mktemp("made") / "bones"
    write_made_bundle(out / "1", SPEC)
    (out / "1" / "saved_model.pb").unlink()
    return out


@pytest.fixture(params=SERVERS)
def server(request):
    made = SERVERS[request.param](made_model())
    yield made
    made.stop()


@pytest.fixture
def few_at_once(monkeypatch):
    """Requests of few samples: 256 numbers each, so three of them."""
    monkeypatch.setattr(client, "VALUES_PER_REQUEST", {"grpc": 800, "http": 800})


@pytest.fixture
def quick_pauses(monkeypatch):
    monkeypatch.setattr("tfmuscle.serving.patience.FIRST_PAUSE", 0.02)


def url(server, path="bones"):
    return f"{server.scheme}://127.0.0.1:{server.port}/{path}"


def opened(server, patience=QUICK, path="bones"):
    return Server.opened(Address.parse(url(server, path)), SPEC, patience)


def asked(server, **options):
    return PredictOptions(**{"server": url(server), "deadline": 20.0, "patience": 30.0} | options)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three scans as files, and their labels by this process."""
    folder = tmp_path_factory.mktemp("scans")
    made = {f"scan{n}": random_scan(scan_grid((11, 12, 9)), seed=n) for n in range(3)}
    for name, image in made.items():
        write_volume(folder / f"{name}.nii.gz", image)
    return folder, {name: labels_here(image) for name, image in made.items()}


# ------------------------------------------------------------------------------------------------ addresses, patience


def test_addresses_in_all_their_forms():
    assert Address.parse("http://h/n") == Address("http", "h", 8501, "n")
    assert Address.parse("grpc://[::1]:9/n-1.x/12/") == Address("grpc", "::1", 9, "n-1.x", 12)
    for text in ("grpc://h:1/n", "http://[::1]:8501/n/3"):
        assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("localhost:8500/bones", "protocol 'localhost' is not spoken"),
        ("bones", "names no protocol"),
        ("https://h/bones", "protocol 'https' is not spoken; write grpc://HOST:8500/NAME"),
        ("grpc://h:99999/bones", "is no address of a server"),
        ("grpc:///bones", "is no address of a server"),
        ("http://me:secret@h/bones", "is no address of a server"),
        ("http://h/bones?x=1", "is no address of a server"),
        ("http://h/bones/latest", "is no address of a server"),
        ("http://h/bones/1/2", "is no address of a server"),
        ("http://h/bones/9999999999999999999", "is no address of a server"),
        ("http://h", "'' is no name of a model"),
        ("http://h/../1", "'..' is no name of a model"),
        ("http://h/bones:predict", "'bones:predict' is no name of a model"),
        ("http://h/b\r\nX-Evil: 1", "is no name of a model"),
        ("grpc://h/é", "at most 100 of the letters"),
        ("grpc://h/" + "n" * 101, "is no name of a model"),
    ],
)
def test_other_addresses_are_refused(text, problem):
    with pytest.raises(DataError, match=problem):
        Address.parse(text)


class Clock:
    """Time that passes only in pauses and attempts."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def test_pauses_double_up_to_the_longest_with_jitter():
    clock, faults = Clock(), iter([ConnectionError("gone")] * 10 + [None])

    def ask(seconds):
        if (fault := next(faults)) is not None:
            raise fault
        return "answer"

    assert keep_trying(ask, Patience(1, 1000), "x", sleep=clock.sleep, clock=clock) == "answer"
    longest = [min(LONGEST_PAUSE, FIRST_PAUSE * 2**n) for n in range(10)]
    assert all(most / 2 <= pause <= most for pause, most in zip(clock.pauses, longest, strict=True))
    assert (
        longest[-1] == LONGEST_PAUSE
        and len({pause / most for pause, most in zip(clock.pauses, longest, strict=True)}) > 5
    )


def test_a_pause_that_lasts_too_long_leaves_a_short_attempt():
    clock, given = Clock(), []

    def fail(seconds):
        given.append(seconds)
        raise ConnectionError("gone")

    def oversleep(seconds):
        clock.now += 200

    with pytest.raises(DataError, match=r"no answer in 200 s and 2 attempt\(s\)"):
        keep_trying(fail, Patience(40, 100), "x", sleep=oversleep, clock=clock)
    assert given == [40, SHORTEST]


def test_no_attempt_gets_more_time_than_is_left_and_then_it_is_over():
    clock, given = Clock(), []

    def slow(seconds):
        given.append(seconds)
        clock.now += seconds
        raise TimeoutError(f"not answered within {seconds:g} s")

    with pytest.raises(DataError, match=r"x: no answer in [\d.]+ s and \d attempt\(s\), at last: not answered within"):
        keep_trying(slow, Patience(40, 100), "x", sleep=clock.sleep, clock=clock)
    assert given[:2] == [40, 40] and 0 < given[2] < 20 and len(given) == 3 and clock.now <= 100


def test_a_refusal_is_not_repeated_and_attempts_are_counted():
    calls = []

    def refuse(seconds):
        calls.append(seconds)
        raise DataError("never")

    with pytest.raises(DataError, match="never"):
        keep_trying(refuse, Patience(), "x", sleep=calls.append)
    assert calls == [60.0]

    def fail(seconds):
        calls.append(seconds)
        raise ConnectionError("gone")

    with pytest.raises(DataError, match=r"2 attempt\(s\), at last: gone; see that the server runs"):
        keep_trying(fail, Patience(attempts=2), "x", sleep=lambda _: None)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="deadline is 0; a positive number of seconds"):
        Patience(deadline=0)


def test_what_a_server_says_is_one_short_line_without_orders_to_the_terminal():
    assert said("a\x1b]0;title\x07\n b\u202e") == "a]0;title b"
    assert len(said("x" * 10_000)) == 303


# ------------------------------------------------------------------------------------------------ the same labels


@pytest.mark.parametrize("send", ["auto", "scan", "windows"])
def test_labels_are_those_of_this_process_on_every_grid(server, bundle, send, few_at_once, tmp_path):
    for name, geometry in SCANS.items():
        image = random_scan(geometry)
        write_volume(tmp_path / "scan.nii.gz", image)
        result = predict(bundle, tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", options=asked(server, send=send))
        assert not result.failures and not result.warnings
        found, read = read_volume(tmp_path / "labels.nii.gz"), read_volume(tmp_path / "scan.nii.gz")
        assert found.geometry.same_grid(read.geometry), name
        np.testing.assert_array_equal(found.array, labels_here(read))
    kinds = {name for name, _ in server.faults.asked}
    assert kinds == ({"serving_default"} if send == "windows" else {"segment"})


def test_a_batch_goes_in_small_requests_a_few_at_once_and_in_order(server, few_at_once):
    images = np.random.default_rng(0).normal(size=(31, 8, 8, 1)).astype(np.float32)
    server.faults.delays += [0.15] * 4 + [0.0] * 7  # the first come last
    served = opened(server)
    np.testing.assert_array_equal(served.infer(images), probabilities(images))  # nine digits are every bit
    assert sorted(shapes["image"][0] for _, shapes in server.faults.asked) == [1] + [3] * 10
    assert 1 < server.faults.most <= client.IN_FLIGHT
    assert served.batch_size == 12


def test_a_large_scan_goes_as_windows_of_bounded_size(server, bundle, few_at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(client, "LARGEST_SCAN", {"grpc": 1000, "http": 1000})
    image = random_scan(scan_grid((16, 14, 10)))
    write_volume(tmp_path / "scan.nii.gz", image)
    result = predict(bundle, tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", options=asked(server))
    np.testing.assert_array_equal(read_volume(tmp_path / "labels.nii.gz").array, labels_here(image))
    assert {name for name, _ in server.faults.asked} == {"serving_default"} and not result.warnings
    assert server.faults.largest <= 3 * 8 * 8 * 8 and server.faults.most <= client.IN_FLIGHT  # bytes: float64 by HTTP
    result = predict(bundle, tmp_path / "scan.nii.gz", tmp_path / "no.nii.gz", options=asked(server, send="scan"))
    assert "is too large to be sent whole; use --send windows" in result.failures["scan"]


@pytest.mark.parametrize(("refusal", "times"), [("RESOURCE_EXHAUSTED", 2), ("INVALID_ARGUMENT", 1)])
def test_a_scan_that_the_server_does_not_take_whole_goes_as_windows_and_that_is_said(
    server, bundle, scans, refusal, times, quick_pauses, tmp_path
):
    server.faults.codes += [refusal] * times
    folder, expected = scans
    result = predict(bundle, folder, tmp_path / "labels", options=asked(server))
    (warning,) = result.warnings
    assert "scans were sent as windows, because whole" in warning and refusal in warning
    for name, labels in expected.items():
        np.testing.assert_array_equal(read_volume(tmp_path / "labels" / f"{name}.nii.gz").array, labels)
    kinds = [name for name, _ in server.faults.asked]
    assert kinds.count("segment") == times  # and not again for each scan
    server.faults.codes += [refusal] * times
    result = predict(bundle, folder / "scan0.nii.gz", tmp_path / "x.nii.gz", options=asked(server, send="scan"))
    assert refusal in result.failures["scan0"]


def test_mirrored_copies_must_be_those_that_segment_averages(server, bundle, scans, tmp_path):
    options = asked(server, send="scan")
    result = predict(bundle, scans[0] / "scan0.nii.gz", tmp_path / "x.nii.gz", mirror=False, options=options)
    assert "segment averages mirrored copies, which is not what is asked" in result.failures["scan0"]
    predict(bundle, scans[0] / "scan0.nii.gz", tmp_path / "x.nii.gz", mirror=False, options=asked(server))
    assert [name for name, _ in server.faults.asked] == ["serving_default"]


# ------------------------------------------------------------------------------------------------ what is there


def test_another_model_version_or_network_is_refused_before_anything_is_sent(server, bundle, tmp_path):
    with pytest.raises(DataError, match=r"refuses the request \(NOT_FOUND: .*hips.*\); compare name and version"):
        opened(server, path="hips")
    with pytest.raises(DataError, match=r"bones/7: version 7 is needed, the server has 1 \(AVAILABLE\); give the bun"):
        opened(server, path="bones/7")
    write_made_bundle(tmp_path / "bones" / "2", SPEC)  # a client's newer copy asks for its own version
    with pytest.raises(DataError, match=r"version 2 is needed, the server has 1"):
        predict(tmp_path / "bones", tmp_path, tmp_path / "out", options=asked(server))
    with pytest.raises(
        DataError,
        match=r"serves another network: image float32 \[-1, 8, 8, 1\] -> prob.* has image float32 \[-1, 8, 8, 8, 1\]",
    ):
        Server.opened(Address.parse(url(server)), make_spec("volumes", size=(8, 8), depth=8), QUICK)
    assert not server.faults.asked
    assert str(opened(server).address).endswith("/bones/1")


@pytest.mark.parametrize("scheme", SERVERS)
def test_a_server_without_our_signatures_is_told_so(scheme, bundle, tmp_path):
    plain = signature({"x": ("float32", (-1, 8))}, {"y": ("float32", (-1, 8))})
    odd = SERVERS[scheme](Model("bones", 1, {"predict": plain}, {}))
    with pytest.raises(DataError, match="serves another network: no signature serving_default, but the bundle given"):
        opened(odd)
    odd.stop()
    model = made_model()
    del model.signatures["segment"]
    few = SERVERS[scheme](model)
    assert not opened(few).has_segment
    with pytest.raises(DataError, match="has no signature segment for whole scans; use --send windows"):
        predict(bundle, tmp_path, tmp_path / "out", options=asked(few, send="scan"))
    few.stop()


def test_a_model_that_is_loading_is_waited_for(monkeypatch, quick_pauses):
    made = RestServer(made_model(), state=LOADING)
    with pytest.raises(DataError, match=r"at last: the model is being loaded: 1 \(LOADING\)"):
        opened(made, Patience(1, 0.3))
    threading.Timer(0.3, lambda: setattr(made._server, "state", 30)).start()
    assert opened(made).address.version == 1
    made.stop()


@pytest.mark.parametrize("scheme", SERVERS)
def test_nobody_there(scheme, monkeypatch):
    monkeypatch.setattr(client, "FIRST_CONTACT_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/bones: no answer in .* at last: .*; see that the server runs"):
        Server.opened(Address.parse(f"{scheme}://127.0.0.1:1/bones"), SPEC, Patience())
    assert time.monotonic() - started < 5


def test_grpc_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(DataError, match=r"gRPC needs .*; pip install 'tfmuscle\[serve-client\]', or give the http://"):
        Server(Address.parse("grpc://h/n"), SPEC, QUICK)


class Strange(http.server.BaseHTTPRequestHandler):
    """Another server: it answers everything with `answer`, a status and bytes, at `seconds` a chunk."""

    answer, seconds = (200, b""), 0.0

    def do_GET(self):
        status, content = self.answer
        self.send_response(status)
        self.end_headers()
        try:
            for first in range(0, len(content), 1000):
                self.wfile.write(content[first : first + 1000])
                time.sleep(self.seconds)
        except OSError:
            pass

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def strange():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Strange,), {}))
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    made.scheme, made.port = "http", made.server_port
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, b"<html>\x1b[2JA router</html>"), r"refuses the request \(HTTP 200: <html>\[2JA router</html>\)"),
        ((200, b"{}"), "its answer is not one of TensorFlow Serving .*; check host and port"),
        ((200, b'{"model_version_status": [{"version": "x"}]}'), "its answer is not one of TensorFlow Serving"),
        ((200, b'{"model_version_status": []}'), r"a version that answers is needed, the server has none"),
        ((200, b"[" * 100_000), "refuses the request"),
        ((403, b"no"), r"refuses the request \(HTTP 403: no\); look at the server's log"),
        ((413, b""), r"the request is too large for it; use grpc://"),
    ],
)
def test_answers_of_another_kind_of_server(strange, answer, problem):
    strange.RequestHandlerClass.answer = answer
    with pytest.raises(DataError, match=problem):
        opened(strange)


def test_neither_a_flood_nor_a_trickle_is_read_for_ever(strange, monkeypatch):
    strange.RequestHandlerClass.answer = (200, b"x" * 200_000)
    monkeypatch.setattr(rest_wire, "LARGEST_ANSWER", 100_000)
    with pytest.raises(DataError, match="sends more than 0 MB for one request; use grpc://"):
        opened(strange)
    strange.RequestHandlerClass.seconds = 0.1  # twenty seconds in all
    started = time.monotonic()
    with pytest.raises(DataError, match="not answered within"):
        opened(strange, Patience(0.4, 0.6))
    assert time.monotonic() - started < 3


def test_a_malformed_request_is_one_line_with_the_servers_words(server):
    served, wrong = opened(server), np.zeros((2, 8, 8, 2), np.float32)
    model = server.model
    model.functions["serving_default"] = lambda image: (_ for _ in ()).throw(ValueError("rank\n\x1b[31m 4 expected"))
    with pytest.raises(
        DataError, match=r"INVALID_ARGUMENT: rank \[31m 4 expected\); see that it serves the bundle"
    ) as e:
        served.infer(wrong)
    assert "\n" not in str(e.value) and "\x1b" not in str(e.value) and str(served.address) in str(e.value)
    model.functions["serving_default"] = lambda image: {"probabilities": np.zeros((2, 8, 8, 4), np.float32)}
    with pytest.raises(DataError, match=r"answers with shape \(2, 8, 8, 4\), \(2, 8, 8, 3\) is needed"):
        served.infer(wrong)
    with pytest.raises(DataError, match="INVALID_ARGUMENT: Serving signature name"):
        served._wire.ask(served.address, "nothing", {"image": wrong}, "probabilities", 5.0)


def test_numbers_that_json_has_not_are_refused_by_http_alone():
    images = np.full((1, 8, 8, 1), np.nan, np.float32)
    text = RestServer(made_model())
    with pytest.raises(DataError, match="holds values that are not numbers; HTTP cannot carry them, grpc:// can"):
        opened(text).infer(images)
    text.stop()


def test_a_message_over_a_limit_is_no_overload(quick_pauses):
    import grpc

    class Full(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self):
            return "CLIENT: Received message larger than max (9 vs. 4)"

    served = Server(Address.parse("grpc://127.0.0.1:1/bones"), SPEC, QUICK)

    def refuse(request, timeout):
        raise Full

    with pytest.raises(DataError, match="larger than max .* raise the limit of message sizes of the server"):
        served._wire._call(refuse, None, served.address, 1.0)
    big = GrpcServer(made_model())  # 4.3 MB there and 13 MB back: gRPC's own limit is 4
    images = np.random.default_rng(1).normal(size=(17_000, 8, 8, 1)).astype(np.float32)
    found = opened(big)._probabilities(images)
    np.testing.assert_array_equal(found[::1000], probabilities(images[::1000]))
    big.stop()


# ------------------------------------------------------------------------------------------------ what passes


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_an_overloaded_server_is_asked_again(server, code, quick_pauses, few_at_once):
    served = opened(server)
    server.faults.codes += [code, None, code, code]
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(served.infer(images), probabilities(images))
    assert len(server.faults.asked) == 7 + 3


def test_a_slow_server_is_asked_again_and_given_up_in_clear_words(server, quick_pauses):
    served = opened(server, Patience(0.4, 20.0))
    images = np.ones((1, 8, 8, 1), np.float32)
    server.faults.delays += [1.0]
    np.testing.assert_array_equal(served.infer(images), probabilities(images))
    assert len(server.faults.asked) == 2
    served = opened(server, Patience(0.3, 0.8))
    server.faults.delays += [1.5] * 10
    with pytest.raises(
        DataError, match=r"no answer in .* s and \d attempt.* not answered within .* s; see that the serve"
    ):
        served.infer(images)
    tries = len(server.faults.asked)
    with pytest.raises(DataError, match=r"1 attempt\(s\)"):  # a server given up is not waited for again
        served.infer(images)
    assert len(server.faults.asked) <= tries + 1
    server.faults.delays.clear()
    np.testing.assert_array_equal(served.infer(images), probabilities(images))
    assert not served._given_up


def test_a_server_killed_in_the_middle_and_started_again_loses_nothing(server, bundle, scans, quick_pauses, tmp_path):
    server.faults.delays += [0.0, 3.0]

    def restart():
        while len(server.faults.asked) < 2:
            time.sleep(0.01)
        server.stop()
        time.sleep(0.4)
        server.start()

    killer = threading.Thread(target=restart)
    killer.start()
    result = predict(bundle, scans[0], tmp_path / "labels", options=asked(server, send="windows"))
    killer.join()
    assert not result.failures and len(server.faults.asked) >= 4
    for name, labels in scans[1].items():
        np.testing.assert_array_equal(read_volume(tmp_path / "labels" / f"{name}.nii.gz").array, labels)
    assert not [path for path in (tmp_path / "labels").iterdir() if path.name.startswith(".tmp")]


def start(port, seconds):
    """A server in a process of its own."""
    script = Path(__file__).with_name("served_function.py")
    process = subprocess.Popen(
        [sys.executable, "-u", str(script), str(port), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_process_killed_by_the_system_in_the_middle_of_a_request(bundle, scans, quick_pauses, tmp_path):
    process, port = start(0, 30.0)
    options = PredictOptions(server=f"http://127.0.0.1:{port}/bones", deadline=20, patience=30)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(predict, bundle, scans[0], tmp_path / "labels", options=options)
        assert process.stdout.readline() == "asked\n"
        end(process)
        process, _ = start(port, 0.0)
        result = job.result()
    end(process)
    assert not result.failures
    for name, labels in scans[1].items():
        np.testing.assert_array_equal(read_volume(tmp_path / "labels" / f"{name}.nii.gz").array, labels)


def test_a_server_that_stays_away_fails_the_rest_quickly_and_resume_goes_on(
    server, bundle, scans, quick_pauses, tmp_path
):
    options = asked(server, send="windows", deadline=5.0, patience=1.0)
    threading.Thread(target=lambda: (wait_for(lambda: len(server.faults.asked) > COPIES), server.stop())).start()
    server.faults.delays += [0.0] * COPIES + [1.0]
    started = time.monotonic()
    result = predict(bundle, scans[0], tmp_path / "labels", options=options)
    assert list(result.written) == ["scan0"] and list(result.failures) == ["scan1", "scan2"]
    assert "1 attempt(s)" in result.failures["scan2"] and time.monotonic() - started < 10
    assert [path.name for path in (tmp_path / "labels").glob("*.nii.gz")] == ["scan0.nii.gz"]
    server.start()
    server.faults.asked.clear()
    result = predict(bundle, scans[0], tmp_path / "labels", options=asked(server, send="windows", resume=True))
    assert not result.failures and len(server.faults.asked) == 2 * COPIES  # the finished scan is not sent again
    for name, labels in scans[1].items():
        np.testing.assert_array_equal(read_volume(tmp_path / "labels" / f"{name}.nii.gz").array, labels)


def wait_for(what):
    while not what():
        time.sleep(0.01)


def test_fifty_clients_at_once_get_their_own_answers(server, quick_pauses, few_at_once):
    server.faults.at_once = 8  # the others are told to come back
    images = [np.random.default_rng(n).normal(size=(7, 8, 8, 1)).astype(np.float32) for n in range(50)]

    def one(number):
        return opened(server, Patience(30, 60)).infer(images[number])

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(one, range(50)))
    for image, answer in zip(images, found, strict=True):
        np.testing.assert_array_equal(answer, probabilities(image))
    assert server.faults.largest <= 3 * 64 * 8 and len(server.faults.asked) >= 150


@pytest.fixture
def interruptible():
    """A process started in the background may have been told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_an_interrupt_does_not_wait_for_the_server(server, few_at_once, interruptible):
    served, images = opened(server), np.ones((12, 8, 8, 1), np.float32)
    before = set(threading.enumerate())
    server.faults.delays += [4.0] * 4
    here, wire = threading.main_thread().ident, served._wire
    threading.Timer(0.5, lambda: signal.pthread_kill(here, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        served.infer(images)
    ours = [one for one in set(threading.enumerate()) - before if "worker" in one.name]
    for one in ours:  # or they would keep the process from ending
        one.join(2)
    assert not any(one.is_alive() for one in ours) and server.faults.running > 0  # the server is busy still
    with pytest.raises(ValueError, match="after hanging up|closed channel"):  # what was about to be sent is not sent
        wire.ask(served.address, "serving_default", {"image": images}, "probabilities", 5.0)
    np.testing.assert_array_equal(served.infer(images), probabilities(images))  # and it can be asked again


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_asks_a_server_with_a_copy_of_the_json_files(server, bundle, scans, tmp_path):
    words = ["predict", "-m", str(bundle), "-i", str(scans[0]), "-o", str(tmp_path / "labels"), "--server", url(server)]
    result = CliRunner().invoke(tfmuscle_group, words, catch_exceptions=False)
    assert result.exit_code == 0 and "3 scan(s) segmented" in result.output
    note = (tmp_path / "labels" / "predictions.json").read_text()
    assert f'"engine": "{url(server)}/1"' in note
    result = CliRunner().invoke(tfmuscle_group, [*words, "--engine", "onnx"])
    assert result.exit_code == 1 and "with --server give the bundle that is served" in result.output
    assert CliRunner().invoke(tfmuscle_group, [*words, "--deadline", "0"]).exit_code == 2
    words[words.index("--server") + 1] = "ftp://h/n"
    result = CliRunner().invoke(tfmuscle_group, words)
    assert result.exit_code == 1 and result.output.startswith("Error: 'ftp://h/n': protocol 'ftp' is not spoken")


def test_an_altered_copy_and_a_run_are_refused(server, bundle, tmp_path):
    copy = tmp_path / "bones" / "1"
    copy.mkdir(parents=True)
    for path in (bundle / "1").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    spec = copy / "spec.json"
    spec.write_text(spec.read_text().replace('"none"', '"zscore"'))
    with pytest.raises(DataError, match="is missing or has changed since it was exported"):
        predict(copy, tmp_path, tmp_path / "out", options=asked(server))
    spec.unlink()
    with pytest.raises(DataError, match=r"spec\.json: is missing or has changed"):
        predict(copy, tmp_path, tmp_path / "out", options=asked(server))
    with pytest.raises(DataError, match="with --server give the bundle that is served, or a copy of its JSON files"):
        predict(tmp_path, tmp_path, tmp_path / "out", options=asked(server))
    with pytest.raises(ValueError, match="send is 'fast'; choose one of auto, scan, windows"):
        predict(bundle, tmp_path, tmp_path / "out", options=asked(server, send="fast"))
    assert len(list(itertools.chain(server.faults.asked))) == 0
