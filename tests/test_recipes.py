"""How a network is trained: phases, averages, mixing, early stopping, labels that may be wrong."""

import csv
import functools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.artifacts.conditions import conditions
from cellbench.artifacts.finished import read_finished
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.labels import flip
from cellbench.inference.rebuild import build_model
from cellbench.label_noise.detection import correct, easy, noisy
from cellbench.models.classifier import CellClassifier
from cellbench.models.co_teaching import CoTeacher, CoTeachingConfig
from cellbench.models.config import ModelConfig
from tests.conftest import TINY, few_cells
from tests.test_resume import assert_same, results, terminate_at

PHASES = "--model.phases=[{epochs: 1, freeze: backbone}, {epochs: 2, freeze: stage2, lr: 0.0001}, "
PHASES += "{epochs: 1, lr: 0.00001}]"
FOUR = "--trainer.max_epochs=4"


def history(run):
    with (run / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def state(run, name="best"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_phases_train_what_they_say_at_their_rates(fit, capsys):
    run = fit(PHASES, FOUR, "--model.schedule=linear")
    rows = history(run)
    network = CellClassifier(("a", "b", "c", "d"), (32, 32), ModelConfig("small_cnn"))
    total = sum(p.numel() for p in network.parameters())
    head = sum(p.numel() for p in network.head.parameters())
    two = sum(p.numel() for s in network.stages[:2] for m in s for p in m.parameters())
    found = [row["train/parameters"] for row in rows]
    assert found == [head, total - two, total - two, total]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-4, 5e-5, 1e-5])
    shown = capsys.readouterr().out
    assert f"phase 2 of 3: epoch 1, {total - two:,} parameters trained, lr 0.0001" in shown


def test_a_phase_leaves_what_it_freezes(fit):
    seed = fit(PHASES, FOUR, "--checkpoint.monitor=last")
    short = "--model.phases=[{epochs: 1, freeze: backbone}]"
    first = fit(short, "--trainer.max_epochs=1", "--checkpoint.monitor=last", name="first")
    a, b = state(seed), state(first)
    kept = [key for key in a if key.startswith("backbone.")]
    assert any(not torch.equal(a[key], b[key]) for key in kept)  # the last phase trains all
    frozen = fit("--model.freeze=backbone", "--trainer.max_epochs=1", name="frozen")
    assert all(torch.equal(state(frozen)[key], b[key]) for key in kept)


def test_phases_that_do_not_fill_the_training_are_refused(fails):
    line = fails("fit", *few_cells([]), *TINY, PHASES)
    assert line == (
        "model.phases: they last 4 epochs, and trainer.max_epochs is 2; make them equal"
    )
    line = fails("fit", *few_cells([]), *TINY, "--model.phases=[{epochs: 2, freeze: stage8}]")
    assert line.startswith("model.phases: small_cnn has no stage 'stage8'")


@pytest.mark.parametrize(
    "options",
    [
        [PHASES, "--model.schedule=cosine"],
        [PHASES, "--model.schedule=plateau", "--model.optimizer=sgd"],
        ["--model.mixup=0.2", "--model.cutmix=1.0", "--model.loss.label_smoothing=0.1"],
        ["--checkpoint.average=ema"],
        ["--checkpoint.average=swa", "--model.norm=group"],
        [
            *("--checkpoint.average=swa", "--model.head.dropout=0.3", "--data.augment=strong"),
            *("--trainer.max_epochs=10", "--trainer.limit_train_batches=2"),  # averaged from 7 on
        ],
        ["--data.smote={count: 30}", "--data.augment=strong", "--data.view=masked"],
        [
            "--data.label_noise=0.3",
            "--model.co_teaching={forget_rate: 0.3, momentum: 0.9, warm_up: 2}",
            "--label_history=true",
        ],
    ],
    ids=["phases", "plateau", "mixup", "ema", "group", "swa", "smote", "co-teaching"],
)
def test_a_terminated_recipe_goes_on_to_the_same_bits(fit, tmp_path, monkeypatch, options):
    options = [FOUR, "--data.batch_size=8", *options]
    expected = fit(*options)
    with monkeypatch.context() as patched:
        terminate_at(patched, 17)  # in the third epoch
        with pytest.raises(AssertionError):  # the fixture wants an exit code of 0
            fit(*options, name="terminated")
    (run,) = (tmp_path / "runs" / "terminated").iterdir()
    assert not (run / "metrics.json").exists()
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, results(expected))
    noted = [path / "label_history.csv" for path in (run, expected)]
    if noted[1].exists():
        assert noted[0].read_text() == noted[1].read_text()


