"""Backbones, heads, penalties, freezing, weights."""

import copy
import hashlib
import http.server
import importlib.util
import io
import re
import threading
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import nn

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import Description
from cellbench.data.dataset import Batch
from cellbench.data.preprocessing import Preprocessing
from cellbench.inference.rebuild import build_model
from cellbench.models import networks
from cellbench.models.backbones import (
    factory,
    own_networks,
    timm_networks,
    torchvision_networks,
)
from cellbench.models.classifier import CellClassifier
from cellbench.models.co_teaching import CoTeachingConfig
from cellbench.models.config import ModelConfig
from cellbench.models.epoch_metrics import WeightedMean
from cellbench.models.freezing import Freezing, make_plan
from cellbench.models.heads import HeadConfig
from cellbench.models.losses import LOSSES, LossConfig, as_shares, losses
from cellbench.models.optimisation import build_optimizer, parameter_groups
from cellbench.models.phases import Phase
from cellbench.models.regularisation import penalised_parameters, penalty, sparsity
from cellbench.utils.errors import UserError, one_line

CLASSES = ("a", "b", "c")
COMMON = ("alexnet", "densenet121", "efficientnet_b0", "mobilenet_v2", "resnet18")
OWN = sorted(set(factory.names()) - set(torchvision_networks.names()))


def model(backbone="small_cnn", size=(64, 64), **arguments):
    torch.manual_seed(0)
    return CellClassifier(CLASSES, size, ModelConfig(backbone, **arguments))


def check_backbone(name, size):
    """It trains, freezes as it says, and is made again from what a checkpoint holds of it."""
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    network = model(name, (size, size))
    network(images).sum().backward()
    assert network(images).shape == (2, 3)
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert without == []
    for frozen in {1, len(network.stages)}:
        network._freezing.plan = replace(network._freezing.plan, frozen=(frozen,))
        network._freeze(0)
        held = {id(p) for stage in network.stages[:frozen] for m in stage for p in m.parameters()}
        if frozen == len(network.stages):
            held = {id(p) for p in network.backbone.parameters()}
        assert {id(p) for p in network.parameters() if not p.requires_grad} == held
    described = Description(
        "0",
        network.arguments,
        Preprocessing((size, size), "raw", 0),
        "32-true",
        "x",
        "y",
        "z",
        None,
    )
    again = build_model(described, network.state_dict()).eval()
    with torch.no_grad():
        assert torch.equal(again(images), network.eval()(images))


@pytest.mark.parametrize("name", [*COMMON, *OWN])
def test_a_backbone_trains(name):
    check_backbone(name, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in torchvision_networks.names() if n not in COMMON])
def test_every_backbone_of_torchvision_trains(name):
    if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] > 150e6:
        pytest.skip("does not fit in the memory of a small machine")
    check_backbone(name, 224)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vgg11_bn"])
def test_a_trunk_computes_what_torchvision_computes(name):
    """With torchvision's own classifier behind it, the trunk gives torchvision's own logits."""
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name).eval()
    built = factory.build(name, "none", (96, 96))
    trunk = built.trunk.eval()
    trunk.load_state_dict({k: v for k, v in whole.state_dict().items() if k in trunk.state_dict()})
    images = torch.randn(2, 3, 96, 96)
    features = trunk(images)
    assert tuple(features.shape[1:]) == built.shape
    pooled = (whole.avgpool if name.startswith("vgg") else nn.AdaptiveAvgPool2d(1))(features)
    classifier = whole.fc if name == "resnet18" else whole.classifier
    with torch.no_grad():
        assert torch.allclose(classifier(pooled.flatten(1)), whole(images), atol=1e-5)


def torchvision_features(whole, images):
    """Return what torchvision's own last dense layer is given."""
    seen = []
    last = [layer for layer in whole.modules() if isinstance(layer, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    whole(images)
    handle.remove()
    return seen[0]


# SqueezeNet's last layer is a convolution; AlexNet and VGG see whole maps, not pooled ones.
POOLED_BY_TORCHVISION = [
    name for name in torchvision_networks.names() if not name.startswith(("alex", "squeeze", "vgg"))
]
QUICK = ("convnext_tiny", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "mnasnet0_5")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in POOLED_BY_TORCHVISION
    ],
)
def test_averaged_features_are_what_the_last_layer_of_torchvision_sees(tmp_path, name):
    """A norm or a dense layer between pooling and last layer is part of the features."""
    parameters = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    if parameters > 150e6:
        pytest.skip("does not fit in the memory of a small machine")
    size = 64 if name in QUICK else 224
    # num_classes: a weights file's last layer may be of any width.
    options = {"image_size": size} if name.startswith("vit") else {}
    whole = torchvision.models.get_model(name, num_classes=7, **options)
    with torch.no_grad():
        for parameter in whole.parameters():  # norms begin as if they were not there
            parameter += 0.02 * torch.randn_like(parameter)
    file = tmp_path / "weights.pt"
    torch.save(whole.state_dict(), file)
    network = model(name, (size, size), weights=str(file)).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = torchvision_features(whole.eval(), network.normalise(images))
        found = copy.deepcopy(network).features(images)
    assert found.shape == expected.shape == (2, network.head[-1].in_features)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert "initialised at random" not in network.loaded
    n = len(network.backbone.state_dict())
    assert network.loaded.startswith(f"{n} entries of {file} loaded, {len(whole.state_dict()) - n}")


