"""Architectures: sizes as published, contracts on a batch of two, starts, freezing, tables."""

import hashlib
import logging
import math

import pytest
import torch
import torchvision
from torch import nn

import model as catalogue
from ballot.errors import UserError
from ballot.training.weights import WeightsUnavailable
from model import (
    MODELS,
    create_model,
    describe,
    freeze,
    head_names,
    listing,
    main,
    model_spec,
    unfreeze,
)

OWN = MODELS.names(families=False)
SOME = [
    "simple_cnn",
    "AlexNet",
    "Efficientnet_b0",
    "resnet18",
    "inception_v3",
    "vit_b_16",
    "swin_t",
]
TIMM = ["timm:levit_128s", "timm:mobilenetv4_conv_small"]


def build(name, num_classes=3, **given):
    return create_model(name, num_classes, pretrained="no", **given)[0]


def on_meta(name, num_classes=3, args=None):
    """What `create_model` builds, without memory."""
    return catalogue._on_meta(name, num_classes, args)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def checks_on_meta(name):
    model, size = on_meta(name).eval(), model_spec(name).input_size
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 3)
    model.train()
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 3)
    assert head_names(model)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty `TORCH_HOME`, and no network behind it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


# ------------------------------------------------------------------------ what every name does


@pytest.mark.parametrize("name", SOME + TIMM)
def test_a_network_gives_logits_of_two_images(name):
    checks_on_meta(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_every_network_gives_logits_of_two_images(name):
    checks_on_meta(name)


@pytest.mark.slow
def test_timms_networks_of_every_family_give_logits_of_two_images():
    import timm

    seen = set()
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names and module not in seen:
            seen.add(module)
            name = min(names, key=len)
            model = build(f"timm:{name}") if _is_small(name) else on_meta(f"timm:{name}")
            assert parameters(model) > 0, name
    assert len(seen) > 60


def _is_small(name):
    facts = catalogue._published().get(f"timm:{name}", {})
    return int(facts.get("params") or 1e9) < 8e6 and int(facts.get("input_size") or 999) <= 224


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18", "Efficientnet_b0", "timm:resnet10t"])
def test_a_step_of_training_reaches_every_parameter(name):
    model = build(name, image_size=32)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_importing_loads_no_optional_library():
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys, model; model.model_spec('Efficientnet_b4'); model.model_spec('resnet50');"
        "print([m for m in ('timm', 'efficientnet_pytorch', 'sklearn') if m in sys.modules])"
    )
    root = Path(catalogue.__file__).parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


# -------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    "name, published",
    [
        ("Efficientnet_b0", 5_288_548),
        ("Efficientnet_b1", 7_794_184),
        ("Efficientnet_b2", 9_109_994),
        ("Efficientnet_b3", 12_233_232),
        ("Efficientnet_b4", 19_341_616),
        ("Efficientnet_b5", 30_389_784),
        ("Efficientnet_b6", 43_040_704),
        ("Efficientnet_b7", 66_347_960),
        ("AlexNet", 60_965_224),
        ("ResNet", 25_557_032),
        ("backbone_head", 25_557_032),
    ],
)
def test_a_network_has_the_published_number_of_parameters(name, published):
    assert parameters(on_meta(name, num_classes=1000)) == published


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_torchvisions_networks_have_the_published_number_of_parameters(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    if name in ("inception_v3", "googlenet"):  # published with the heads used in training only
        model = torchvision.models.get_model(name, init_weights=False, aux_logits=True)
        assert parameters(on_meta(name, 1000)) <= published <= parameters(model)
    else:
        assert parameters(on_meta(name, 1000)) == published


@pytest.mark.parametrize(
    "b", [0, 4, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 2, 3, 5, 6, 7))]
)
def test_efficientnets_have_the_keys_of_efficientnet_pytorch(b):
    from efficientnet_pytorch import EfficientNet

    with torch.device("meta"):
        original = EfficientNet.from_name(f"efficientnet-b{b}")
    ours = on_meta(f"Efficientnet_b{b}", num_classes=1000)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in original.state_dict().items()
    }


def test_an_efficientnet_computes_what_efficientnet_pytorch_computes():
    from efficientnet_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-b0", num_classes=3, image_size=64).eval()
    ours = build("Efficientnet_b0", image_size=64).eval()
    ours.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), original(images))


