"""Backbones, heads, penalties, freezing, weights."""

import hashlib
import http.server
import io
import re
import threading

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import nn

from cellbench.data.dataset import Batch
from cellbench.errors import UserError
from cellbench.models import backbones, torchvision_networks
from cellbench.models.classifier import CellClassifier, WeightedMean
from cellbench.models.heads import HeadConfig
from cellbench.models.losses import LOSSES, LossConfig, as_shares, losses
from cellbench.models.optimisation import build_optimizer, parameter_groups
from cellbench.models.phases import Phase, make_plan
from cellbench.models.regularisation import penalised_parameters, penalty

CLASSES = ("a", "b", "c")
COMMON = ("alexnet", "densenet121", "efficientnet_b0", "mobilenet_v2", "resnet18", "small_cnn")


def model(backbone="small_cnn", size=(64, 64), **arguments):
    torch.manual_seed(0)
    return CellClassifier(CLASSES, size, backbone=backbone, **arguments)


def check_backbone(name, size):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    network = model(name, (size, size))
    network(images).sum().backward()
    assert network(images).shape == (2, 3)
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", COMMON)
def test_a_backbone_trains(name):
    check_backbone(name, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbones.names() if name not in COMMON])
def test_every_backbone_of_torchvision_trains(name):
    if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] > 150e6:
        pytest.skip("does not fit in the memory of a small machine")
    check_backbone(name, 224)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vgg11_bn"])
def test_a_trunk_computes_what_torchvision_computes(name):
    """With torchvision's own classifier behind it, the trunk gives torchvision's own logits."""
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name).eval()
    built = backbones.build(name, "none", (96, 96))
    trunk = built.trunk.eval()
    trunk.load_state_dict({k: v for k, v in whole.state_dict().items() if k in trunk.state_dict()})
    images = torch.randn(2, 3, 96, 96)
    features = trunk(images)
    assert tuple(features.shape[1:]) == built.shape
    pooled = (whole.avgpool if name.startswith("vgg") else nn.AdaptiveAvgPool2d(1))(features)
    classifier = whole.fc if name == "resnet18" else whole.classifier
    with torch.no_grad():
        assert torch.allclose(classifier(pooled.flatten(1)), whole(images), atol=1e-5)


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
        mean, std = torchvision_networks.normalisation(name)
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
    return make_plan(phases, freeze, 1.0, schedule, epochs, stages=5, backbone="resnet18")


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
    with pytest.raises(
        UserError, match=r"cannot download resnet18's .* put resnet18-\w+\.pth from"
    ):
        model("resnet18", weights="imagenet")


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
    network = CellClassifier(("a", "b", "c", "d"), (150, 150), backbone="separable_cnn", head=head)
    assert counted(network) == 2_314_532
    drops = [layer.p for layer in network.head if isinstance(layer, nn.Dropout)]
    assert drops == [0.7, 0.5, 0.3]


def test_a_dropout_for_each_dense_layer_is_checked():
    with pytest.raises(UserError, match=r"2 values for 3 dense layers"):
        HeadConfig(hidden=(8, 8), dropout=(0.1, 0.2))
    with pytest.raises(UserError, match=r"model\.head\.dropout: .* is not between 0 and 1"):
        HeadConfig(hidden=(8,), dropout=(0.1, 1.0))
