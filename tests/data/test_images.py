"""Decoding: what a person sees, in bytes, or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from images_for_tests import photo, save
from PIL import Image, ImageOps

from ballot.data.images import (
    ArraySource,
    Buffers,
    DecodingStore,
    FileSource,
    Geometry,
    MemoryStore,
    UnreadableImage,
    decode,
    decode_file,
    one_thread,
)
from ballot.data.source import is_image
from ballot.errors import UserError

GREY = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
CLEAR = int(GREY[15, 20])
RGB = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def clear_left_half() -> np.ndarray:
    alpha = np.full_like(GREY, 255)
    alpha[:, :20] = 0
    return np.dstack([RGB, alpha])


def on_white() -> np.ndarray:
    expected = RGB.copy()
    expected[:, :20] = 255
    return expected


def png(depth: int, kind: int, rows: np.ndarray, clear: bytes = b"") -> bytes:
    """Write a PNG of 30 x 40 pixels by hand, with the value or the colour that stands for clear."""
    header = struct.pack(">IIBBBBB", 40, 30, depth, kind, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", header), *([(b"tRNS", clear)] if clear else [])]
    parts += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def clear_16_bit(*, grey: bool) -> bytes:
    """A grey picture of 16 bits in which one grey stands for clear."""
    if grey:
        return png(16, 0, (GREY * np.uint16(257)).astype(">u2"), struct.pack(">H", CLEAR * 257))
    values = GREY.astype(">u2") * 256 + 7  # of which Pillow reads the first byte
    rows = np.repeat(values[..., None], 3, axis=2).astype(">u2")
    return png(16, 2, rows, struct.pack(">3H", *[CLEAR * 256 + 7] * 3))


def clear_is_white() -> np.ndarray:
    return np.dstack([np.where(GREY == CLEAR, 255, GREY)] * 3)


THREE_GREYS = np.dstack([GREY] * 3)
READABLE = {
    "rgb png": (lambda: encoded(Image.fromarray(RGB), "PNG"), RGB, 0),
    "16-bit png": (
        lambda: encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        THREE_GREYS,
        0,
    ),
    "png with alpha": (lambda: encoded(Image.fromarray(clear_left_half()), "PNG"), on_white(), 0),
    "gif": (
        lambda: encoded(
            Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(GREY[::-1])]
        ),
        THREE_GREYS,
        0,
    ),
    "grey jpeg": (lambda: encoded(Image.fromarray(GREY), "JPEG", quality=95), THREE_GREYS, 4),
    "cmyk jpeg": (
        lambda: encoded(Image.fromarray(THREE_GREYS).convert("CMYK"), "JPEG", quality=95),
        THREE_GREYS,
        4,
    ),
    "jpeg without its end": (
        lambda: encoded(Image.fromarray(THREE_GREYS), "JPEG", quality=95)[:-2],
        THREE_GREYS,
        4,
    ),
    "jpeg without half of its end": (
        lambda: encoded(Image.fromarray(THREE_GREYS), "JPEG", quality=95)[:-1],
        THREE_GREYS,
        4,
    ),
    "16-bit pgm": (
        lambda: b"P5\n40 30\n65535\n" + (GREY.astype(">u2") * 257).tobytes(),
        THREE_GREYS,
        0,
    ),
    "16-bit grey png with a clear value": (lambda: clear_16_bit(grey=True), clear_is_white(), 0),
    "16-bit png with a clear colour": (lambda: clear_16_bit(grey=False), clear_is_white(), 0),
    "bmp": (lambda: encoded(Image.fromarray(RGB), "BMP"), RGB, 0),
    "lossless webp": (lambda: encoded(Image.fromarray(RGB), "WEBP", lossless=True), RGB, 0),
    "one bit": (
        lambda: encoded(Image.fromarray(GREY > 127), "PNG"),
        np.dstack([(GREY > 127) * 255] * 3),
        0,
    ),
}


@pytest.mark.parametrize("kind", READABLE)
def test_every_kind_of_file_is_decoded_to_what_is_seen(kind):
    make, expected, tolerance = READABLE[kind]
    image = decode(make())
    assert image.dtype == torch.uint8
    assert image.shape == (3, 30, 40)
    difference = image.permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= tolerance


def test_a_photo_taken_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("JPEG", "PNG"):
        assert decode(encoded(Image.fromarray(RGB), kind, exif=exif)).shape == (3, 40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("before", [b"", b"http://ns.adobe.com/xap/1.0/\0<x/>"], ids=["", "xmp"])
def test_a_jpeg_is_turned_as_pillow_turns_it_whatever_stands_before_exif(orientation, before):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(RGB), "JPEG", exif=exif, quality=95)
    segment = b"\xff\xe1" + struct.pack(">H", len(before) + 2) + before if before else b""
    data = data[:2] + segment + data[2:]
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data).permute(1, 2, 0), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_jpeg_with_broken_exif_is_not_turned(exif):
    data = encoded(Image.fromarray(RGB), "JPEG", exif=exif)
    assert decode(data).shape == (3, 30, 40)


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb_jpeg() -> bytes:
    data = bytearray(encoded(photo(0), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
UNREADABLE = {
    "truncated jpeg": (lambda: encoded(photo(0), "JPEG")[:-200], "cannot be decoded .*runcated"),
    "jpeg cut near its end": (lambda: encoded(photo(0), "JPEG")[:-6], r"\(Image is incomplete"),
    "progressive jpeg without its end": (
        lambda: encoded(photo(0), "JPEG", progressive=True)[:-2],
        r"\(Image is incomplete",
    ),
    "truncated png": (lambda: encoded(Image.fromarray(NOISE), "PNG")[:900], "cannot be decoded"),
    "text": (lambda: b"hello", "no image of a known format"),
    "bomb png": (bomb_png, "too large"),
    "bomb jpeg": (bomb_jpeg, "too large"),
    "floats": (lambda: encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32-bit pixels"),
    "32-bit tiff": (
        lambda: encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        "32-bit pixels",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_decoded_has_a_reason(kind):
    make, reason = UNREADABLE[kind]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(make())
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)


def test_missing_and_empty_files_have_a_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match="is empty"):
        decode_file(tmp_path / "empty.jpg")
    with pytest.raises(UnreadableImage, match="is not there"):
        decode_file(tmp_path / "gone.jpg")


@pytest.mark.parametrize(("width", "height"), [(512, 384), (384, 512), (300, 500), (200, 100)])
def test_crop_and_resize_are_pillows_to_one_level(width, height):
    image = photo(1, width, height)
    crop_w, crop_h = min(350, width), min(350, height)
    left, top = round((width - crop_w) / 2), round((height - crop_h) / 2)
    reference = image.crop((left, top, left + crop_w, top + crop_h))
    reference = np.asarray(reference.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    ours = Geometry(224, crop=350).fit(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert np.abs(ours.permute(1, 2, 0).numpy() - reference).max() <= 1


def test_an_edge_is_torchvisions_resize_and_centre_crop():
    from torchvision.transforms import v2

    for size in ((90, 61), (61, 90)):
        image = torch.from_numpy(np.array(photo(2, *size))).permute(2, 0, 1)
        reference = v2.CenterCrop(32)(v2.Resize(40)(image))
        difference = Geometry(32, edge=40).fit(image).int() - reference.int()
        assert difference.abs().max() <= 1


def test_a_buffer_is_used_again_only_when_nobody_holds_it():
    buffers = Buffers(np.float32)
    first = buffers.take((2, 3))
    place, view = first.data_ptr(), first[1:]
    del first
    second = buffers.take((2, 3))
    assert second.data_ptr() != place, "a view was still held"
    del view
    assert buffers.take((1, 3)).data_ptr() == place


@pytest.mark.parametrize("grey", [True, False])
def test_arrays_give_three_channels(grey):
    array = np.stack([GREY if grey else RGB] * 4)
    store = MemoryStore(ArraySource(array, np.array([3, 1])), Geometry(16))
    (images,) = store.stream([np.array([1, 0, 1])])
    assert images.shape == (3, 3, 16, 16)
    if grey:
        assert torch.equal(images[:, 0], images[:, 2])


def test_arrays_too_large_to_be_resized_at_once_are_resized_by_batch(monkeypatch):
    source = ArraySource(np.stack([GREY[:, :30]] * 4))
    at_once = MemoryStore(source, Geometry(30))
    monkeypatch.setattr("ballot.data.images.IN_MEMORY", 0)
    (images,) = MemoryStore(source, Geometry(30)).stream([np.array([0, 2])])
    images[0] = images[0].flip(-1)  # as a step does
    (expected,) = at_once.stream([np.array([0, 2])])
    assert torch.equal(images[0], expected[0].flip(-1)) and torch.equal(images[1], expected[1])


def test_threads_keep_the_order_of_rows(tmp_path):
    paths = [save(tmp_path / f"{k}.png", k).name for k in range(10)]
    source = FileSource(tmp_path, paths)
    batches = [np.array([3, 1, 4]), np.array([9, 2]), np.array([6])]
    got = list(DecodingStore(source, Geometry(20), workers=3).stream(batches))
    for rows, images in zip(batches, got):
        for row, image in zip(rows, images):
            assert torch.equal(image, Geometry(20).fit(decode_file(tmp_path / paths[row])))


def test_a_file_that_vanishes_during_training_is_named(tmp_path):
    paths = [save(tmp_path / f"{k}.png", k).name for k in range(3)]
    store = DecodingStore(FileSource(tmp_path, paths), Geometry(20), workers=1)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png: is not there, although"):
        list(store.stream([np.arange(3)]))


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_junk_beside_images_is_no_image():
    assert is_image("a.JPG") and is_image("b.jpeg")
    assert not is_image("._a.jpg") and not is_image("labels.csv")