def test_specs_are_the_published_ones():
    assert [model_spec(f"Efficientnet_b{b}").input_size for b in range(8)] == [
        224,
        240,
        260,
        300,
        380,
        456,
        528,
        600,
    ]
    assert model_spec("inception_v3").input_size == 299
    assert model_spec("simple_cnn").input_size == 32
    vit = model_spec("timm:vit_base_patch16_384")
    assert (vit.input_size, vit.mean) == (384, (0.5, 0.5, 0.5))
    assert model_spec("backbone_head", {"backbone": "Efficientnet_b4"}).input_size == 380


# -------------------------------------------------------------------------------- own networks


def test_simple_cnn_is_lenet_with_a_head_of_120_84():
    shapes = [
        tuple(p.shape) for n, p in build("simple_cnn", 10).named_parameters() if "bias" not in n
    ]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]


@pytest.mark.parametrize("size", [16, 28, 32, 33, 64, 224])
def test_simple_cnn_takes_images_from_16_pixels(size):
    assert build("simple_cnn", image_size=size)(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_alexnet_normalises_its_first_two_layers():
    norms = [m for m in on_meta("AlexNet").modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(m.size, m.alpha, m.beta, m.k) for m in norms] == [(5, 1e-4, 0.75, 2.0)] * 2


def test_resnet_by_its_blocks_is_torchvisions():
    ours = on_meta("ResNet", args={"num_blocks": [2, 2, 2, 2], "block": "basic"})
    with torch.device("meta"):
        theirs = torchvision.models.resnet18(num_classes=3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize(
    "backbone, head",
    [
        ("resnet18", "linear"),
        ("squeezenet1_1", "mlp"),
        ("Efficientnet_b0", "cosine"),
        ("timm:resnet10t", "mlp"),
        ("simple_cnn", "linear"),
        ("vit_b_32", "cosine"),
    ],
)
def test_a_backbone_and_a_head_are_put_together_by_name(backbone, head):
    model = on_meta("backbone_head", args={"backbone": backbone, "head": head}).eval()
    size = model_spec(backbone).input_size
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 3)
    assert all(name.startswith("head.") for name in head_names(model))


@pytest.mark.parametrize(
    "name",
    [
        "simple_cnn",
        "AlexNet",
        "ResNet",
        "resnet18",
        "Efficientnet_b0",
        "vit_b_32",
        "mobilenet_v3_small",
        "densenet121",
        "timm:resnet10t",
    ],
)
def test_every_kind_of_network_takes_a_dropout_and_keeps_its_names(name):
    model = on_meta(name, args={"dropout": 0.37})
    assert model.state_dict().keys() == on_meta(name).state_dict().keys()
    rates = [getattr(m, "p", getattr(m, "dropout", None)) for m in model.modules()]
    assert 0.37 in [r for r in rates if isinstance(r, float)] or model.drop_rate == 0.37


def test_the_dropout_before_a_bare_classifier_drops_in_training_only():
    model = build("resnet18", image_size=32, args={"dropout": 0.5})
    images = torch.randn(2, 3, 32, 32)
    model.train()
    torch.manual_seed(0)
    first = model(images)
    assert not torch.equal(first, model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


# ------------------------------------------------------------------------------------- weights


def save_as_published(folder, url, state):
    """Put `state` where `url` is looked up, under a name that holds its own hash."""
    path = folder / "state.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    stem = url.rpartition("/")[2].rpartition("-")[0]
    path.rename(folder / f"{stem}-{digest}.pth")
    return f"https://example.invalid/{stem}-{digest}.pth"


def test_published_weights_are_loaded_from_the_cache_but_for_the_classifier(cache, monkeypatch):
    import efficientnet_pytorch.utils as original

    torch.manual_seed(1)
    state = build("Efficientnet_b0", 1000, image_size=64).state_dict()
    url = save_as_published(cache, original.url_map["efficientnet-b0"], state)
    monkeypatch.setitem(original.url_map, "efficientnet-b0", url)
    model, loaded = create_model("Efficientnet_b0", 3, pretrained="yes", image_size=64)
    assert loaded and model._fc.weight.shape == (3, 1280)
    torch.testing.assert_close(model._conv_stem.weight, state["_conv_stem.weight"])
    torch.testing.assert_close(model._bn1.running_var, state["_bn1.running_var"])
    model, loaded = create_model("Efficientnet_b0", 1000, image_size=64)
    torch.testing.assert_close(model._fc.weight, state["_fc.weight"])


def fake_torchvision(monkeypatch, cache, name, state):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    url = save_as_published(cache, weights.url, state)
    fake = type(
        "Fake", (), {"DEFAULT": type("W", (), {"url": url, "transforms": weights.transforms})}
    )
    monkeypatch.setattr(catalogue, "get_model_weights", lambda _: fake)


@pytest.mark.parametrize(
    "name", ["mnasnet0_5", "googlenet", pytest.param("vit_b_32", marks=pytest.mark.slow)]
)
def test_torchvisions_weights_are_loaded_from_the_cache(name, cache, monkeypatch):
    extra = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, **extra)
    fake_torchvision(monkeypatch, cache, name, theirs.state_dict())
    model, loaded = create_model(name, 3, pretrained="yes", image_size=96)
    assert loaded
    mine, its = model.state_dict(), theirs.state_dict()
    same = [k for k in mine if k in its and torch.equal(mine[k], its[k])]
    assert len(same) >= len(mine) - 3, "all but the classifier, and positions for another size"


FAMILIES = {
    "torchvision": ("resnet18", {}),
    "torchvision conv": ("squeezenet1_1", {}),
    "torchvision mlp": ("mobilenet_v3_small", {}),
    "timm": ("timm:resnet10t", {}),
    "timm norm": ("timm:levit_128s", {}),
    "timm distilled": ("timm:deit_tiny_distilled_patch16_224", {}),
    "efficientnet-pytorch": ("Efficientnet_b0", {}),
    "plugin": ("simple_cnn", {}),
    **{
        head: ("backbone_head", {"backbone": "resnet18", "head": head})
        for head in ("linear", "mlp", "cosine")
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_classifier_of_loaded_weights_has_a_first_loss_of_ln_c(family, tmp_path):
    name, args = FAMILIES[family]
    torch.manual_seed(0)
    size = 224 if "timm" in family else 64
    torch.save(build(name, 5, args=args, image_size=size).state_dict(), tmp_path / "five.pt")
    model, _ = create_model(name, 6, init_from=tmp_path / "five.pt", args=args, image_size=size)
    images, labels = torch.randn(12, 3, size, size), torch.arange(12) % 6
    loss = nn.functional.cross_entropy(model(images), labels)
    assert loss.item() == pytest.approx(math.log(6), rel=0.05)
    loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if n in head_names(model)]
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0, "it can learn"


def test_a_classifier_that_was_loaded_is_kept(tmp_path):
    torch.save(build("simple_cnn", 5).state_dict(), tmp_path / "five.pt")
    model, _ = create_model("simple_cnn", 5, init_from=tmp_path / "five.pt")
    assert model.classifier[-1].weight.abs().max() > 0


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:tf_efficientnet_lite0"])
def test_weights_of_a_package_need_no_network(name):
    spec = model_spec(name)
    assert (spec.input_size, spec.mean, spec.std) == (224, (0.5,) * 3, (0.5,) * 3)
    model, loaded = create_model(name, 1000, pretrained="yes")
    assert loaded
    names = ["flower.jpg", "china.jpg"]
    images = torch.stack([_sample_image(name) for name in names])
    classes = model.eval()(images).argmax(1).tolist()
    assert classes == [985, 442], "a daisy and a bell cote"
    model, _ = create_model(name, 3, pretrained="yes")
    assert model.classifier.weight.abs().max() == 0


def _sample_image(name):
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None].float()
    return (
        nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)[0] / 127.5 - 1
    )