def test_layers_behind_the_pooling_are_loaded_and_frozen_with_the_backbone(tmp_path):
    whole = torchvision.models.mobilenet_v3_small(num_classes=7)
    file = tmp_path / "weights.pt"
    torch.save(whole.state_dict(), file)
    n = len(whole.state_dict()) - 2
    network = model("mobilenet_v3_small", weights=str(file), freeze="backbone")
    skipped = "2 skipped (classifier.3.weight, classifier.3.bias)"
    assert network.loaded == f"{n} entries of {file} loaded, {skipped}, the head is new"
    assert torch.equal(network.backbone.classifier[1].weight, whole.classifier[0].weight)
    assert not network.backbone.classifier[1].weight.requires_grad
    assert network.trained == 1024 * 3 + 3
    network = model("mobilenet_v3_small", weights=str(file), head=HeadConfig(pool="max"))
    skipped = "4 skipped (classifier.0.weight, classifier.0.bias, classifier.3.weight, ...)"
    assert network.loaded == f"{n - 2} entries of {file} loaded, {skipped}, the head is new"
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = whole.eval().features(network.normalise(images)).amax((2, 3))
        assert torch.allclose(network.eval().features(images), expected, atol=1e-5)


def test_a_mean_counts_its_weights_and_hides_no_nan():
    mean = WeightedMean()
    for value, weight in ((0.2, 9.0), (1.0, 8.0)):
        mean.update(torch.tensor(value), torch.tensor(weight))
    assert float(mean.compute()) == pytest.approx((0.2 * 9 + 8) / 17)
    mean.update(torch.tensor(float("nan")), torch.tensor(1.0))
    assert torch.isnan(mean.compute())


def test_head_layers():
    network = model(head=HeadConfig(pool="flatten", hidden=(8, 6), dropout=0.5))
    assert [type(layer).__name__ for layer in network.pool] == ["Flatten"]
    kinds = [type(layer).__name__ for layer in network.head]
    assert kinds == [*["Dropout", "Linear", "ReLU"] * 2, "Dropout", "Linear"]
    shapes = [(m.in_features, m.out_features) for m in network.head if isinstance(m, nn.Linear)]
    assert shapes == [(192 * 4 * 4, 8), (8, 6), (6, 3)]


def test_images_are_normalised_as_the_weights_expect():
    """Every network's mean and deviation are those of its published weights."""
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    found = model("resnet18").normalise(image).flatten().tolist()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert found == pytest.approx(expected, abs=1e-5)
    for name in torchvision.models.list_models(module=torchvision.models):
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        mean, std = torchvision_networks.normalisation(name, nn.Module())
        if name not in ("googlenet", "inception_v3"):  # these re-normalise inside
            assert (list(mean), list(std)) == (list(transforms.mean), list(transforms.std)), name


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_pooling(pool):
    network = model(head=HeadConfig(pool=pool))
    maps = torch.rand(2, 192, 4, 4)
    expected = maps.amax((2, 3)) if pool == "max" else maps.mean((2, 3))
    assert torch.allclose(network.pool(maps), expected, atol=1e-6)


def test_a_run_leaves_a_frozen_backbone_as_it_was(fit):
    run = fit("--model.freeze=backbone")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counted = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(counted) > 3
    assert not any(state[key] for key in counted)
    assert all((state[key] == 0).all() for key in state if key.endswith("running_mean"))


def test_a_frozen_backbone_keeps_its_weights_and_statistics():
    network = model("resnet18", freeze="backbone")
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)).sum().backward()
    optimizer.step()
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {f"head.{name}" for name, _ in network.head.named_parameters()}


def test_penalties_leave_out_biases_and_norms():
    network = model("resnet18")
    chosen = set(penalised_parameters(network))
    every = dict(network.named_parameters())
    assert {name for name in every if every[name].ndim > 1} == chosen
    assert not [name for name in chosen if "bn" in name or name.endswith("bias")]
    frozen = model("resnet18", freeze="backbone")
    assert all(name.startswith("head.") for name in penalised_parameters(frozen))


