import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from tfmuscle import models
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SMALL = {
    "unet": {"filters": 4, "levels": 3},
    "unet2d": {"filters": 2},
    "fcn8s": {"filters": 2},
    "segnet": {"filters": 2},
    "denseunet": {"blocks": (1, 1, 1, 1), "growth": 6},
    "latent_unet": {"filters": 2, "latent": 4},
    "hdenseunet": {"blocks_2d": (1, 1, 1, 1), "growth_2d": 6, "blocks_3d": (1, 1, 1, 1), "growth_3d": 2},
    "ifss_net": {"filters": 5},
    "seg_net_fs": {"filters": 5},
    "vnet": {"filters": 2, "levels": 3},
    "unet3d": {"filters": 2, "levels": 3},
    "daf3d": {"filters": 4, "blocks": (1, 1, 1, 1)},
    "pg_net": {"filters": 2, "features": 4, "blocks": (1, 1, 1, 1)},
}
THICK = {"hdenseunet": 4, "ifss_net": 3, "seg_net_fs": 3, "vnet": 3, "unet3d": 3, "daf3d": 3}
"""Depth of the samples of those that take volumes only."""
OF_KNOWN_SIZE = ("hdenseunet", "ifss_net", "seg_net_fs", "daf3d")
COUNTS = {
    "denseunet": 49_750_725,
    "unet2d": 31_030_853,
    "ifss_net": 6_217_186,
    "seg_net_fs": 4_120_362,
    "daf3d": 28_918_390,
    "unet3d": 19_069_955 + 4 * (32 + 64 + 64 + 128 + 128 + 256 + 256 + 512 + 2 * (256 + 128 + 64)),  # batch norms
}
"""Parameters by published figure or, for denseunet, by the formula of test_models_dense."""
ONE_BONE = LabelMap({1: "femur"})


def classes(name):
    """Those that are told a mask know one structure and the rest."""
    return 2 if len(models.inputs(name)) > 1 else 3


def build_small(name, input_shape, **options):
    return models.build(name, input_shape, classes(name), **SMALL.get(name, {}), **options)


def spatial(name, height, width):
    return (*([THICK[name]] if name in THICK else []), height, width)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def feed(model, count, *shape):
    """Noise for every input of a model, by name where there are several."""
    arrays = {tensor.name: noise(count, *shape, tensor.shape[-1]) for tensor in model.inputs}
    return arrays if len(arrays) > 1 else arrays["image"]


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", models.available())
class TestEveryModel:
    def test_contract(self, name, tmp_path):
        shape = spatial(name, 32, 64)
        model = build_small(name, (*shape, 1))
        assert tuple(tensor.name for tensor in model.inputs) == models.inputs(name)
        assert model.output_names == ["probabilities"]
        assert model.name == name
        images = feed(model, 2, *shape)
        probabilities = model(images).numpy()
        assert probabilities.shape == (2, *shape, classes(name))
        assert probabilities.dtype == np.float32
        # a float32 softmax of two or three terms
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
        assert probabilities.std() > 0
        model.save(tmp_path / "model.keras")
        again = models.load(tmp_path / "model.keras")
        np.testing.assert_array_equal(again(images).numpy(), probabilities)

    def test_float32_under_mixed_precision(self, name, policy):
        half = "bfloat16" if name in THICK else "float16"  # TensorFlow has no float16 pooling in 3D for CPUs
        policy(f"mixed_{half}")
        shape = spatial(name, 32, 32)
        model = build_small(name, (*shape, 1))
        probabilities = model(feed(model, 1, *shape)).numpy()
        assert probabilities.dtype == np.float32
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
        assert any(layer.compute_dtype == half for layer in model.layers)

    def test_any_size(self, name):
        if name in OF_KNOWN_SIZE:
            with pytest.raises(ValueError, match=r"input_shape \(4, None, None, 1\): .* are needed, .* may be None"):
                build_small(name, (4, None, None, 1))
            return
        model, depth = build_small(name, (*spatial(name, None, None), 1)), spatial(name, 0, 0)[:-2]
        for height, width in ((64, 32), (32, 96)):
            assert model(feed(model, 1, *depth, height, width)).shape == (1, *depth, height, width, classes(name))

    def test_describes_itself(self, name):
        if name == "hdenseunet":
            pytest.skip("takes 7 s to build at full size, which test_models_dense does")
        about = models.describe(name)
        assert about["name"] == name
        assert about["source"]
        assert 0 < about["trainable_parameters"] <= about["parameters"] == COUNTS.get(name, about["parameters"])
        json.dumps(about)

    def test_takes_what_the_check_lets_pass(self, name):
        kind = {"kind": "volumes", "depth": THICK[name]} if name in THICK else {}
        options = SMALL.get(name, {})
        models.check_spec(name, DataSpec(ONE_BONE, size=(32, 64), **kind), **options)  # built by test_contract
        for height, width in ((48, 40), (33, 32)):
            spec = DataSpec(ONE_BONE, size=(height, width), **kind)
            try:
                models.check_spec(name, spec, **options)
            except ValueError:
                with pytest.raises(ValueError, match="multiples of"):
                    models.build(name, spec.input_shape, spec.num_classes, **options)
            else:
                output_shape = models.build(name, spec.input_shape, 2, **options).output_shape
                assert output_shape == (None, *spatial(name, height, width), 2)

    def test_bad_arguments(self, name):
        with pytest.raises(ValueError, match=rf"{name} has no option 'filter_count'; "):
            models.build(name, (*spatial(name, 32, 32), 1), 3, filter_count=3)
        with pytest.raises(ValueError, match="num_classes is 1; at least 2 are needed, background included"):
            models.build(name, (*spatial(name, 32, 32), 1), 1)
        with pytest.raises(ValueError, match=r"input_shape \(32, 1\): .* spatial axes and channels"):
            models.build(name, (32, 1), 3)


