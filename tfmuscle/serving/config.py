"""What TensorFlow Serving, Docker Compose and Kubernetes read: text for a list of bundles.

    models.config      which models, where, which versions (`ModelServerConfig`, protobuf text)
    batching.config    how requests of several clients are put together (`BatchingParameters`, protobuf text)
    monitoring.config  figures for Prometheus (`MonitoringConfig`, protobuf text)
    compose.yaml       one machine: ports on 127.0.0.1 only, bundles read only, no root
    kubernetes.yaml    a cluster: ConfigMap, PersistentVolumeClaim, Deployment, Service

Batching is off where a bundle has the signature `segment`: TensorFlow Serving then batches *every* signature, along the
first axis of all inputs, and a volume and its 4 x 4 affine have different ones, so that each such request would fail.
`batching.config` is written all the same, and is handed to the server only together with `--enable_batching`, because
without that flag the server ends when it is given the file.

Healthy is who says AVAILABLE for every model; the plain status is answered with 200 while a model is still loading. The
image has no curl, so that the check is a line of bash. A warm-up record is not written: it would have to lie inside the
bundle, whose checksums refuse what was added; the client's first request does the same.

YAML is written by hand, its strings as JSON, which YAML includes; nothing here needs a library.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE = "tensorflow/serving:2.21.0"
"""Image of the server, of the TensorFlow that writes the bundles."""
GPU_SUFFIX = "-gpu"
GRPC_PORT, REST_PORT = 8500, 8501
MODELS, CONFIG = "/models", "/config"
"""Folders inside the container."""
MODELS_FILE, BATCHING_FILE, MONITORING_FILE = "models.config", "batching.config", "monitoring.config"
COMPOSE_FILE, KUBERNETES_FILE = "compose.yaml", "kubernetes.yaml"
REST_TIMEOUT_S = 600
"""The server's own limit for a request by HTTP; its default of 30 s is too short for whole scans."""
BATCH_TIMEOUT_MICROS = 5000
QUEUED_BATCHES = 32
"""Batches that wait; further requests are told to come back (UNAVAILABLE)."""
USER = 65534
"""Number of the user "nobody", as whom the server runs."""
NAME = "tfmuscle-serving"
_PROMETHEUS = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class Model:
    """A bundle to be served.

    Attributes:
        name: under which clients ask for it.
        folder: of all its versions, on this machine.
        versions: to serve; none for the newest.
        segment: whether a version has the signature `segment`.
        windows: the most samples that one request of our client brings.
        megabytes: of the files.
    """

    name: str
    folder: Path
    versions: tuple[int, ...]
    segment: bool
    windows: int
    megabytes: float


@dataclass(frozen=True)
class ServeOptions:
    """What may be left as it is.

    Attributes:
        gpu: serve on a graphics processor.
        cpus: cores for the server.
        memory_gb: of main memory; a whole scan may need 8 GB for its probabilities alone.
        batching: put requests of several clients together; None where no bundle has `segment`.
        image: of the server; None for `IMAGE`.
    """

    gpu: bool = False
    cpus: int = 4
    memory_gb: int = 16
    batching: bool | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "memory_gb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; one at least is needed")

    @property
    def chosen_image(self) -> str:
        """Image with its tag."""
        return self.image or IMAGE + (GPU_SUFFIX if self.gpu else "")


def batches(models: Sequence[Model], options: ServeOptions) -> bool:
    """Whether the server shall put requests together."""
    return not any(model.segment for model in models) if options.batching is None else options.batching


def models_config(models: Sequence[Model]) -> str:
    """Returns a `ModelServerConfig`. Of several versions the lowest is labelled "stable", the highest "canary"."""
    lines = ["model_config_list {"]
    for model in models:
        lines += ["  config {", f'    name: "{model.name}"', f'    base_path: "{MODELS}/{model.name}"']
        lines += ['    model_platform: "tensorflow"']
        if not model.versions:
            lines += ["    model_version_policy { latest { num_versions: 1 } }"]
        else:
            which = " ".join(f"versions: {version}" for version in model.versions)
            lines += [f"    model_version_policy {{ specific {{ {which} }} }}"]
            for label, version in _labels(model).items():
                lines += [f'    version_labels {{ key: "{label}" value: {version} }}']
        lines += ["  }"]
    return "\n".join([*lines, "}"]) + "\n"