def test_the_penalty_is_what_it_says():
    weights = [nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.tensor([[3.0]]))]
    value = penalty(weights, l1=0.1, l2=0.01)
    assert value.item() == pytest.approx(0.1 * 6 + 0.01 * 14)
    value.backward()
    assert weights[0].grad.flatten().tolist() == pytest.approx([0.1 + 0.02, -0.1 - 0.04])


@pytest.mark.parametrize(("penalise", "prefix"), [("head", "head."), ("all", "")])
def test_the_penalty_acts_on_the_part_asked_for(penalise, prefix):
    network = model(l2=0.5, penalise=penalise)
    network.log = network.log_dict = lambda *args, **kwargs: None
    network.trainer = Trainer(accelerator="cpu", devices=1, logger=False)
    network.on_train_start()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    network.eval()
    bare = nn.functional.cross_entropy(network(images), batch.labels)
    squares = [
        p.detach().square().sum()
        for n, p in network.named_parameters()
        if n.startswith(prefix) and p.ndim > 1
    ]
    assert network.training_step(batch)["loss"].item() == pytest.approx(
        (bare + 0.5 * sum(squares)).item(), rel=1e-5
    )


def test_weight_decay_acts_on_weights_alone():
    network = model()
    decayed = penalised_parameters(network)
    groups = parameter_groups([([network], 1.0)], weight_decay=0.5)
    optimizer = build_optimizer("adamw", groups, lr=0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 0.95 if name in decayed else 1.0
        assert torch.allclose(parameter, before[name] * factor), name


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_lowers_a_loss(name):
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(name, parameter_groups([([layer], 1.0)], 0.0), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        layer.weight.square().sum().backward()
        optimizer.step()
    assert float(layer.weight.detach().square().sum()) < 0.1


def plan(schedule, phases=(), epochs=3, freeze="none"):
    config = ModelConfig(phases=list(phases), freeze=freeze, lr=1.0, schedule=schedule)
    return make_plan(config, epochs, stages=5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        ("cosine", [1.0, 0.75, 0.25, 0.0]),
        ("linear", [1.0, 2 / 3, 1 / 3, 0.0]),
    ],
)
def test_schedules_fall_to_zero(name, expected):
    assert [plan(name).rate(epoch) for epoch in range(4)] == pytest.approx(expected, abs=1e-6)


def test_each_phase_has_its_own_rate_and_schedule():
    phases = [Phase(2, "backbone"), Phase(2, "stage4", 0.1), Phase(1, lr=0.01)]
    found = plan("linear", phases)
    assert [found.phase(epoch) for epoch in range(5)] == [0, 0, 1, 1, 2]
    assert [found.rate(epoch) for epoch in range(5)] == pytest.approx([1, 0.5, 0.1, 0.05, 0.01])
    assert found.frozen == (5, 4, 0)


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2"),
        ("vit_b_32", r"mlp\.(0|3)\.", lambda m: f"mlp.linear_{1 if m[1] == '0' else 2}."),
    ],
)
def test_published_files_with_old_names_are_loaded(tmp_path, name, new, old):
    whole = torchvision.models.get_model(name, **({"image_size": 64} if "vit" in name else {}))
    state = {re.sub(new, old, key): value for key, value in whole.state_dict().items()}
    assert len(state.keys() - whole.state_dict().keys()) > 20
    file = tmp_path / "weights.pt"
    torch.save(state, file)
    loaded = model(name, weights=str(file)).backbone.state_dict()
    own = {key.removeprefix("0."): value for key, value in loaded.items()}
    own = {key: value for key, value in own.items() if key in whole.state_dict()}
    assert len(own) > 100
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in own.items())


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "swin_t", "regnet_y_400mf"])
def test_weights_from_a_state_dict_file_are_loaded_but_for_the_head(tmp_path, name):
    whole = torchvision.models.get_model(name, num_classes=7)
    file = tmp_path / "weights.pt"
    torch.save(whole.state_dict(), file)
    loaded = model(name, weights=str(file), size=(64, 64)).backbone.state_dict()
    state = whole.state_dict()
    assert len(loaded) > 0.9 * len(state)
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    with pytest.raises(UserError, match="does not fit the network"):
        model("resnet34", weights=str(file))


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04}."])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pt is not a state-dict file"):
        model("resnet18", weights=str(file))


class _Rogue:
    def __reduce__(self):
        return (print, ("code has run",))