def test_listing_and_checking_do_not_import_tensorflow():
    code = (
        "import sys; from tfmuscle import models\n"
        "from tfmuscle.config import DataSpec; from tfmuscle.labels import LabelMap\n"
        f"thick = {THICK}\n"
        "for name in models.available():\n"
        "    kind = {'kind': 'volumes', 'depth': thick[name]} if name in thick else {}\n"
        "    models.check_spec(name, DataSpec(LabelMap({1: 'femur'}), **kind))\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_available():
    backbones = ["mobilenetv2_unet", "resnet34_unet", "resnet50_unet", "vgg19_unet"]
    propagating = ["ifss_net", "pg_net", "seg_net_fs"]
    others = ["daf3d", "denseunet", "fcn8s", "hdenseunet", "latent_unet", "segnet", "unet", "unet2d", "unet3d", "vnet"]
    assert models.available() == sorted(backbones + propagating + others)
    with pytest.raises(ValueError, match="no model is called 'resnet34'; did you mean 'resnet34_unet'"):
        models.build("resnet34", (32, 32, 1), 2)
    with pytest.raises(ValueError, match="no model is called 'blocks'; there are daf3d, "):
        models.describe("blocks")


def test_describe_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tfmuscle.models.resnet34_unet", None)
    about = models.describe("resnet34_unet")
    assert about["parameters"] is None
    assert "resnet34_unet" in about["problem"]


# what fits which records


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        (
            "unet",
            {"size": (100, 100)},
            {},
            r"size \(100, 100\): unet: 4 poolings .* 16; use 96 x 96, or levels=3",
        ),
        ("unet", {"kind": "volumes", "depth": 37}, {}, r"depth and size \(37, 256, 256\): .* use 32 x 256 x 256"),
        ("unet", {"kind": "sequences", "depth": 3, "size": (16, 16)}, {"levels": 5}, "use 3 x 64 x 64, or levels=3"),
        ("unet", {"size": (32, 32)}, {"levels": 6}, "unet with levels=6: 5 poolings"),
        (
            "vgg19_unet",
            {"size": (100, 96)},
            {},
            r"size \(100, 96\): vgg19_unet needs multiples of 32; use --size 96 96",
        ),
        (
            "vgg19_unet",
            {"kind": "volumes", "depth": 32},
            {},
            r"kind 'volumes': vgg19_unet takes slices or stacks; .* a 3D model \(daf3d, fcn8s, .*, vnet\)",
        ),
        (
            "hdenseunet",
            {},
            {},
            r"kind 'slices': hdenseunet takes volumes or sequences; .* choose a 2D model \(denseunet, .*vgg19_unet\)",
        ),
        (
            "hdenseunet",
            {"kind": "volumes", "depth": 6},
            {},
            "depth 6: hdenseunet needs multiples of 4; use --depth 8",
        ),
        (
            "unet",
            {"kind": "volumes", "depth": 40, "size": (56, 41)},
            {"strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]]},
            r"depth and size \(40, 56, 41\): unet: strides need multiples of 2 x 4 x 4; use 40 x 56 x 40",
        ),
        ("unet", {"label_map": LabelMap({})}, {}, "label_map {'background': 0}: names no structure"),
        ("unit", {}, {}, "no model is called 'unit'; did you mean 'unet'"),
    ],
)
def test_specs_that_do_not_fit(name, fields, options, message):
    with pytest.raises(ValueError, match=message):
        models.check_spec(name, DataSpec(**{"label_map": ONE_BONE} | fields), **options)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"kind": "volumes", "depth": 48, "size": (64, 48)}, {"levels": 4}),
        ({"kind": "stacks", "depth": 5, "size": (96, 96)}, {}),
        ({"kind": "sequences", "depth": 3, "size": (64, 64)}, {"levels": 5}),
        ({"size": (32, 32)}, {"levels": 3}),
        (
            {"kind": "volumes", "depth": 6, "size": (12, 20)},
            {"strides": [1, [1, 2, 2], 2], "kernels": [[1, 3, 3], 3, 3]},
        ),
    ],
)
def test_specs_that_fit(fields, options):
    spec = DataSpec(ONE_BONE, **fields)
    models.check_spec("unet", spec, **options)
    assert models.build("unet", spec.input_shape, 2, filters=2, **options).output_shape[1:-1] in (
        spec.window,
        spec.size,
    )