def test_a_damaged_package_of_weights_is_refused(tmp_path):
    from ballot.training import packaged

    (tmp_path / "weights.pth").write_bytes(b"not these")
    with pytest.raises(UserError, match=r"is damaged, its SHA-256 begins with .* and not 57934424"):
        packaged.check_file("timm:tf_efficientnet_lite0", tmp_path / "weights.pth")


def test_a_network_is_suggested_whatever_the_case():
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        create_model("EfficientNet_Lite0", 3)


def test_old_names_of_densenet_are_understood():
    with torch.device("meta"):
        model = torchvision.models.densenet121()
    old = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v
        for k, v in model.state_dict().items()
    }
    assert list(catalogue._renamed(model, old)) == list(model.state_dict())


def test_timms_weights_are_loaded_from_the_cache(cache, monkeypatch):
    import timm
    from timm.models import _registry

    state = timm.create_model("resnet10t", num_classes=1000).state_dict()
    cfg = timm.get_pretrained_cfg("resnet10t")
    url = save_as_published(cache, cfg.url, state)
    monkeypatch.setattr(_registry._model_pretrained_cfgs["resnet10t"], "url", url)
    model, loaded = create_model("timm:resnet10t", 3, pretrained="yes", image_size=64)
    assert loaded
    torch.testing.assert_close(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["Efficientnet_b0", "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_weights_that_cannot_be_had_are_said_and_done_without(name, caplog):
    torch.manual_seed(0)
    size = 224 if "vit" in name else 64
    model, loaded = create_model(name, 3, image_size=size)
    assert not loaded and "FROM SCRATCH" in caplog.text
    torch.manual_seed(0)
    same = build(name, image_size=size)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    with pytest.raises(WeightsUnavailable, match="cannot be"):
        create_model(name, 3, pretrained="yes", image_size=size)


def test_a_damaged_file_of_weights_is_named_and_not_loaded(cache, caplog):
    file = cache / "resnet18-f37072fd.pth"
    file.write_bytes(b"half a download")
    with pytest.raises(WeightsUnavailable, match=r"resnet18-f37072fd\.pth: is damaged"):
        create_model("resnet18", 3, pretrained="yes", image_size=64)
    assert not create_model("resnet18", 3, image_size=64)[1]
    assert str(file) in caplog.text


def test_a_network_without_published_weights_is_silent_but_for_yes(caplog):
    assert not create_model("simple_cnn", 3)[1] and not caplog.text
    with pytest.raises(UserError, match="'simple_cnn' has no published weights"):
        create_model("simple_cnn", 3, pretrained="yes")


@pytest.mark.parametrize("form", ["run folder", "checkpoint", "state dict", "wrapped"])
def test_a_run_starts_from_another(form, tmp_path):
    source = build("simple_cnn", 3)
    state = source.state_dict()
    path = tmp_path / "best.pt"
    wrapped = {f"_orig_mod.module.{k}": v for k, v in state.items()}
    content = {"run folder": {"model": state, "about": "{}"}, "checkpoint": {"state_dict": state}}
    torch.save(content.get(form, wrapped if form == "wrapped" else state), path)
    model, loaded = create_model(
        "simple_cnn", 3, init_from=tmp_path if form == "run folder" else path
    )
    assert loaded
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters()))