def test_a_weights_file_runs_no_code(tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save({"conv1.weight": _Rogue()}, file)
    with pytest.raises(UserError, match="is not a state-dict file"):
        model("resnet18", weights=str(file))
    assert "code has run" not in capsys.readouterr().out


def test_imagenet_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    """torchvision's own loading code, against a server on loopback."""
    whole = torchvision.models.squeezenet1_1()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    port = server.server_port
    published = weights.value.url
    object.__setattr__(weights.value, "url", f"http://127.0.0.1:{port}/squeeze-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    try:
        for _ in range(2):
            network = model("squeezenet1_1", weights="imagenet")
            state = network.backbone.state_dict()
            assert torch.equal(state["features.0.weight"], whole.features[0].weight)
    finally:
        object.__setattr__(weights.value, "url", published)
        server.shutdown()
    assert len(asked) == 1


def test_imagenet_weights_without_a_network_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot download resnet18's ImageNet weights") as told:
        model("resnet18", weights="imagenet")
    path = re.search(r"copy (\S+\.pth) from another machine", one_line(told.value))[1]
    assert path.startswith(f"{tmp_path}/hub/checkpoints/resnet18-")
    assert "Connection refused" in one_line(told.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l1": -1.0}, "model.l1: -1.0 is less than 0"),
        ({"lr": 0.0}, "model.lr: 0.0 is not greater"),
        ({"weight_decay": 0.1}, "needs model.optimizer: adamw"),
        ({"weights": "imagenet"}, "no ImageNet weights of small_cnn"),
        ({"weights": "nowhere.pt"}, "there is no file nowhere.pt"),
        ({"backbone": "alexnet", "size": (32, 32)}, r"data.image_size: \(32, 32\) does not suit"),
        ({"backbone": "vit_b_16", "size": (64, 96)}, "vision transformer needs square"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        model(**arguments)


def counted(network):
    """Parameters as Keras counts them: batch norm's statistics too."""
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    return sum(p.numel() for p in network.parameters()) + statistics


def test_the_published_separable_network_has_its_parameters():
    head = HeadConfig(pool="flatten", hidden=(512, 128, 64), dropout=(0, 0.7, 0.5, 0.3))
    config = ModelConfig("separable_cnn", head=head)
    network = CellClassifier(("a", "b", "c", "d"), (150, 150), config)
    assert counted(network) == 2_314_532
    drops = [layer.p for layer in network.head if isinstance(layer, nn.Dropout)]
    assert drops == [0.7, 0.5, 0.3]


@pytest.mark.parametrize(
    ("backbone", "head", "expected"),
    [
        ("bottleneck_resnet", HeadConfig(), 165_904),
        ("vgg_style_v1", HeadConfig(hidden=(128,), batch_norm=True), 306_352),
        ("vgg_style_v3", HeadConfig(hidden=(1024, 1024)), 1_260_976),
    ],
)
def test_the_leukemia_networks_have_their_published_parameters(backbone, head, expected):
    classes = ("a", "b", "c", "d")
    config = ModelConfig(backbone, head=head)
    assert counted(CellClassifier(classes, (96, 128), config)) == expected


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "vgg16", *OWN])
def test_the_penalties_gradients_are_their_closed_forms_on_every_weight_and_no_other(name):
    """l1 · sign(w) and 2 · l2 · w, as Keras' regularisers with the same factors."""
    network = model(name)
    weights = penalised_parameters(network)
    layers = (nn.Conv2d, nn.Linear)
    expected = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, layers)}
    assert set(weights) == expected
    penalty(list(weights.values()), l1=0.1, l2=0.01).backward()
    for key, parameter in network.named_parameters():
        if key not in weights:
            assert parameter.grad is None
            continue
        value = parameter.detach()
        assert torch.allclose(parameter.grad, 0.1 * value.sign() + 0.02 * value), key


def test_sparsity_is_the_share_of_weights_near_zero():
    weights = [nn.Parameter(torch.tensor([[0.0, 1e-4, -0.5]])), nn.Parameter(torch.ones(1, 1))]
    assert float(sparsity(weights)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "vgg11_bn", *OWN])
def test_stages_hold_every_layer_once_in_order(name):
    built = factory.build(name, "none", (64, 64))
    held = [id(p) for stage in built.stages for layer in stage for p in layer.parameters()]
    assert held == [id(p) for p in built.trunk.parameters()]
    assert all(any(layer.parameters() for layer in stage) for stage in built.stages)
    assert len(built.stages) == (5 if name not in OWN else len(built.stages))


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_freezing_up_to_a_stage_leaves_its_weights_and_statistics_and_trains_the_rest(stage):
    network = model("resnet18", freeze=f"stage{stage}")
    frozen = {1: "0 1", 3: "0 1 4 5", 5: "0 1 4 5 6 7"}[stage]
    names = dict(
        zip("014567", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"], strict=True)
    )
    kept = tuple(f"backbone.{names[i]}." for i in frozen.split())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    for key, value in network.state_dict().items():
        if key.startswith(kept):
            assert torch.equal(value, before[key]), key
        elif key.endswith(("weight", "running_mean")):
            assert not torch.equal(value, before[key]), key


def test_group_norm_takes_the_place_of_every_batch_norm_and_its_scales():
    torch.manual_seed(0)
    whole = torchvision.models.resnet18()
    nn.init.uniform_(whole.layer2[0].bn1.weight)
    network = factory.build("resnet18", "none", (64, 64), "group").trunk
    kinds = [type(m) for m in network.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.GroupNorm) == 20
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == {32}
    images = torch.randn(4, 3, 64, 64)
    network.train()
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-4)