# loading


def test_load_in_a_fresh_process(tmp_path):
    model = models.build("unet", (16, 16, 1), 3, filters=4, levels=2, block="residual")
    model.save(tmp_path / "model.keras")
    images = noise(1, 16, 16, 1)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy; from tfmuscle import models; import tfmuscle.models.resnet34_unet; folder = sys.argv[1]\n"
        "model = models.load(folder + '/model.keras')\n"
        "numpy.save(folder + '/found.npy', model(numpy.load(folder + '/images.npy')).numpy())"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert result.stdout == ""  # segmentation-models prints when it is imported, which would spoil `--json`
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model(images).numpy(), atol=1e-6)


def rewritten(source, target, change):
    """Copies a model file with its configuration changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.namelist():
            content = old.read(item)
            new.writestr(item, change(content.decode()).encode() if item == "config.json" else content)
    return target


def test_files_that_are_no_model(tmp_path):
    good = tmp_path / "good.keras"
    models.build("unet", (16, 16, 1), 3, filters=4, levels=2).save(good)
    with pytest.raises(DataError, match=r"absent\.keras: there is no such model file; give the \.keras file of a run"):
        models.load(tmp_path / "absent.keras")
    (tmp_path / "garbage.keras").write_bytes(b"garbage" * 99)
    (tmp_path / "cut.keras").write_bytes(good.read_bytes()[:-2000])
    (tmp_path / "model.h5").write_bytes(good.read_bytes())
    for name in ("garbage.keras", "cut.keras", "model.h5"):
        with pytest.raises(
            DataError, match=rf"{name}: not a Keras model file \(\.keras\), or cut short; copy it again"
        ):
            models.load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as file:
        file.writestr("readme.txt", "no model")
    rewritten(good, tmp_path / "json.keras", lambda text: text[:-40])
    rewritten(good, tmp_path / "config.keras", lambda text: text.replace('"Conv2D"', '"Conv9D"'))
    rewritten(good, tmp_path / "shape.keras", lambda text: text.replace('"filters": 8', '"filters": 9'))
    for name in ("other.keras", "json.keras", "config.keras", "shape.keras"):
        with pytest.raises(
            DataError, match=rf"{name}: cannot be loaded \(.+\); use a model that tfmuscle wrote"
        ) as error:
            models.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_hostile_files_run_nothing(tmp_path):
    image = keras.Input((4, 4, 1), name="image")
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(tmp_path / "lambda.keras")
    with pytest.raises(DataError, match=r"lambda\.keras: cannot be loaded"):
        models.load(tmp_path / "lambda.keras")
    keras.Model(image, keras.layers.Activation("relu")(image)).save(tmp_path / "good.keras")
    mark = tmp_path / "was_here"

    def call_system(text):
        content = json.loads(text)
        for layer in content["config"]["layers"]:
            if layer["class_name"] == "Activation":
                attack = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
                layer["config"]["activation"] = attack
                layer["config"]["name"] = f"touch {mark}"
        return json.dumps(content)

    with pytest.raises(DataError, match=r"system\.keras: cannot be loaded"):
        models.load(rewritten(tmp_path / "good.keras", tmp_path / "system.keras", call_system))
    assert not mark.exists()