def test_a_run_stops_early_and_keeps_its_best(fit):
    run = fit("--trainer.max_epochs=30", "--checkpoint.patience=2", "--model.lr=0.01")
    values = [row["val/loss"] for row in history(run)]
    best = int(np.argmin(values))
    assert len(values) == best + 3 < 30
    epoch = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert epoch == best


def test_patience_needs_something_to_get_better(fails):
    options = ["--checkpoint.patience=2", "--checkpoint.monitor=last"]
    line = fails("fit", *few_cells([]), *TINY, *options)
    assert line.startswith("checkpoint.patience: the last epoch is never better")


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_the_average_is_validated_kept_and_scored(fit, average):
    """Its weights are those that a hand-made average of the steps, or of the epochs, has."""
    seen = []
    end = CellClassifier.optimizer_step

    def note(self, *args, **kwargs):
        end(self, *args, **kwargs)
        seen.append({k: v.clone() for k, v in self.state_dict().items() if v.is_floating_point()})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CellClassifier, "optimizer_step", note)
        run = fit(FOUR, "--checkpoint.monitor=last", f"--checkpoint.average={average}")
    if average == "swa":  # the last quarter of four epochs is one
        expected = seen[-1]
    else:
        expected = seen[0]
        for n, new in enumerate(seen[1:], start=1):
            share = min(0.99, (1 + n) / (10 + n))
            expected = {k: share * v + (1 - share) * new[k] for k, v in expected.items()}
    found = state(run)
    for key, value in expected.items():
        if average == "ema" or "running" not in key:
            assert torch.allclose(found[key], value, atol=1e-4), key
    again = fit(FOUR, "--checkpoint.monitor=last", name="plain")
    plain = {k: v for k, v in state(again).items() if "running" not in k and "num_b" not in k}
    differ = any(not torch.equal(found[k], v) for k, v in plain.items())
    assert differ == (average == "ema")


SWA = [
    *("--trainer.max_epochs=8", "--data.batch_size=8", "--trainer.precision=32-true"),
    *("--checkpoint.average=swa", "--checkpoint.monitor=last"),
]


@pytest.mark.parametrize(
    "options",
    [
        ["--model.head={hidden: [8], batch_norm: true, dropout: 0.3}", "--model.schedule=cosine"],
        ["--data.augment=strong", "--data.balance=balanced"],
        ["--model.phases=[{epochs: 5}, {epochs: 2, freeze: stage2}, {epochs: 1}]"],
    ],
    ids=["head", "augmented", "phases"],
)
def test_the_statistics_of_swa_are_those_of_its_weights_over_the_training_images(fit, options):
    """They are what torch's own update_bn computes of the saved weights."""
    run = fit(*SWA, *options)
    description, saved = read_checkpoint(run / "checkpoints" / "best.ckpt")
    network = build_model(description, saved)
    given = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    kept = ("samples", "slides", "image_size", "batch_size", "augment", "balance")
    data = SyntheticDataModule(**{key: given[key] for key in kept})
    data.setup("fit")
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    torch.optim.swa_utils.update_bn([batch.images for batch in data.training_batches(7)], network)
    computed = network.state_dict()
    statistics = [key for key in saved if "running" in key]
    assert len(statistics) > 3
    for key in statistics:
        assert torch.allclose(saved[key], computed[key], rtol=1e-3, atol=1e-5), key


def test_swa_leaves_the_statistics_of_what_is_frozen(fit):
    saved = state(fit(*SWA, "--model.freeze=stage2"))
    untouched = [(saved[f"backbone.{i}.1.1.running_var"] == 1).all().item() for i in range(4)]
    assert untouched == [True, True, False, False]