def test_group_norm_keeps_loaded_scales(tmp_path):
    whole = torchvision.models.resnet18()
    nn.init.uniform_(whole.layer2[0].bn1.weight)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    built = factory.build("resnet18", str(tmp_path / "weights.pt"), (64, 64), "group")
    assert torch.equal(built.trunk.layer2[0].bn1.weight, whole.layer2[0].bn1.weight)


def test_what_is_loaded_skipped_and_new_is_told(tmp_path):
    whole = torchvision.models.resnet18()
    file = tmp_path / "weights.pt"
    torch.save(whole.state_dict(), file)
    told = model("resnet18", weights=str(file)).loaded
    assert told == f"120 entries of {file} loaded, 2 skipped (fc.weight, fc.bias), the head is new"
    with pytest.raises(UserError, match=r"model\.partial_weights: true loads those that fit"):
        model("resnet34", weights=str(file))
    other = model("resnet34", weights=str(file), partial_weights=True)
    assert re.search(
        r"120 entries .* 2 skipped .* 80 of the backbone initialised at random", other.loaded
    )
    found = other.backbone.state_dict()
    assert torch.equal(found["layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)
    with pytest.raises(UserError, match=r"nothing in .* fits the network"):
        model("small_cnn", weights=str(file), partial_weights=True)


def test_weights_of_another_shape_are_skipped_where_that_is_asked_for(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    state["layer4.1.conv2.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="does not fit the network: size mismatch"):
        model("resnet18", weights=str(tmp_path / "weights.pt"))
    told = model("resnet18", weights=str(tmp_path / "weights.pt"), partial_weights=True).loaded
    assert "3 skipped (fc.weight, fc.bias, layer4.1.conv2.weight)" in told


@pytest.mark.parametrize("name", ["resnetv2_18", "vit_tiny_patch16_224"])
def test_networks_of_timm_train_and_load(tmp_path, name):
    timm = pytest.importorskip("timm")
    check_backbone(f"timm/{name}", 64)
    sized = {"img_size": 64} if "vit" in name else {}
    whole = timm.create_model(name, num_classes=7, **sized)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    loaded = model(f"timm/{name}", weights=str(tmp_path / "weights.pt"), size=(64, 64))
    state = whole.state_dict()
    own = loaded.backbone.state_dict()
    assert len(own) > 100
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    assert loaded.mean.flatten().tolist() == pytest.approx(whole.pretrained_cfg["mean"])


def relative_difference_to_timm(name, size):
    """Return how far the features of a backbone are from timm's own, after a step of training."""
    timm = pytest.importorskip("timm")
    network = model(f"timm/{name}", (size, size))
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        for parameter in network.backbone.parameters():  # some begin with a factor of 0
            parameter += 0.02 * torch.randn_like(parameter)
        network.eval()
        try:
            whole = timm.create_model(name, num_classes=7, img_size=(size, size)).eval()
        except TypeError:
            whole = timm.create_model(name, num_classes=7).eval()
        left = whole.load_state_dict(network.backbone.state_dict(), strict=False)
        assert not left.unexpected_keys
        assert all(key.startswith(timm_networks.CLASSIFIERS) for key in left.missing_keys), left
        found = copy.deepcopy(network).features(images)
        maps = whole.forward_features(network.normalise(images))
        expected = whole.forward_head(maps, pre_logits=True).flatten(1)
    assert found.shape == expected.shape == (2, network.head[-1].in_features)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "name",
    [
        *("test_convnext", "mobilenetv3_small_050", "mobilenetv4_conv_small_050"),
        *("inception_next_atto", "test_efficientnet", "resnetv2_18", "test_vit"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("davit_tiny", "poolformer_s12", "rdnet_tiny", "tf_efficientnet_lite0")
        ),
    ],
)
def test_averaged_features_are_those_that_timm_pools(name):
    """What a network has behind its pooling (a norm, a convolution) is part of them."""
    assert relative_difference_to_timm(name, 64) < 1e-5


# A small network of each of timm's families (1.0.31), except those with no member below 60
# million parameters.
FAMILIES = """
caformer_s18 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 cpubone_nano
crossvit_tiny_240 cs3darknet_s cspnext_tiny csatv2 deit_tiny_distilled_patch16_224 densenet121
dla34 dpn68 ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1
efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0
fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 halonet26t hardcorenas_a
hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception
levit_128s lowformer_b0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small
nf_regnet_b0 pit_xs_distilled_224 pvt_v2_b0 regnetx_002 repghostnet_050 repvit_m0_9
res2net50_26w_4s resnest14d resnet18 resnet50_clip rexnet_100 selecsls42 sequencer2d_s shvit_s1
skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224
swinv2_tiny_window8_256 test_byobnet test_coatnet test_mambaout test_maxvit test_vit_relpos
tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small visformer_tiny vit_tiny_r_s16_p8_224
vitamin_small_224 volo_d1_224 xception41 xcit_nano_12_p16_224
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.split())
def test_averaged_features_of_every_family_of_timm_are_its_own(name):
    timm = pytest.importorskip("timm")
    assert relative_difference_to_timm(name, timm.get_pretrained_cfg(name).input_size[1]) < 1e-5


def test_other_pooling_of_a_network_of_timm_is_that_of_its_last_maps():
    timm = pytest.importorskip("timm")
    network = model("timm/test_convnext", head=HeadConfig(pool="max")).eval()
    maps = timm.create_model("test_convnext", num_classes=0, global_pool="").eval()
    maps.load_state_dict(network.backbone.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = maps(network.normalise(images)).amax((2, 3))
        assert torch.allclose(network.features(images), expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"inception_next_atto cannot be used without its own pooling"
    ):
        model("timm/inception_next_atto", head=HeadConfig(pool="max"))


def test_networks_of_timm_that_classify_nothing_are_refused():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"^model.backbone: timm/mobilenetv5_300m_enc at"):
        model("timm/mobilenetv5_300m_enc")


def test_group_norm_keeps_the_activations_of_timm():
    pytest.importorskip("timm")
    batch = factory.build("timm/resnetv2_18", "none", (64, 64)).trunk
    group = factory.build("timm/resnetv2_18", "none", (64, 64), "group").trunk
    kinds = [[type(m) for m in network.modules()] for network in (batch, group)]
    assert kinds[0].count(nn.ReLU) == kinds[1].count(nn.ReLU) > 10
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())


def test_a_trunk_of_timm_keeps_what_only_sounds_like_a_classifier(tmp_path):
    timm = pytest.importorskip("timm")
    whole = timm.create_model("convnext_atto", num_classes=7)
    nn.init.constant_(whole.head.norm.weight, 7.0)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    built = factory.build("timm/convnext_atto", str(tmp_path / "weights.pt"), (64, 64))
    assert (built.trunk.state_dict()["head.norm.weight"] == 7).all()


def test_tokens_positions_and_scales_are_not_penalised():
    for name in ("vit_b_16", "convnext_tiny", "swin_t"):
        chosen = penalised_parameters(model(name, (32, 32)))
        assert all(key.endswith("weight") for key in chosen)
        assert not [key for key in chosen if "scale" in key or "pos" in key or "table" in key]


def test_images_too_small_for_a_network_of_timm_are_named():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"timm/inception_v3 at \(32, 32\)"):
        model("timm/inception_v3", (32, 32))


def test_an_unknown_network_of_timm_is_named():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"timm has no network 'resnet51'; closest: resnet"):
        model("timm/resnet51")


def test_inception_is_cut_before_its_classifiers_at_its_own_size():
    built = factory.build("inception_v3", "none", (299, 299))
    assert built.shape == (2048, 8, 8)
    assert built.mean == (0.5, 0.5, 0.5)
    assert not [key for key in built.trunk.state_dict() if "Aux" in key or "fc" in key]


P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", -torch.log(P)),
        ("focal", -((1 - P) ** 2) * torch.log(P)),
        ("symmetric", -0.1 * torch.log(P) + 4 * (1 - P)),
        ("generalised", (1 - P**0.7) / 0.7),
    ],
)
def test_losses_are_their_formulas(name, expected):
    labels = torch.tensor([0, 2])
    found = losses(torch.log(P), as_shares(labels, 3, 0.0), LossConfig(name))
    assert torch.allclose(found, expected[[0, 1], labels], atol=1e-6)
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    found = losses(torch.log(P), as_shares(soft, 3, 0.0), LossConfig(name))
    assert torch.allclose(found, (soft * expected).sum(dim=1), atol=1e-6)


EXTREME = torch.tensor(
    [[0.0, 0.0, 0.0], [200.0, 0.0, -200.0], [-1e4, 0.0, 1e4], [6e4, -6e4, 0.0], [1e37, 0.0, 0.0]]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "config",
    [
        *(LossConfig("focal", gamma=gamma) for gamma in (0, 1e-6, 0.01, 0.3, 0.5, 0.999, 1, 2, 50)),
        *(LossConfig("generalised", q=q) for q in (1e-30, 1e-6, 0.5, 0.7, 1)),
        LossConfig("symmetric"),
        LossConfig(),
    ],
    ids=str,
)
def test_losses_and_their_gradients_are_finite_at_extreme_logits(config, smoothing, dtype):
    """A probability of exactly 1 or 0 gives neither an infinite gradient nor NaN."""
    for label in range(3):
        logits = EXTREME.clamp(max=torch.finfo(dtype).max).to(dtype).requires_grad_()
        shares = as_shares(torch.full((5,), label), 3, smoothing)
        found = losses(logits.float(), shares, config)
        found.sum().backward()
        assert found.isfinite().all()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_focal_gradients_are_those_of_the_formula(gamma):
    """Where p is not 1, they equal the closed form, computed in double precision."""
    logits = torch.linspace(-12, 12, 49)[:, None] * torch.tensor([[1.0, 0.0]])
    logits.requires_grad_()
    shares = as_shares(torch.zeros(49, dtype=torch.long), 2, 0.0)
    losses(logits, shares, LossConfig("focal", gamma=gamma)).sum().backward()
    z = logits.detach().double()[:, 0]
    p, doubt = torch.sigmoid(z), torch.sigmoid(-z)
    expected = gamma * p * doubt**gamma * p.log() - doubt ** (gamma + 1)
    assert torch.allclose(logits.grad[:, 0].double(), expected, rtol=1e-4, atol=2e-7)


def test_a_generalised_loss_near_0_is_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5]])
    shares = as_shares(torch.tensor([1, 1]), 3, 0.0)
    found = losses(logits, shares, LossConfig("generalised", q=1e-7))
    assert torch.allclose(found, losses(logits, shares, LossConfig()), rtol=1e-5)


def test_every_loss_is_lowest_where_the_label_is_right():
    logits = torch.tensor([[4.0, 0.0, -1.0]])
    for name in LOSSES:
        found = [
            float(losses(logits, as_shares(torch.tensor([k]), 3, 0), LossConfig(name)))
            for k in range(3)
        ]
        assert found == sorted(found)


def test_label_smoothing_is_that_of_torch():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    found = losses(logits, as_shares(labels, 3, 0.2), LossConfig())
    assert torch.allclose(
        found, nn.functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze": "stage9"}, r"model.freeze: small_cnn has no stage 'stage9'; allowed: none"),
        ({"freeze": "layer4"}, r"allowed: none, stage1, stage2, stage3, stage4, backbone"),
        ({"freeze": "stage1", "phases": [Phase(1)]}, "beside model.phases"),
        (
            {"backbone": "vit_b_16", "head": HeadConfig(pool="max"), "size": (32, 32)},
            "model.head.pool: max, but this backbone gives a single vector",
        ),
        ({"layer_decay": 0.0}, "model.layer_decay: 0.0 is not greater than 0"),
        ({"mixup": -0.1}, "model.mixup: -0.1 is less than 0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        model(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(0), "model.phases.epochs: 0 is less than 1"),
        (lambda: Phase(1, lr=0.0), "model.phases.lr: 0.0 is not greater than 0"),
        (lambda: LossConfig(label_smoothing=1.0), "model.loss.label_smoothing"),
        (lambda: LossConfig(gamma=-1), "model.loss.gamma"),
        (lambda: LossConfig(q=0), "model.loss.q"),
        (lambda: CoTeachingConfig(0.0), "model.co_teaching.forget_rate"),
        (lambda: CoTeachingConfig(0.1, momentum=1.0), "model.co_teaching.momentum"),
        (lambda: CoTeachingConfig(0.1, warm_up=0), "model.co_teaching.warm_up"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_earlier_stages_learn_more_slowly():
    network = model("resnet18", layer_decay=0.5, lr=0.01)
    network.trainer = Trainer(accelerator="cpu", devices=1, logger=False)
    optimizer = network.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    names = {"head.0": 1, "backbone.layer4.1.conv2": 0.5, "backbone.layer1.0.bn1": 0.0625}
    for name, factor in (names | {"backbone.conv1": 0.03125}).items():
        assert rates[id(network.get_submodule(name).weight)] == pytest.approx(0.01 * factor)


def test_a_dropout_for_each_dense_layer_is_checked():
    with pytest.raises(UserError, match=r"2 values for 3 dense layers"):
        HeadConfig(hidden=(8, 8), dropout=(0.1, 0.2))
    with pytest.raises(UserError, match=r"model\.head\.dropout: 1\.0 is not less than 1"):
        HeadConfig(hidden=(8,), dropout=(0.1, 1.0))


@pytest.mark.parametrize(
    ("module", "table", "entry", "names"),
    [
        ("losses", "LOSSES", "lambda log_p, config: log_p.exp()", "LossName"),
        ("optimisation", "OPTIMIZERS", "None", "OptimizerName"),
        ("phases", "SCHEDULES", "lambda done: done", "ScheduleName"),
        ("heads", "POOLS", "list", "Pool"),
        ("norms", "NORMS", "None", "Norm"),
    ],
)
def test_one_entry_makes_a_name_allowed(tmp_path, module, table, entry, names):
    """A loss, optimiser, schedule, pooling or norm needs no second edit to be an option."""
    source = importlib.util.find_spec(f"cellbench.models.{module}").origin
    with open(source) as file:
        text = file.read()
    changed, n = re.subn(rf"^{table}: .* = {{$", rf'\g<0>\n    "new": {entry},', text, flags=re.M)
    assert n == 1
    path = tmp_path / f"changed_{module}.py"
    path.write_text(changed)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert "new" in get_args(getattr(loaded, names))


def test_help_describes_every_option_of_the_model(capsys):
    """By the docstrings that follow the fields."""

    def keys(kind, prefix):
        for field in fields(kind):
            hint = get_type_hints(kind)[field.name]
            if is_dataclass(hint):
                yield from keys(hint, f"{prefix}.{field.name}")
            else:
                yield f"{prefix}.{field.name}"

    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    found = list(keys(ModelConfig, "model"))
    assert len(found) == 18 + 4 + 4
    for key in found:
        described = re.search(rf"--{key} [^a-z-][^ ]*( [A-Z]+)* (?P<text>[^(]+)\(", shown)
        assert described is not None, key
        assert len(described["text"]) > 10, key


def test_checkpoints_describe_a_network_in_the_same_plain_values():
    """Checkpoints of earlier versions hold exactly these keys, but for the channels."""
    head = HeadConfig(pool="max", hidden=(8,), dropout=0.1)
    network = model(norm="group", head=head, lr=0.5)
    assert network.arguments == {
        "classes": ["a", "b", "c"],
        "image_size": [64, 64],
        "channels": 3,
        "backbone": "small_cnn",
        "norm": "group",
        "head": {"pool": "max", "hidden": [8], "dropout": [0.1, 0.1], "batch_norm": False},
    }
    again = CellClassifier.from_arguments(network.arguments)
    assert again.arguments == network.arguments


def test_freezing_by_phase():
    layers = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    network = nn.ModuleDict({"backbone": layers, "head": nn.BatchNorm1d(2)})
    phases = [Phase(1, "backbone"), Phase(2, "stage1"), Phase(1)]
    plan_ = make_plan(ModelConfig(phases=phases), epochs=9, stages=2)
    freezing = Freezing(network, layers, (tuple(layers[:2]), tuple(layers[2:])), plan_)
    assert (freezing.backbone_always_frozen, freezing.backbone_ever_frozen) == (False, True)
    assert freezing.never_trained == []
    trained, modes = [], []
    for phase in range(3):
        freezing.enter(phase)
        network.train()
        freezing.set_modes()
        trained.append(freezing.trained)
        modes.append([layers[0].training, layers[1].training, layers[2].training])
    assert trained == [4, 4 + 6, 4 + 6 + 4 + 8]
    assert modes == [[False] * 3, [False, False, True], [True] * 3]
    assert freezing.norms_trained_since(epoch=3) == ["backbone.1", "head"]
    freezing.enter(1)
    assert freezing.norms_trained_since(epoch=1) == ["head"]


def test_one_file_makes_a_network(tmp_path, monkeypatch):
    text = "from torch import nn\n\ndef build():\n"
    text += "    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8))\n"
    (tmp_path / "my_net.py").write_text(text)
    (tmp_path / "broken_net.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(tmp_path)])
    monkeypatch.setattr(own_networks, "names", own_networks.names.__wrapped__)
    monkeypatch.setattr(factory, "names", factory.names.__wrapped__)
    check_backbone("my_net", 32)
    assert model("my_net", norm="group").backbone[1].num_groups == 8
    with pytest.raises(UserError, match=r"broken_net.py makes no network: ModuleNotFoundError"):
        model("broken_net")
    with pytest.raises(UserError, match=r"unknown network 'my_nett'; closest: my_net"):
        model("my_nett")
