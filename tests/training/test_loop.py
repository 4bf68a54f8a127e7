"""Steps, memory that runs out, predictions, checkpoints."""

import math
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ballot.errors import TrialFailed, UserError
from ballot.training.loop import predict, train_one_epoch
from ballot.training.state import Goal, TrainState, make_ema
from ballot.training.tensor_files import load_tensors, save_tensors
from ballot.training.weights import read_weights


class Still:
    """A schedule that leaves the learning rate alone."""

    def step_batch(self): ...

    def step_epoch(self, score): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def make_state(criterion=None, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    criterion = criterion or nn.CrossEntropyLoss()
    return TrainState(
        model, criterion, torch.optim.SGD(model.parameters(), lr=0.1), Still(), **more
    )


def batches(sizes=(8, 8, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    for n in sizes:
        yield (
            torch.randn(n, 3, 2, 2, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )


class Hungry(nn.Module):
    """A criterion that runs out of memory above a number of images."""

    def __init__(self, room):
        super().__init__()
        self.room, self.seen = room, []

    def forward(self, logits, targets):
        if len(logits) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.seen.append(len(logits))
        return nn.functional.cross_entropy(logits, targets)


def test_an_epoch_is_scored_over_its_rows_not_over_its_batches():
    state = make_state()
    state.optimizer.param_groups[0]["lr"] = 0.0  # the weights stay, so one pass must agree
    epoch = train_one_epoch(state, batches())
    images, labels = (torch.cat(part) for part in zip(*batches()))
    logits = state.model(images)
    assert epoch.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    np.testing.assert_allclose(epoch.probs, logits.softmax(1).detach().numpy(), atol=1e-6)
    assert epoch.targets.tolist() == labels.tolist()
    assert len(epoch.step_losses) == 3 and state.step == 3


@pytest.mark.parametrize("room, parts", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_out_of_memory_halves_the_batch_and_gives_the_same_weights(room, parts):
    hungry = Hungry(room)
    whole, tight = make_state(), make_state(hungry)
    train_one_epoch(whole, batches())
    train_one_epoch(tight, batches())
    assert tight.parts == parts and max(hungry.seen) <= room
    for a, b in zip(whole.model.parameters(), tight.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


class Reads(TorchDispatchMode):
    """Count what has to wait for a device: values that the program asks for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            self.found.append(func)
        masks = [x for x in args if isinstance(x, (list, tuple))]
        if any(getattr(x, "dtype", None) is torch.bool for mask in masks for x in mask):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [2, 9])
def test_nothing_is_read_from_the_device_before_an_epoch_ends(steps):
    state = make_state(clip_grad=1.0)
    state.ema = make_ema(state.model, 0.9)
    held = list(batches((8,) * steps))
    with Reads() as reads:
        train_one_epoch(state, held)
    counters = 3 * steps  # the averaged weights' own number of steps, which lies on the host
    assert state.ema.n_averaged.device.type == "cpu" and len(reads.found) <= counters + 1
    state.ema = None
    with Reads() as reads:
        train_one_epoch(state, held)
    assert reads.found == []


def test_a_trial_fails_where_one_image_does_not_fit():
    with pytest.raises(TrialFailed, match="out of memory with a single image"):
        train_one_epoch(make_state(Hungry(0)), batches())


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Wrong(nn.Module):
        def forward(self, *_):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        train_one_epoch(make_state(Wrong()), batches())


def test_a_loss_that_is_not_finite_fails_the_trial():
    state = make_state()
    state.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(TrialFailed, match="finite in epoch 1"):
        train_one_epoch(state, batches((8,) * 6))


def test_the_gradient_is_clipped_to_its_norm():
    state = make_state(clip_grad=0.01)
    before = [p.detach().clone() for p in state.model.parameters()]
    train_one_epoch(state, batches((8,)))
    moved = torch.cat([(p - q).flatten() for p, q in zip(state.model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_averaged_weights_are_the_exponential_mean_of_the_steps():
    state = make_state()
    state.ema = make_ema(state.model, 0.9)
    weight, mean = state.model[1].weight, None
    for step, batch in enumerate(batches((8, 8, 8))):
        train_one_epoch(state, [batch])
        now = weight.detach().clone()
        decay = min(0.9, (1 + step) / (10 + step))  # a short run does not keep its start
        mean = now if mean is None else decay * mean + (1 - decay) * now
    torch.testing.assert_close(state.scored[1].weight, mean)
    assert make_ema(state.model, 0.0) is None


def test_predictions_are_in_order_sum_to_one_and_leave_rows_without_a_label_out_of_the_loss():
    state = make_state()
    images, labels = (torch.cat(part) for part in zip(*batches()))
    hidden = labels.clone()
    hidden[:5] = -1
    seen = predict(state.model, zip(images.split(8), hidden.split(8)), None, nn.CrossEntropyLoss())
    logits = state.model(images)
    np.testing.assert_allclose(seen.probs, logits.softmax(1).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.probs.sum(1, dtype=np.float64), 1, atol=1e-6)
    assert seen.loss == pytest.approx(
        nn.functional.cross_entropy(logits[5:], labels[5:]).item(), abs=1e-6
    )
    assert math.isnan(predict(state.model, batches()).loss)


def test_a_checkpoint_brings_everything_back(tmp_path):
    one = make_state(ema=None)
    train_one_epoch(one, batches())
    one.epoch = 1
    one.note_best(Goal("val_acc", "max"), {"val_acc": 0.5})
    one.save(tmp_path / "last.pt")
    two = make_state()
    two.load(tmp_path / "last.pt", torch.device("cpu"))
    assert (two.epoch, two.step, two.best_score, two.best_epoch) == (1, 3, 0.5, 0)
    for a, b in zip(one.model.parameters(), two.model.parameters()):
        assert torch.equal(a, b)


def test_a_checkpoint_that_is_damaged_or_of_another_model_is_named(tmp_path):
    state = make_state()
    state.save(tmp_path / "last.pt")
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    wrong = TrainState(
        other, nn.CrossEntropyLoss(), torch.optim.SGD(other.parameters(), lr=0.1), Still()
    )
    with pytest.raises(UserError, match=r"last\.pt: does not fit this configuration"):
        wrong.load(tmp_path / "last.pt", torch.device("cpu"))
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.pt: is no checkpoint that can be read"):
        load_tensors(tmp_path / "half.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change", [lambda _: {}, lambda model: {k: v.to_sparse() for k, v in model.items()}]
)
def test_a_best_epoch_that_is_of_another_run_is_named(tmp_path, change):
    state = make_state()
    model = change(state.scored.state_dict())
    save_tensors(tmp_path / "best.pt", {"model": model, "about": "{}"})
    with pytest.raises(UserError, match=r"best\.pt: is not the best epoch of this run"):
        state.load_best(tmp_path / "best.pt", torch.device("cpu"))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"model": print}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="is no checkpoint"):
        load_tensors(tmp_path / "evil.pt")


@pytest.mark.parametrize("read", [load_tensors, read_weights])
def test_a_small_checkpoint_that_unpacks_to_a_lot_is_not_unpacked(tmp_path, read):
    torch.save({"model": {"weight": torch.zeros(8 << 20)}}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in stored.infolist():
            bomb.writestr(part.filename, stored.read(part))
    with pytest.raises(UserError, match=r"bomb\.pt: is no"):
        read(tmp_path / "bomb.pt")
    assert read(tmp_path / "stored.pt")


@pytest.mark.parametrize("mode, better, worse", [("max", 0.6, 0.4), ("min", 0.4, 0.6)])
def test_a_goal_knows_what_is_better(mode, better, worse):
    goal = Goal("val_x", mode)
    assert goal.better(better, 0.5) and not goal.better(worse, 0.5) and not goal.better(0.5, 0.5)
    assert goal.better(worse, None)
    assert not goal.better(goal.floor(10), worse)
