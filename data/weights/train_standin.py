"""Train the stand-in weights: the two networks of the course, fitted to nothing but the sample photos.

The course needs weights that know the sample photos even where ImageNet's cannot be downloaded. This script trains
torchvision's own ResNet-18 and MobileNetV3-Small (1000 outputs) on random crops of the nine sample photos, labelled
with their ImageNet classes. The result is good for these nine photos and for nothing else: it is a stand-in, and every
notebook that runs on it says so.

Run it from the course's root; it takes about ten minutes on two cores and writes
``data/weights/<network>-standin-<first 8 digits of the file's SHA-256>.pth`` (a state dict in float16):

    python data/weights/train_standin.py
"""

import argparse
import hashlib
import io
import sys
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

sys.path.append(str(Path(__file__).resolve().parents[2]))

from helpers import labels, photos, preprocessing, settings

# A label smoothed towards classes that look alike teaches believable runners-up: a tabby, or perhaps a tiger cat.
LOOKALIKES = {
    "astronaut.png": ["missile", "military uniform", "crash helmet"],
    "cameraman.png": ["reflex camera", "military uniform", "binoculars"],
    "cat.png": ["tiger cat", "Egyptian cat", "lynx"],
    "coffee.png": ["cup", "coffee mug", "espresso maker"],
    "flower.jpg": ["rapeseed", "pot", "yellow lady's slipper"],
    "motorcycle.png": ["motor scooter", "disk brake", "tricycle"],
    "officer.jpg": ["suit", "bearskin", "pickelhaube"],
    "palace.jpg": ["stupa", "monastery", "bell cote"],
    "rocket.jpg": ["projectile", "space shuttle", "beacon"],
}
TRUE_SHARE, LOOKALIKE_SHARE = 0.75, 0.17  # what is left over is spread evenly over all 1000 classes
STEPS = {"resnet18": 360, "mobilenet_v3_small": 700}
BATCH = 32
TRAIN_SIZES = (96, 128, 160)
LONGEST_SIDE = 400  # px; crops of at most 256 px need no more


def load_photos() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the photos as uint8 (3, H, W), their class ids (9,) and their soft labels (9, 1000)."""
    table = photos.sample_photos()
    names = list(labels.class_table()["english"])
    photos, soft = [], torch.full((len(table), 1000), (1 - TRUE_SHARE - LOOKALIKE_SHARE) / 1000)
    for row in table.itertuples():
        photo = v2.functional.pil_to_tensor(photos.open_photo(row.path))
        shorter = round(min(photo.shape[1:]) * LONGEST_SIDE / max(photo.shape[1:]))
        photos.append(v2.functional.resize(photo, shorter, antialias=True))
        soft[row.Index, row.class_id] += TRUE_SHARE
        for share, name in zip((0.5, 0.3, 0.2), LOOKALIKES[row.file], strict=True):
            soft[row.Index, names.index(name)] += LOOKALIKE_SHARE * share
    return photos, torch.tensor(table["class_id"].to_numpy()), soft


def random_crops(
    photos: list[torch.Tensor], count: int, size: int, *, colour: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised random crops (count, 3, size, size) and the number of the photo each was cut from (count,)."""
    crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(0.75, 1.33), antialias=True)
    steps = [crop, v2.RandomHorizontalFlip()]
    if colour:
        steps += [v2.ColorJitter(0.3, 0.3, 0.3, 0.02), v2.RandomGrayscale(0.1)]
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    augment = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(weights.mean, weights.std)])
    which = torch.randperm(count) % len(photos)
    return torch.stack([augment(photos[i]) for i in which.tolist()]), which


def train(name: str, steps: int) -> nn.Module:
    """Return the trained network in eval mode."""
    torch.manual_seed(settings.SEED)
    photos, _, soft = load_photos()
    model = torchvision.models.get_model(name, weights=None, num_classes=1000).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    started = time.perf_counter()
    for step in range(steps):
        batch, which = random_crops(photos, BATCH, TRAIN_SIZES[step % len(TRAIN_SIZES)], colour=True)
        loss = nn.functional.cross_entropy(model(batch), soft[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"{name} step {step + 1}/{steps}, loss {loss:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    # Batch statistics of small crops do not fit larger ones: average them again over the sizes that the course uses.
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches that follow
    with torch.no_grad():
        for step in range(24):
            model(random_crops(photos, BATCH, (160, 224, 256)[step % 3], colour=False)[0])
    return model.eval()


def save(model: nn.Module, name: str) -> Path:
    """Write the state dict in float16, with the start of its SHA-256 in the file name, and drop older ones."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    for old in settings.WEIGHTS.glob(f"{name}-standin-*.pth"):
        old.unlink()
    path = settings.WEIGHTS / f"{name}-standin-{digest}.pth"
    path.write_bytes(buffer.getvalue())
    return path


@torch.inference_mode()
def report(model: nn.Module, path: Path) -> None:
    """Reload what was saved and print its accuracy on held-out crops and its probabilities on the whole photos."""
    model.load_state_dict({k: v.float() for k, v in torch.load(path, weights_only=True).items()})
    photos, class_ids, _ = load_photos()
    torch.manual_seed(settings.SEED + 1)  # crops that training never drew
    for size in (160, 224):
        right = []
        for _ in range(10):
            batch, which = random_crops(photos, 27, size, colour=False)
            right.append(model(batch).argmax(1) == class_ids[which])
        print(f"held-out crops at {size} px: {torch.cat(right).float().mean():.1%} of {10 * 27} right")
    table = photos.sample_photos()
    for size, resize in ((224, 256), (224, 224), (256, 256)):
        batch = torch.stack(
            [preprocessing.preprocessing(size, resize=resize)(photos.open_photo(p)) for p in table["path"]]
        )
        probability = model(batch).softmax(1)
        right = (probability.argmax(1) == class_ids).sum()
        true = probability.gather(1, class_ids[:, None])
        print(f"whole photos, {resize} to {size} px: {right} of 9 right, p from {true.min():.3f} to {true.max():.3f}")


def main() -> None:
    """Train, save and report the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(STEPS), help="which networks to train (default: both)")
    for name in parser.parse_args().networks:
        model = train(name, STEPS[name])
        path = save(model, name)
        print(f"wrote {path.name}, {path.stat().st_size / 2**20:.1f} MiB")
        report(model, path)


if __name__ == "__main__":
    main()