def test_mixing_makes_the_training_another_and_not_the_evaluation(fit):
    plain = history(fit("--model.lr=1e-9"))
    for option in ("--model.mixup=0.4", "--model.cutmix=1.0"):
        mixed = history(fit("--model.lr=1e-9", option, name=option.strip("-")[:12]))
        assert mixed[0]["train/loss"] != pytest.approx(plain[0]["train/loss"], rel=1e-4)
        assert mixed[0]["val/loss"] == pytest.approx(plain[0]["val/loss"], rel=0.05)


def test_l1_makes_weights_small_and_says_how_many(fit):
    few = history(fit("--model.l1=0.0000001", "--trainer.max_epochs=3"))
    many = history(fit("--model.l1=0.001", "--trainer.max_epochs=3", name="more"))
    assert many[-1]["train/sparsity"] > 2 * few[-1]["train/sparsity"] > 0
    assert "train/sparsity" not in history(fit("--model.l2=0.001", name="other"))[0]


# Labels that may be wrong.


def test_flipping_replaces_the_rate_by_other_classes_evenly():
    labels = np.repeat([0, 1, 2, 3], 250)
    found = flip(labels, 4, 0.4, seed=1)
    assert (found != labels).sum() == 400
    counts = np.bincount((found - labels)[found != labels] % 4)
    assert counts[0] == 0
    assert counts[1:].min() > 100
    assert not np.array_equal(found, flip(labels, 4, 0.4, seed=2))
    assert np.array_equal(found, flip(labels, 4, 0.4, seed=1))


def test_noise_is_in_the_training_labels_alone(fit):
    run = fit("--data.label_noise=0.25", "--label_history=true")
    with (run / "label_history.csv").open() as file:
        given = {row["id"]: row["label"] for row in csv.DictReader(file)}
    with (run / "split.csv").open() as file:
        true = {row["id"]: row["class"] for row in csv.DictReader(file) if row["split"] == "train"}
    assert given.keys() == true.keys()
    wrong = [name for name in given if given[name] != true[name]]
    assert len(wrong) == round(0.25 * len(given))
    with (run / "predictions.csv").open() as file:
        assert all(row["label"] for row in csv.DictReader(file))


class _Batch:
    def __init__(self, positions):
        self.positions = positions


def test_a_teacher_leaves_out_what_it_found_least_probable():
    """The label's probability by the teacher decides; the network's own does not."""
    network = torch.nn.ModuleDict({"layer": torch.nn.Linear(1, 2)})
    thought = torch.tensor([0.9, 0.1, 0.8, 0.2])

    def logits(of, batch):
        p = thought[batch.positions]
        return torch.stack([p.log(), (1 - p).log()], dim=1)

    teacher = CoTeacher(network, logits, CoTeachingConfig(0.5, 0.5, warm_up=1), samples=5)
    everything = _Batch(torch.arange(4))
    own = torch.zeros(4, 2)
    shares = torch.tensor([[1.0, 0.0]] * 4)
    teacher.begin_epoch(0, lambda tensor: tensor)
    kept, factor = teacher.weigh(everything, own, shares)
    assert kept.tolist() == [1, 1, 1, 1]
    assert factor.tolist() == [1, 1, 1, 1]
    teacher.begin_epoch(1, lambda tensor: tensor)
    kept, factor = teacher.weigh(everything, own, shares)
    assert kept.tolist() == [1, 0, 1, 0]
    assert factor.tolist() == pytest.approx([0.25] * 4)  # (1 - 0.5) ** 2, of the network itself


def test_a_teacher_follows_slowly():
    network = torch.nn.ModuleDict({"layer": torch.nn.Linear(1, 1)})
    teacher = CoTeacher(network, lambda parts, batch: None, CoTeachingConfig(0.5, 0.75), samples=1)
    before = network["layer"].weight.item()
    with torch.no_grad():
        network["layer"].weight.add_(1.0)
    teacher.follow()
    followed = teacher.state(lambda tensor: tensor)["teacher"]["layer.weight"].item()
    assert followed == pytest.approx(before + 0.25)


