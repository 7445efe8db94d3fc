"""The plan that the data loaders follow."""

import dataclasses

import pytest

from cellbench import cores
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.loading import LoadingPlan, plan_workers


@pytest.fixture
def data():
    made = SyntheticDataModule(samples=80, slides=40, image_size=32, batch_size=8)
    made.setup("fit")
    return made


def test_a_plan_is_returned_and_nothing_changed(data):
    before = data.plan
    plan = data.plan_loading("cuda", epochs=1)
    assert data.plan is before == LoadingPlan()
    assert plan.workers == 0  # 80 small images take no ten seconds
    assert plan.reason.startswith("the training's images take 0 s")


@pytest.mark.parametrize(
    ("configured", "device", "seconds", "workers", "text"),
    [
        (3, "cuda", 0.0, 3, "3 loader processes (as configured)"),
        (0, "cuda", 99.0, 0, "no loader processes (as configured)"),
        (None, "cpu", 99.0, 0, "no loader processes (the network needs the cores)"),
        (None, "mps", 9.0, 0, "no loader processes (the training's images take 9 s of one core)"),
        (None, "cuda", 99.0, 4, "4 loader processes (the training's images take 99 s of one core)"),
    ],
)
def test_workers_start_if_they_pay(monkeypatch, configured, device, seconds, workers, text):
    monkeypatch.setattr(cores, "available", lambda: 8)
    known = LoadingPlan(seed=5, rank=1, world_size=2)
    plan = plan_workers(known, configured, device, 2, lambda: seconds)
    assert str(plan) == text
    assert dataclasses.replace(plan, workers=0, reason="") == known
    assert plan.workers == workers


def test_training_starts_where_the_plan_says(data):
    whole = [[b.positions.tolist() for b in data.training_batches(e)] for e in (0, 1)]
    assert whole[0] != whole[1]
    data.plan = LoadingPlan(epoch=1, batch=2)
    assert [b.positions.tolist() for b in data.train_dataloader()] == whole[1][2:]


def test_processes_share_each_batch(data):
    whole = [b.positions.tolist() for b in data.training_batches(3)]
    shares = []
    for rank in range(2):
        data.plan = LoadingPlan(rank=rank, world_size=2)
        shares.append([b.positions.tolist() for b in data.training_batches(3)])
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(b) for b in whole]


def test_a_dataset_without_some_samples_is_another_one(data):
    left = data.without(["cell03", "cell70"])
    assert len(left.table) == 78
    assert len(data.table) == 80
    assert data.exclude == ()
    assert left.exclude == ("cell03", "cell70")
