"""What servers read: parsed by the official protocol where there is one, by YAML's own parser, and by bash."""

import shutil
import subprocess

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from known_networks import make_spec
from model_server import LOADING, Model, RestServer, signature
from served_bundles import write_made_bundle
from tensorflow_serving.config import model_server_config_pb2

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.serving import windows_per_request
from tfmuscle.serving.config import ServeOptions, health_check
from tfmuscle.workflows.serving import serve_config

SPEC = make_spec("slices")
FILES = ("models.config", "batching.config", "monitoring.config", "compose.yaml", "kubernetes.yaml")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """`bones` in two versions that segment whole scans, `muscles` in one that does not."""
    root = tmp_path_factory.mktemp("saved_models")
    for version in (1, 2):
        write_made_bundle(root / "bones" / str(version), SPEC)
    write_made_bundle(root / "muscles" / "1", make_spec("volumes"), segment=False)
    return root


@pytest.fixture(scope="module")
def both(bundles, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "serving"
    serve_config([bundles / "bones", bundles / "muscles"], out)
    return out


def message(name, fields, *, more=()):
    """A message type after the documentation: the package has no such file. `fields`: (name, number, type)."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="documented", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    for title, rows in ((name, fields), *more):
        made = file.message_type.add(name=title)
        for field, number, kind in rows:
            item = made.field.add(name=field, number=number, label=1)
            if kind.startswith("."):
                item.type, item.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, kind
            else:
                item.type = getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"documented.{name}"))


def batching_of(path):
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    fields = [(name, number + 1, ".google.protobuf.Int64Value") for number, name in enumerate(numbers)]
    return text_format.Parse(path.read_text(), message("BatchingParameters", fields)())


def test_the_models_are_what_the_official_protocol_reads(both):
    config = text_format.Parse((both / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    found = list(config.model_config_list.config)
    assert [(one.name, one.base_path) for one in found] == [("bones", "/models/bones"), ("muscles", "/models/muscles")]
    assert {one.model_platform for one in found} == {"tensorflow"}
    assert all(one.model_version_policy.latest.num_versions == 1 for one in found)  # of both the newest


def test_versions_given_are_served_side_by_side_and_labelled(bundles, tmp_path):
    (model,) = serve_config([bundles / "bones" / "2", bundles / "bones" / "1"], tmp_path)
    assert model.versions == (1, 2)
    config = text_format.Parse((tmp_path / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (found,) = config.model_config_list.config
    assert list(found.model_version_policy.specific.versions) == [1, 2]
    assert dict(found.version_labels) == {"stable": 1, "canary": 2}
    assert "--allow_version_labels_for_unavailable_models=true" in (tmp_path / "compose.yaml").read_text()


def test_a_batch_holds_what_one_request_of_the_client_brings(bundles, both, tmp_path):
    serve_config([bundles / "muscles"], tmp_path, options=ServeOptions(cpus=3))
    found = batching_of(tmp_path / "batching.config")
    assert found.max_batch_size.value == windows_per_request(make_spec("volumes"), "grpc") > 1
    assert found.num_batch_threads.value == 3 and found.batch_timeout_micros.value > 0
    assert found.max_enqueued_batches.value > 0
    assert batching_of(both / "batching.config").max_batch_size.value == windows_per_request(SPEC, "grpc")


def test_batching_is_off_where_it_would_break_whole_scans_unless_asked_for(bundles, both, tmp_path):
    def command(folder):
        return yaml.safe_load((folder / "compose.yaml").read_text())["services"]["tfmuscle-serving"]["command"]

    assert not [flag for flag in command(both) if "batching" in flag]  # the server ends when given the file alone
    wanted = ["--enable_batching=true", "--batching_parameters_file=/config/batching.config"]
    serve_config([bundles / "muscles"], tmp_path / "one")
    assert command(tmp_path / "one")[-2:] == wanted
    serve_config([bundles / "bones"], tmp_path / "asked", options=ServeOptions(batching=True))
    assert command(tmp_path / "asked")[-2:] == wanted
    serve_config([bundles / "muscles"], tmp_path / "off", options=ServeOptions(batching=False))
    assert not [flag for flag in command(tmp_path / "off") if "batching" in flag]


def test_monitoring_is_what_the_documented_message_holds(both):
    types = message(
        "MonitoringConfig",
        [("prometheus_config", 1, ".documented.PrometheusConfig")],
        more=[("PrometheusConfig", [("enable", 1, "BOOL"), ("path", 2, "STRING")])],
    )
    found = text_format.Parse((both / "monitoring.config").read_text(), types())
    assert found.prometheus_config.enable and found.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_compose_opens_ports_here_only_and_lets_nothing_be_written(bundles, both):
    content = yaml.safe_load((both / "compose.yaml").read_text())
    service = content["services"]["tfmuscle-serving"]
    assert service["image"] == "tensorflow/serving:2.21.0"
    assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    assert service["read_only"] is True and service["user"] == "65534:65534" and service["cap_drop"] == ["ALL"]
    assert service["mem_limit"] == "16g" and service["cpus"] == 4
    mounted = {mount["target"]: mount for mount in service["volumes"]}
    assert all(mount["read_only"] is True and mount["type"] == "bind" for mount in mounted.values())
    for target, mount in mounted.items():
        assert (both / mount["source"]).exists()
        assert mount["source"].startswith("."), "Compose takes other names for volumes of its own"
        if target.startswith("/models/"):
            assert (both / mount["source"]).resolve() == bundles / target.removeprefix("/models/")
    assert {flag.partition("=")[2] for flag in service["command"] if "_file=" in flag} <= set(mounted)
    assert service["healthcheck"]["test"][:3] == ["CMD", "bash", "-c"]


def test_kubernetes_gets_the_same_files_probes_and_no_rights(both):
    parts = {one["kind"]: one for one in yaml.safe_load_all((both / "kubernetes.yaml").read_text())}
    assert set(parts) == {"ConfigMap", "PersistentVolumeClaim", "Deployment", "Service"}
    for name, text in parts["ConfigMap"]["data"].items():
        assert text == (both / name).read_text()
    pod = parts["Deployment"]["spec"]["template"]
    assert pod["metadata"]["labels"] == parts["Service"]["spec"]["selector"]
    assert parts["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (box,) = pod["spec"]["containers"]
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in box["volumeMounts"]} == set(volumes)
    assert all(mount["readOnly"] for mount in box["volumeMounts"] if mount["name"] != "tmp")
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == parts["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["config"]["configMap"]["name"] == parts["ConfigMap"]["metadata"]["name"]
    assert box["livenessProbe"]["httpGet"] == {"path": "/v1/models/bones", "port": "rest"}
    assert box["readinessProbe"]["exec"]["command"][0] == "bash"
    assert {port["name"]: port["containerPort"] for port in box["ports"]} == {"grpc": 8500, "rest": 8501}
    assert box["resources"]["limits"] == {"cpu": 4, "memory": "16Gi"}


def test_a_graphics_processor_is_asked_for_everywhere(bundles, tmp_path):
    serve_config([bundles / "muscles"], tmp_path, options=ServeOptions(gpu=True, memory_gb=32, cpus=8))
    service = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]["tfmuscle-serving"]
    assert service["image"] == "tensorflow/serving:2.21.0-gpu"
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    parts = {one["kind"]: one for one in yaml.safe_load_all((tmp_path / "kubernetes.yaml").read_text())}
    (box,) = parts["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert box["resources"]["limits"] == {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 1}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_health_check_is_bash_that_knows_loading_from_answering(bundles, both, tmp_path):
    (model, other) = serve_config([bundles / "bones", bundles / "muscles"], tmp_path)
    service = yaml.safe_load((both / "compose.yaml").read_text())["services"]["tfmuscle-serving"]
    command = [word.replace("$$", "$") for word in service["healthcheck"]["test"][1:]]
    assert command == health_check([model, other])

    def checked(server, models):
        script = health_check(models)
        return subprocess.run(
            [*script[:2], script[2].replace("8501", str(server.port))], capture_output=True
        ).returncode

    image = {"image": ("float32", (-1, 8, 8, 1))}
    answers = Model("bones", 1, {"serving_default": signature(image, image)}, {})
    server = RestServer(answers)
    assert checked(server, [model]) == 0
    assert checked(server, [model, other]) != 0  # only one of the two is there
    server.stop()
    assert checked(server, [model]) != 0
    loading = RestServer(answers, state=LOADING)
    assert checked(loading, [model]) != 0
    loading.stop()


def test_what_cannot_be_served_is_refused(bundles, tmp_path):
    out = tmp_path / "serving"
    write_made_bundle(tmp_path / "plain" / "1", SPEC, formats=("onnx",))
    with pytest.raises(DataError, match="holds onnx; TensorFlow Serving needs saved_model"):
        serve_config([tmp_path / "plain"], out)
    write_made_bundle(tmp_path / "copy", SPEC)
    with pytest.raises(DataError, match="needs a folder with a number for each version; name it copy/1"):
        serve_config([tmp_path / "copy"], out)
    hostile = tmp_path / 'x" } config { name: "y'
    write_made_bundle(hostile / "1", SPEC)
    with pytest.raises(DataError, match="cannot be the name of a model: at most 100 of the letters"):
        serve_config([hostile], out)
    write_made_bundle(tmp_path / "bones" / "1", SPEC)
    with pytest.raises(DataError, match="is served under the same name 'bones'"):
        serve_config([bundles / "bones", tmp_path / "bones"], out)
    with pytest.raises(DataError, match="is served under the same name 'bones'"):
        serve_config([bundles / "bones", bundles / "bones" / "1"], out)
    with pytest.raises(ValueError, match="cpus is 0; one at least is needed"):
        ServeOptions(cpus=0)
    with (tmp_path / "bones" / "1" / "saved_model.pb").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="has changed since it was exported"):
        serve_config([tmp_path / "bones"], out)
    assert not out.exists()


def test_the_command_says_what_to_do_next_and_leaves_the_bundle_as_it_is(bundles, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in bundles.rglob("*")}
    words = ["serve-config", "-m", str(bundles / "bones"), "-o", str(tmp_path / "serving"), "--cpus", "2"]
    result = CliRunner().invoke(tfmuscle_group, words, catch_exceptions=False)
    assert result.exit_code == 0 and "bones: newest version of" in result.output
    assert f"docker compose -f {tmp_path / 'serving' / 'compose.yaml'} up --wait" in result.output
    assert {path.name for path in (tmp_path / "serving").iterdir()} == set(FILES)
    assert before == {path: path.stat().st_mtime_ns for path in bundles.rglob("*")}
    assert CliRunner().invoke(tfmuscle_group, [*words[:-1], "0"]).exit_code == 2


def test_a_dollar_in_a_path_is_no_variable_of_compose(tmp_path):
    folder = tmp_path / "a$HOME" / "bones"
    write_made_bundle(folder / "1", SPEC)
    serve_config([folder], tmp_path / "serving")
    service = yaml.safe_load((tmp_path / "serving" / "compose.yaml").read_text())["services"]["tfmuscle-serving"]
    sources = [mount["source"] for mount in service["volumes"] if mount["target"] == "/models/bones"]
    assert sources == ["../a$$HOME/bones"]
    assert np.all([("$" not in word.replace("$$", "")) for word in service["healthcheck"]["test"]])