@pytest.mark.parametrize(
    "phases",
    [
        "[{epochs: 1, freeze: backbone}, {epochs: 2}, {epochs: 1, freeze: stage2}]",
        "[{epochs: 1}, {epochs: 2, freeze: backbone}, {epochs: 1, freeze: stage1}]",
    ],
)
def test_a_teacher_without_momentum_is_its_network_in_every_phase(fit, monkeypatch, phases):
    """Layer modes, batch norm statistics and outputs are the network's, after a resume too."""
    steps, trained = [], set()
    weigh = CoTeacher.weigh

    def compare(self, batch, logits, shares):
        result = weigh(self, batch, logits, shares)
        pairs = list(zip(self._teacher.modules(), self._network.modules(), strict=True))
        assert [a.training for a, _ in pairs] == [b.training for _, b in pairs]
        trained.add(sum(b.training for _, b in pairs))
        own, network = (m.state_dict() for m in (self._teacher, self._network))
        assert all(torch.equal(own[key], network[key]) for key in network)
        assert torch.equal(*self._probability[:, batch.positions])
        steps.append(len(batch.positions))
        return result

    options = [f"--model.phases={phases}", FOUR, "--data.batch_size=8", "--data.label_noise=0.3"]
    options += ["--model.co_teaching={forget_rate: 0.3, momentum: 0}"]
    monkeypatch.setattr(CoTeacher, "weigh", compare)
    run = fit(*options)
    assert len(trained) == 3  # each phase leaves another number of layers in training mode
    whole = len(steps)
    with monkeypatch.context() as patched:
        terminate_at(patched, 17)
        with pytest.raises(AssertionError):  # the fixture wants an exit code of 0
            fit(*options, name="terminated")
    (begun,) = (run.parents[1] / "terminated").iterdir()
    assert main(["fit", "--resume", str(begun)]) == 0
    assert len(steps) == 2 * whole


def test_a_teacher_lets_statistics_follow_as_slowly_as_weights():
    network = torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(1)})
    network["norm"].register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    teacher = CoTeacher(network, lambda parts, batch: None, CoTeachingConfig(0.5, 0.75), samples=1)
    network["norm"].running_mean += 1.0
    network["norm"].num_batches_tracked += 3
    teacher.follow()
    followed = teacher.state(lambda tensor: tensor)["teacher"]
    assert followed["norm.running_mean"].item() == pytest.approx(0.25)
    assert followed["norm.num_batches_tracked"].item() == 3
    assert torch.equal(followed["norm.mask"], network["norm"].mask)


def test_co_teaching_leaves_out_the_rate_of_samples(fit, monkeypatch):
    left = []
    begin = CoTeacher.begin_epoch

    def note(self, *args):
        begin(self, *args)
        left.append(int(self._left_out.sum()))

    monkeypatch.setattr(CoTeacher, "begin_epoch", note)
    run = fit("--data.label_noise=0.4", "--model.co_teaching.forget_rate=0.4", FOUR)
    with (run / "split.csv").open() as file:
        n = sum(row["split"] == "train" for row in csv.DictReader(file))
    assert left == [0] + [round(0.4 * n)] * 3


def test_histories_tell_easy_hard_and_noisy_apart():
    rng = np.random.default_rng(0)
    epochs = np.arange(24)

    def curves(n, end, speed):
        rise = end * (1 - np.exp(-epochs / speed))
        return (rise + rng.normal(0, 0.03, (n, len(epochs)))).clip(0, 1)

    history = np.concatenate([curves(140, 0.98, 2), curves(20, 0.9, 12), curves(40, 0.1, 2)])
    is_easy = easy(history, noise_rate=0.2)
    assert (~is_easy).sum() == 60
    assert is_easy[:140].all()
    artificial = np.concatenate([curves(112, 0.95, 4), curves(28, 0.1, 2)])
    found = noisy(history[~is_easy], artificial, np.arange(140) >= 112, seed=0)
    assert found[20:].mean() > 0.95
    assert found[:20].mean() < 0.2