def batching_config(models: Sequence[Model], options: ServeOptions) -> str:
    """Returns `BatchingParameters`; a batch holds the largest request of our client, which would else be refused."""
    largest = max(model.windows for model in models)
    note = "" if batches(models, options) else "# Not in use: see --batching of tfmuscle serve-config.\n"
    return note + (
        f"max_batch_size {{ value: {largest} }}\n"
        f"batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}\n"
        f"max_enqueued_batches {{ value: {QUEUED_BATCHES} }}\n"
        f"num_batch_threads {{ value: {options.cpus} }}\n"
    )


def monitoring_config() -> str:
    """Returns a `MonitoringConfig`."""
    return f'prometheus_config {{ enable: true path: "{_PROMETHEUS}" }}\n'


def arguments(models: Sequence[Model], options: ServeOptions) -> list[str]:
    """Returns what the server is started with; the image adds its ports."""
    given = [
        f"--model_config_file={CONFIG}/{MODELS_FILE}",
        f"--monitoring_config_file={CONFIG}/{MONITORING_FILE}",
        f"--rest_api_timeout_in_ms={REST_TIMEOUT_S * 1000}",
    ]
    if any(_labels(model) for model in models):
        given += ["--allow_version_labels_for_unavailable_models=true"]
    if batches(models, options):
        given += ["--enable_batching=true", f"--batching_parameters_file={CONFIG}/{BATCHING_FILE}"]
    return given


def health_check(models: Sequence[Model]) -> list[str]:
    """Returns a command that succeeds when every model answers."""
    names = " ".join(model.name for model in models)
    script = (
        f"for name in {names}; do"
        f" exec 3<>/dev/tcp/127.0.0.1/{REST_PORT} || exit 1;"
        " printf 'GET /v1/models/%s HTTP/1.0\\r\\n\\r\\n' \"$name\" >&3;"
        " grep -q '\"AVAILABLE\"' <&3 || exit 1; done"
    )
    return ["bash", "-c", script]


def compose(models: Sequence[Model], options: ServeOptions, sources: dict[str, str]) -> str:
    """Returns a file for `docker compose up`.

    Args:
        models: to serve.
        options: sizes.
        sources: name of a model -> its folder, relative to the file.
    """
    mounts = [(f"./{name}", f"{CONFIG}/{name}") for name in (MODELS_FILE, BATCHING_FILE, MONITORING_FILE)]
    mounts += [(sources[model.name], f"{MODELS}/{model.name}") for model in models]
    check = json.dumps(["CMD", *health_check(models)]).replace("$", "$$")
    lines = [
        "# docker compose up --wait; written by tfmuscle serve-config. The server asks for no password: its ports",
        "# are open on this machine only. Put a proxy with TLS and a login before them to open them to others.",
        "services:",
        f"  {NAME}:",
        f"    image: {_quoted(options.chosen_image)}",
        f"    command: {_listed(arguments(models, options))}",
        f'    user: "{USER}:{USER}"',
        "    read_only: true",
        '    tmpfs: ["/tmp"]',
        '    cap_drop: ["ALL"]',
        '    security_opt: ["no-new-privileges:true"]',
        "    restart: unless-stopped",
        f"    cpus: {options.cpus}",
        f"    mem_limit: {options.memory_gb}g",
        "    ports:",
        f'      - "127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"  # gRPC',
        f'      - "127.0.0.1:{REST_PORT}:{REST_PORT}"  # HTTP, and {_PROMETHEUS}',
        "    volumes:",
    ]
    for source, target in mounts:
        lines += [f"      - {{type: bind, source: {_quoted(source)}, target: {_quoted(target)}, read_only: true}}"]
    lines += [
        "    healthcheck:",
        f"      test: {check}",
        "      interval: 10s",
        "      timeout: 5s",
        "      retries: 3",
        "      start_period: 60s",
    ]
    if options.gpu:
        lines += ["    deploy:", "      resources:", "        reservations:"]
        lines += ["          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]"]
    return "\n".join(lines) + "\n"


def kubernetes(models: Sequence[Model], options: ServeOptions) -> str:
    """Returns manifests for `kubectl apply -f`."""
    parts = [_config_map(models, options), _claim(models), _deployment(models, options), _service()]
    return "---\n".join(parts)