def test_a_classifier_of_another_size_starts_anew_and_that_is_said(tmp_path, caplog):
    source = build("simple_cnn", 10)
    torch.save(source.state_dict(), tmp_path / "ten.pt")
    model, _ = create_model("simple_cnn", 3, init_from=tmp_path / "ten.pt")
    assert "ten.pt: the classifier does not fit" in caplog.text
    assert model.classifier[5].weight.shape == (3, 84)
    assert torch.equal(model.features[0].weight, source.features[0].weight)


def test_a_start_that_does_not_fit_or_is_no_weights_is_refused(tmp_path):
    other, text, empty = tmp_path / "other.pt", tmp_path / "text.pt", tmp_path / "empty.pt"
    torch.save(build("resnet18", image_size=32).state_dict(), other)
    text.write_text("hello")
    torch.save({"epoch": 3}, empty)
    code = tmp_path / "code.pt"
    torch.save({"model": build("simple_cnn")}, code)  # a pickled object: not read
    for path, said in (
        (other, "does not fit this model; 'features.0.weight'"),
        (text, "no file of weights that is safe"),
        (code, "no file of weights that is safe"),
        (empty, "no state dict"),
        (tmp_path / "none.pt", "cannot be read"),
        (tmp_path, "best.pt: cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            create_model("simple_cnn", 3, init_from=path)


# ------------------------------------------------------------------------------------ freezing


@pytest.mark.parametrize(
    "name", ["simple_cnn", "resnet18", "vit_b_32", "timm:convnext_atto", "backbone_head"]
)
def test_a_frozen_backbone_leaves_the_classifier_to_train(name):
    model = on_meta(name)
    freeze(model, "backbone")
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == head_names(model)
    assert any(p.shape[0] == 3 for n, p in model.named_parameters() if n in trained)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_the_first_blocks_are_frozen_and_no_others():
    model = on_meta("resnet18")
    freeze(model, "3")
    frozen = {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert all(p.requires_grad for p in model.layer2.parameters())
    whole = on_meta("resnet18")
    freeze(whole, "0")
    assert all(p.requires_grad for p in whole.parameters())


def test_a_frozen_batch_norm_keeps_its_statistics_until_it_is_unfrozen():
    model = build("resnet18", image_size=32)
    freeze(model, "backbone")
    images = torch.randn(4, 3, 32, 32)
    before = model.bn1.running_mean.clone()
    for _ in range(2):
        model.train()
        model(images)
    assert torch.equal(model.bn1.running_mean, before)
    unfreeze(model)
    model.train()
    model(images)
    assert not torch.equal(model.bn1.running_mean, before)


@pytest.mark.parametrize("what", ["head", "-1", "2.5", "10", ""])
def test_what_cannot_be_frozen_is_refused(what):
    with pytest.raises(UserError, match="use backbone, or 0 to 9"):
        freeze(on_meta("resnet18"), what)


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("resnet5O", {}, "did you mean 'resnet50'"),
        ("timm:resnet5O", {}, "did you mean 'timm:resnet50'"),
        ("resnet18", {"args": {"droput": 0.1}}, "did you mean 'dropout'"),
        ("resnet18", {"args": {"dropout": 1.5}}, "dropout is 1.5"),
        ("resnet18", {"args": {"groups": 3}}, "refuses them"),
        ("simple_cnn", {"args": {"dropout": "x"}}, "dropout is 'x'"),
        ("simple_cnn", {"image_size": 8}, "8 is too small for model 'simple_cnn'"),
        ("alexnet", {"image_size": 32}, "cannot take images of 32 x 32"),
        ("vit_b_32", {"image_size": 100}, "refuses them"),
        ("maxvit_t", {"image_size": 100}, "refuses them"),
        ("timm:vit_tiny_patch16_224", {"image_size": 8}, "image"),
        ("timm:resnet10t", {"args": {"nonsense": 1}}, "nonsense"),
        ("ResNet", {"args": {"num_blocks": [1, 2]}}, r"as in \[3, 4, 6, 3\]"),
        ("ResNet", {"args": {"block": "fat"}}, "bottleneck or basic"),
        ("backbone_head", {"args": {"backbone": "resnet81"}}, "did you mean 'resnet18'"),
        ("backbone_head", {"args": {"head": "mpl"}}, "unknown head 'mpl'"),
        ("backbone_head", {"args": {"head_args": {"droput": 1}}}, "did you mean 'dropout'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(name, given, said):
    with pytest.raises(UserError, match=said):
        build(name, **given)


def test_a_network_of_the_readers_own_is_checked_by_a_trial_of_its_shapes():
    @MODELS.register("own-test-net")
    def own(num_classes, pretrained, *, wrong=False):  # noqa: ARG001
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes + wrong))

    try:
        assert build("own-test-net", image_size=8)(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
        with pytest.raises(UserError, match=r"gives \[2, 4\] for 2 images of 3 classes"):
            build("own-test-net", image_size=8, args={"wrong": True})
        with pytest.raises(UserError, match="cannot take images of 9 x 9"):
            build("own-test-net", image_size=9)
    finally:
        del MODELS._entries["own-test-net"]


# --------------------------------------------------------------------------------------- tables


def test_the_table_of_a_network_has_the_published_multiply_adds():
    table = describe("resnet18")
    assert "11,689,512 at 1000 classes" in table
    assert "1,814,073,344 for one image" in table
    assert "224 x 224" in table and "0.485, 0.456, 0.406" in table


def test_the_list_has_every_name_once_and_fits_100_columns(capsys):
    assert main([]) == 0
    first, _, listed = capsys.readouterr().out.partition("\n\n")
    lines = listed.splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    assert {line.split()[0] for line in first.splitlines()[1:]} <= set(names)
    assert len(first.splitlines()) < 12
    assert len(set(names)) == len(names) > 1000
    assert {"simple_cnn", "Efficientnet_b7", "resnet50", "timm:efficientnet_b0"} <= set(names)
    assert max(map(len, lines)) <= 100


def test_a_pattern_lists_what_matches():
    lines = listing("*efficientnet_b0").splitlines()[1:-2]
    assert [line.split()[0] for line in lines[:2]] == ["Efficientnet_b0", "efficientnet_b0"]
    assert lines[0].split()[1:] == ["5,288,548", "224", "76.3", "-"]


def test_a_name_that_is_not_there_ends_in_one_line(capsys):
    assert main(["resnet5O"]) == 2 and main(["x*"]) == 2
    assert "did you mean 'resnet50'" in capsys.readouterr().err


def test_what_is_loaded_is_logged(cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    fake_torchvision(monkeypatch, cache, "resnet18", torchvision.models.resnet18().state_dict())
    create_model("resnet18", 3, image_size=64)
    assert "pretrained weights of resnet18; new: fc.weight, fc.bias" in caplog.text