def test_correction_keeps_what_both_judges_agree_on():
    given, predicted = np.array([0, 1, 2, 0, 1]), np.array([1, 1, 0, 2, 1])
    is_easy = np.array([True, False, False, False, False])
    is_noisy = np.array([False, False, True, False, True])
    # easy; hard and agreed; noisy and changed; hard but changed; noisy but not changed
    assert correct(given, predicted, is_easy, is_noisy).tolist() == [0, 1, 0, -1, -1]


RELABEL = [
    "--data=SyntheticDataModule",
    "--data.samples=160",
    "--data.slides=40",
    *TINY,
    "--trainer.max_epochs=10",
    "--data.label_noise=0.25",
]


@pytest.fixture(scope="module")
def relabelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relabel")
    config = folder / "noisy.yaml"
    config.write_text("seed_everything: 0\n")
    output = folder / "labels"
    command = ["relabel", f"--config={config}", *RELABEL]
    assert main([*command, "--noise_rate=0.25", f"--output={output}"]) == 0
    return output / "labels.csv", command


def test_relabelling_lowers_the_noise(relabelled, capsys):
    path, _ = relabelled
    data = SyntheticDataModule(samples=160, slides=40, image_size=32)
    truth = {s.id: data.classes[s.label] for s in data.table.samples}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(data.partition.indices("train"))
    before = np.mean([row["given"] != truth[row["id"]] for row in rows])
    after = np.mean([row["label"] != truth[row["id"]] for row in rows if row["label"]])
    assert before == pytest.approx(0.25, abs=0.01)
    assert after < before
    assert {row["kind"] for row in rows} <= {"easy", "hard", "noisy"}


def test_a_training_takes_the_new_labels(relabelled, tmp_path, fails):
    path, command = relabelled
    fit = ["fit", *command[1:], f"--runs={tmp_path}", "--name=again", "--label_history=true"]
    fit.append("--figures=false")
    assert main([*fit, f"--data.train_labels={path}"]) == 0
    (run,) = (tmp_path / "again").iterdir()
    with path.open() as file:
        new = {row["id"]: row["label"] for row in csv.DictReader(file) if row["label"]}
    with (run / "label_history.csv").open() as file:
        assert {row["id"]: row["label"] for row in csv.DictReader(file)} == new
    line = fails(*fit, f"--data.train_labels={path}", "--data.split.seed=5")
    assert "is of another training split" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise_rate=0.2"], "labels.csv is done; give another folder, or delete it"),
        (["--noise_rate=0.7"], "--noise_rate: 0.7 is not above 0 and below 0.6"),
        ([], "missing --noise_rate"),
    ],
)
def test_relabelling_that_cannot_be_is_refused(relabelled, fails, options, message):
    path, command = relabelled
    assert message in fails(*command, *options, f"--output={path.parent}")


def test_trainings_of_other_options_are_not_taken(relabelled, fails, tmp_path):
    path, command = relabelled
    (tmp_path / "labels").mkdir()
    begun = (path.parent / "relabel.txt").read_text()
    (tmp_path / "labels" / "relabel.txt").write_text(begun)
    line = fails(*command, "--noise_rate=0.3", f"--output={tmp_path / 'labels'}")
    assert "holds trainings with other options" in line


