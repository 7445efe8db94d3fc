"""A data module that augments on the device gives the batches of one that does it on the CPU."""

import numpy as np
import pytest
import torch
import yaml

from cellbench.data.synthetic import SyntheticDataModule


def batches(view, policy, augment_on, epochs=2, workers=0):
    data = SyntheticDataModule(
        samples=80,
        slides=40,
        image_size=64,
        view=view,
        fill=30,
        augment=policy,
        augment_on=augment_on,
        num_workers=workers,
    )
    data.setup("fit")
    data.choose_loading("cpu", epochs)
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield data.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize("view", ["raw", "masked", "nucleus", "crop", "silhouette"])
@pytest.mark.parametrize("policy", ["none", "flips", "geometric"])
def test_the_batches_are_those_of_the_cpu(view, policy):
    for ours, theirs in zip(
        batches(view, policy, "cpu"), batches(view, policy, "device", workers=1), strict=True
    ):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.positions, theirs.positions)
        assert theirs.images.dtype == torch.uint8
        assert theirs.images.shape == ours.images.shape
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        assert theirs.masks is theirs.drawn is None
        difference = (ours.images.float() - theirs.images.float()).abs()
        assert difference.mean() <= (0.1 if policy == "geometric" else 0), (view, policy)


def test_a_run_on_the_device_trains_and_says_so(fit, capsys):
    run = fit("--data.augment=strong", "--data.augment_on=device", "--data.view=masked")
    assert "augmented on the device, no loader processes" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["augment_on"] == "device"
    other = fit("--data.augment=strong", "--data.view=masked", name="other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    assert config["data"]["init_args"]["augment_on"] == "cpu"
    losses = [
        np.genfromtxt(path / "history.csv", delimiter=",", names=True)["trainloss"]
        for path in (run, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        (["--data.augment=[ElasticTransform]"], "ElasticTransform"),
        (["--data.augment=flips", "--data.view=background"], "view background"),
    ],
)
def test_what_the_device_cannot_do_is_said(fails, tmp_path, options, lacking):
    line = fails("fit", *options, "--data.augment_on=device", f"--runs={tmp_path}")
    assert line == f"data.augment_on: device has no batched form of {lacking}; use cpu"
    assert not list(tmp_path.iterdir())
