"""Damage to an HDF5 file that leaves it one: objects, links, types, shapes, values, storage and attributes, through h5py."""

import random
from pathlib import Path

import attribute_damage
import dataset_damage
import h5py

NAMES = (
    "s_aux",
    "bias",
    "sinks",
    "x",
    "layers ",
    "ä",
    "output_position",
    "kv_source",
    "scores",
    "kept",
    "2",
    "00",
    "-1",
    "." * 300,
)


def removed(file, name, rng):
    del file[name]


def renamed(file, name, rng):
    file.move(name, rng.choice(NAMES))


def exchanged(file, name, rng):
    other = rng.choice(sorted(file[name].parent))
    parent = file[name].parent
    if other != name.split("/")[-1]:
        parent.move(other, "for a moment")
        file.move(name, f"{parent.name}/{other}")
        parent.move("for a moment", name.split("/")[-1])


def linked(file, name, rng):
    """To another object, to nothing, to itself, or into another file."""
    other = rng.choice(["/", "/layers", "/nowhere", f"/{name}"])
    del file[name]
    file[name] = rng.choice([h5py.SoftLink(other), h5py.ExternalLink("gone.h5", other)])


def looped(file, name, rng):
    """A hard link from within an object to one that holds it."""
    holder = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    link = rng.choice([*NAMES, *sorted(holder)])
    if link in holder:
        del holder[link]
    holder[link] = rng.choice([file["/"], holder])


def made_a_group(file, name, rng):
    del file[name]
    file.create_group(name)


def made_a_type(file, name, rng):
    del file[name]
    file[name] = h5py.h5t.IEEE_F32LE.copy() if rng.random() < 0.5 else __import__("numpy").dtype("f4")


def with_dataset(file, name, rng):
    holder = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    holder[rng.choice(NAMES)] = rng.choice([0.0, [1.0, 2.0, 3.0], "text", h5py.Empty("f4")])


def with_many_members(file, name, rng):
    """More than fit into an object's header: they move into an index of their own."""
    holder = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    for number in range(rng.choice([20, 300])):
        holder.create_group(f"{number:05}")


OBJECT = (removed, renamed, exchanged, linked, looped, made_a_group, made_a_type, with_dataset, with_many_members)


def damage_structure(path: Path, rng: random.Random) -> list[str]:
    """One to three changes of the file; returns the names of those that h5py let happen."""
    done = []
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            name = rng.choice(sorted(names))
            changes = (attribute_damage.CHANGES, OBJECT)
            if isinstance(file[name], h5py.Dataset):
                changes = (attribute_damage.CHANGES, OBJECT, dataset_damage.CHANGES, dataset_damage.CHANGES)
            change = rng.choice(rng.choice(changes))
            try:
                change(file, name, rng)
            except (TypeError, ValueError, OSError, KeyError, IndexError, RuntimeError, AttributeError):
                continue  # h5py refuses some of what is asked of it
            done.append(change.__name__)
    return done


def structure_spots(path: Path) -> list[tuple[int, int]]:
    """The ranges [first, end) of a file that hold no raw data of a dataset: headers, indices, heaps, attributes."""
    taken: list[tuple[int, int]] = []

    def add(name, item):
        if not isinstance(item, h5py.Dataset) or item.dtype.kind == "O":  # places in a heap
            return
        if item.chunks is None:
            if item.id.get_offset() is not None:
                taken.append((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))
            return
        for number in range(item.id.get_num_chunks()):
            chunk = item.id.get_chunk_info(number)
            taken.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

    with h5py.File(path) as file:
        file.visititems(add)
    spots, at = [], 0
    for first, end in [*sorted(taken), (path.stat().st_size,) * 2]:
        if first > at:
            spots.append((at, first))
        at = max(at, end)
    return spots