def test_relabelling_leaves_other_files_alone(fails, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("seed_everything: 0\n")
    own = tmp_path / "artificial.csv"
    own.write_text("mine")
    command = ["relabel", f"--config={config}", "--noise_rate=0.2"]
    assert "holds other files; give an empty" in fails(*command, f"--output={tmp_path}")
    assert fails(*command, f"--output={own}").endswith("is a file; give a folder")
    assert own.read_text() == "mine"
    assert not (tmp_path / "relabel.txt").exists()


def test_labels_that_changed_since_are_noticed(relabelled, fails, tmp_path, monkeypatch):
    path, command = relabelled
    own = tmp_path / "labels.csv"
    own.write_text(path.read_text())
    fit = ["fit", *command[1:], f"--runs={tmp_path}", "--name=cut", f"--data.train_labels={own}"]

    def stop(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    step = functools.wraps(CellClassifier.training_step)(CellClassifier.training_step)
    with monkeypatch.context() as patched:
        patched.setattr(CellClassifier, "training_step", functools.wraps(step)(stop))
        assert main(fit) == 128 + signal.SIGTERM
    (run,) = (tmp_path / "cut").iterdir()
    rows = own.read_text().splitlines()
    rows[1] = rows[1].split(",")[0] + ",,,"
    own.write_text("\n".join(rows))
    assert "the table of training labels is not the one" in fails("fit", f"--resume={run}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label_history=true", "--model.mixup=0.2"], "label_history: with mixup an image"),
        (["--data.smote={}", "--model.co_teaching.forget_rate=0.2"], "co_teaching: with smote"),
        (["--data.smote={}", "--data.view=silhouette"], "data.smote: two outlines have no blend"),
        (
            ["--model.norm=group", "--model.backbone=alexnet", "--data.image_size=64"],
            "no batch norm",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fails, options, message):
    assert message in fails("fit", *few_cells(options), *TINY, *options)


def test_class_weights_and_averages_go_together(fit):
    run = fit("--checkpoint.average=ema", "--model.class_weights=balanced")
    assert np.isfinite([row["val/loss"] for row in history(run)]).all()


def test_patience_waits_for_the_last_phase(fit):
    run = fit(
        "--model.phases=[{epochs: 4, freeze: backbone, lr: 1e-9}, {epochs: 8, lr: 1e-9}]",
        "--trainer.max_epochs=12",
        "--checkpoint.patience=2",
        "--model.head.dropout=0",
    )
    assert len(history(run)) >= 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "data.train_labels: cannot read"),
        ("id,kind\na,b\n", "labels.csv: no column 'label'; it has 'id', 'kind'"),
        ("id;label\na;b\na;c\n", "labels.csv has 'a' more than once; remove one"),
        ("id,label\nnobody,neutrophil\n", "is of another training split"),
    ],
)
def test_wrong_tables_of_labels_are_named(tmp_path, fails, text, message):
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    assert message in fails("fit", *few_cells([]), *TINY, f"--data.train_labels={path}")


@pytest.mark.parametrize(
    "options",
    [
        ["--model.backbone=se_resnet8", "--model.norm=group", "--data.stain=giemsa"],
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                ["--model.backbone=vgg_style_v1", "--model.head={hidden: [8], batch_norm: true}"],
                ["--model.backbone=bottleneck_resnet", "--checkpoint.average=ema"],
                ["--model.backbone=separable_cnn", "--model.head.pool=flatten"],
                ["--model.backbone=timm/resnetv2_18", PHASES, FOUR],
                ["--model.backbone=mobilenet_v2", "--model.freeze=stage3"],
            )
        ),
    ],
    ids=lambda options: options[0].partition("=")[2],
)
def test_a_fresh_process_gives_what_the_run_gave(fit, folder_root, tmp_path, options):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", *options)
    given = [f"--run={run}", f"--images={folder_root}", f"--output={tmp_path / 'new.csv'}"]
    for masks in (folder_root / "masks").rglob("*.png"):
        masks.unlink()
    command = [sys.executable, "-m", "cellbench", "predict", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "new.csv").open() as file:
        predicted = {row["file"]: row for row in csv.DictReader(file)}
    with (run / "predictions.csv").open() as file:
        scored = list(csv.DictReader(file))
    assert scored
    for row in scored:
        new = predicted[row["id"]]
        for key in ("p_blast", "p_normal cell"):
            assert float(new[key]) == pytest.approx(float(row[key]), abs=2e-3)


def test_seeds_with_tables_of_labels_of_their_own_are_pooled(relabelled, tmp_path):
    path, command = relabelled
    for seed in range(2):
        own = tmp_path / f"{seed}.csv"
        own.write_text(path.read_text())
        fit = ["fit", *command[1:], f"--runs={tmp_path / 'runs'}", "--name=pooled"]
        fit += ["--trainer.max_epochs=1", f"--seed_everything={seed}", "--figures=false"]
        assert main([*fit, f"--data.train_labels={own}"]) == 0
    runs, left = read_finished([tmp_path / "runs"])
    assert not left
    assert [each.seeds for each in conditions(runs)] == [[0, 1]]
