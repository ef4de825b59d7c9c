"""Epochs of other loaders: files -> random crops of 224, antialiased, flipped, in shuffled batches.

Each way is what its own documentation shows for training on images, with two workers or threads.
"""

import tarfile
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

BATCH_SIZE = 64
NUM_WORKERS = 2
MEAN = STD = (0.5, 0.5, 0.5)
Epoch = Callable[[], int]
"""Goes through all images once; returns how many it saw."""


class Data(NamedTuple):
    """What is read.

    Attributes:
        work: Folder with `tree` (a folder for each class), `tars` and packs.
        img_size: Height and width of the crops.
        num_images: Images of an epoch.
    """

    work: Path
    img_size: int
    num_images: int


def _random_crop(img_size: int) -> Any:
    transforms = import_module("torchvision.transforms")
    bilinear = transforms.InterpolationMode.BILINEAR
    return [
        transforms.RandomResizedCrop(img_size, interpolation=bilinear),
        transforms.RandomHorizontalFlip(),
    ]


def _as_floats(img_size: int) -> Any:
    transforms = import_module("torchvision.transforms")
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([*_random_crop(img_size), *last])


def _as_bytes(img_size: int) -> Any:
    transforms = import_module("torchvision.transforms")
    return transforms.Compose([*_random_crop(img_size), transforms.PILToTensor()])


def _epoch(dataset: Any, **options: Any) -> Epoch:
    loader = import_module("torch.utils.data").DataLoader
    options = {"shuffle": True, **options}

    def epoch() -> int:
        batches = loader(dataset, BATCH_SIZE, num_workers=NUM_WORKERS, **options)
        return counted(images for images, _ in batches)

    return epoch


def counted(batches: Iterable[Any]) -> int:
    """Return how many images all *batches* have."""
    return sum(len(images) for images in batches)


def image_folder(data: Data) -> Epoch:
    """torchvision, as everybody does it: Pillow, float32, normalised."""
    datasets = import_module("torchvision.datasets")
    return _epoch(datasets.ImageFolder(data.work / "tree", _as_floats(data.img_size)))


def image_folder_bytes(data: Data) -> Epoch:
    """Torchvision with uint8 between processes."""
    datasets = import_module("torchvision.datasets")
    return _epoch(datasets.ImageFolder(data.work / "tree", _as_bytes(data.img_size)))


def timm_loader(data: Data) -> Epoch:
    """Timm's create_loader, with its prefetcher: uint8 between processes."""
    timm = import_module("timm.data")
    loader = timm.create_loader(
        timm.ImageDataset(str(data.work / "tree")),
        (3, data.img_size, data.img_size),
        BATCH_SIZE,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=NUM_WORKERS,
        persistent_workers=False,
        device=import_module("torch").device("cpu"),
    )
    return lambda: counted(images for images, _ in loader)


def webdataset(data: Data) -> Epoch:
    """webdataset, from tars: Pillow, uint8."""
    wds = import_module("webdataset")
    shards = sorted(str(path) for path in (data.work / "tars").glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_as_bytes(data.img_size))
        .batched(BATCH_SIZE)
    )

    def epoch() -> int:
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=NUM_WORKERS)
        return counted(images for images, _ in loader)

    return epoch


def hugging_face(data: Data) -> Epoch:
    """Hugging Face datasets, of files: Pillow, uint8."""
    datasets = import_module("datasets")
    files = sorted((data.work / "tree").rglob("*.JPEG"))
    columns = {"image": [str(path) for path in files], "label": [0] * len(files)}
    transform = _as_bytes(data.img_size)

    def transformed(batch: dict[str, Any]) -> dict[str, Any]:
        dataset = [transform(image.convert("RGB")) for image in batch["image"]]
        return {"image": dataset, "label": batch["label"]}

    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset = dataset.with_transform(transformed)

    def collated(rows: list[dict[str, Any]]) -> Any:
        images = import_module("torch").stack([row["image"] for row in rows])
        return images, [row["label"] for row in rows]

    return _epoch(dataset, collate_fn=collated)


def dali(data: Data) -> Epoch:
    """DALI's pipeline on the CPU: it decodes the crop only; uint8."""
    dali, fn = import_module("nvidia.dali"), import_module("nvidia.dali.fn")
    types = import_module("nvidia.dali.types")

    def pipeline() -> Any:
        files, labels = fn.readers.file(
            file_root=str(data.work / "tree"), random_shuffle=True, name="reader"
        )
        images = fn.decoders.image_random_crop(
            files, device="cpu", random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3)
        )
        images = fn.resize(
            images,
            size=(data.img_size, data.img_size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.UINT8,
            output_layout="CHW",
            mirror=fn.random.coin_flip(),
            mean=[0.0] * 3,
            std=[1.0] * 3,
        )
        return images, labels

    options = {"batch_size": BATCH_SIZE, "num_threads": NUM_WORKERS, "device_id": None}
    built = dali.pipeline_def(**options)(pipeline)()
    built.build()

    def epoch() -> int:
        num_batches = -(-data.num_images // BATCH_SIZE)
        return counted(built.run()[0] for _ in range(num_batches))

    return epoch


def write_tars(tree: Path, tars: Path, num_shards: int = 4) -> None:
    """Write the files of *tree* as shards for webdataset."""
    tars.mkdir()
    files = sorted(tree.rglob("*.JPEG"))
    for shard in range(num_shards):
        with tarfile.open(tars / f"{shard:05}.tar", "w") as tar:
            for number, path in enumerate(files[shard::num_shards]):
                label = tars / "label"
                label.write_bytes(b"0")
                tar.add(path, f"{number:07}.jpg")
                tar.add(label, f"{number:07}.cls")
                label.unlink()


PEERS: dict[str, Callable[[Data], Epoch]] = {
    "ImageFolder": image_folder,
    "ImageFolder (uint8)": image_folder_bytes,
    "timm create_loader": timm_loader,
    "webdataset": webdataset,
    "Hugging Face datasets": hugging_face,
    "DALI (CPU)": dali,
}