def _config_map(models: Sequence[Model], options: ServeOptions) -> str:
    files = {
        MODELS_FILE: models_config(models),
        BATCHING_FILE: batching_config(models, options),
        MONITORING_FILE: monitoring_config(),
    }
    lines = [
        "# kubectl apply -f kubernetes.yaml; written by tfmuscle serve-config.",
        *_head("v1", "ConfigMap"),
        "data:",
    ]
    for name, text in files.items():
        lines += [f"  {name}: |", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def _claim(models: Sequence[Model]) -> str:
    gigabytes = max(1, -(-int(2 * sum(model.megabytes for model in models)) // 1000))
    names = ", ".join(model.name for model in models)
    lines = [
        f"# The bundles ({names}), one folder each. Fill it once: run a pod that mounts it, and kubectl cp",
        "# saved_models/NAME POD:/models/NAME. Several nodes need ReadWriteMany or ReadOnlyMany. On a cluster of one",
        "# node, put hostPath: {path: /where/saved_models/is} for persistentVolumeClaim in the volume models below.",
        *_head("v1", "PersistentVolumeClaim"),
        "spec:",
        "  accessModes: [ReadWriteOnce]",
        f"  resources: {{requests: {{storage: {gigabytes}Gi}}}}",
    ]
    return "\n".join(lines) + "\n"


def _deployment(models: Sequence[Model], options: ServeOptions) -> str:
    half = max(1, options.memory_gb // 2)
    gpu = ", nvidia.com/gpu: 1" if options.gpu else ""
    check = f"exec: {{command: {_listed(health_check(models))}}}"
    alive = f"httpGet: {{path: {_quoted(f'/v1/models/{models[0].name}')}, port: rest}}"
    lines = [
        *_head("apps/v1", "Deployment"),
        "spec:",
        "  replicas: 1",
        f"  selector: {{matchLabels: {{app: {NAME}}}}}",
        "  template:",
        f"    metadata: {{labels: {{app: {NAME}}}}}",
        "    spec:",
        "      automountServiceAccountToken: false",
        "      securityContext:",
        "        runAsNonRoot: true",
        f"        runAsUser: {USER}",
        f"        runAsGroup: {USER}",
        "        seccompProfile: {type: RuntimeDefault}",
        "      containers:",
        "        - name: serving",
        f"          image: {_quoted(options.chosen_image)}",
        f"          args: {_listed(arguments(models, options))}",
        "          ports:",
        f"            - {{name: grpc, containerPort: {GRPC_PORT}}}",
        f"            - {{name: rest, containerPort: {REST_PORT}}}",
        "          securityContext:",
        "            {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}",
        "          resources:",
        f"            requests: {{cpu: {max(1, options.cpus // 2)}, memory: {half}Gi}}",
        f"            limits: {{cpu: {options.cpus}, memory: {options.memory_gb}Gi{gpu}}}",
        "          startupProbe:  # up to five minutes to load",
        f"            {check}",
        "            periodSeconds: 5",
        "            timeoutSeconds: 5",
        "            failureThreshold: 60",
        "          readinessProbe:",
        f"            {check}",
        "            periodSeconds: 10",
        "            timeoutSeconds: 5",
        "          livenessProbe:  # slow to strike: a busy server is no dead one",
        f"            {alive}",
        "            periodSeconds: 30",
        "            timeoutSeconds: 10",
        "            failureThreshold: 5",
        "          volumeMounts:",
        f"            - {{name: models, mountPath: {MODELS}, readOnly: true}}",
        f"            - {{name: config, mountPath: {CONFIG}, readOnly: true}}",
        "            - {name: tmp, mountPath: /tmp}",
        "      volumes:",
        f"        - {{name: models, persistentVolumeClaim: {{claimName: {NAME}, readOnly: true}}}}",
        f"        - {{name: config, configMap: {{name: {NAME}}}}}",
        "        - {name: tmp, emptyDir: {}}",
    ]
    return "\n".join(lines) + "\n"


def _service() -> str:
    lines = [
        "# Inside the cluster only, without a password: grpc://tfmuscle-serving:8500/NAME.",
        *_head("v1", "Service"),
        "spec:",
        f"  selector: {{app: {NAME}}}",
        "  ports:",
        f"    - {{name: grpc, port: {GRPC_PORT}, targetPort: grpc}}",
        f"    - {{name: rest, port: {REST_PORT}, targetPort: rest}}",
    ]
    return "\n".join(lines) + "\n"


def _labels(model: Model) -> dict[str, int]:
    few = len(model.versions) < 2
    return {} if few else {"stable": min(model.versions), "canary": max(model.versions)}


def _head(version: str, kind: str) -> list[str]:
    return [f"apiVersion: {version}", f"kind: {kind}", f"metadata: {{name: {NAME}, labels: {{app: {NAME}}}}}"]


def _quoted(text: str) -> str:
    """Returns a string as YAML: JSON's form of it."""
    return json.dumps(text)


def _listed(texts: Sequence[str]) -> str:
    return json.dumps(list(texts))
