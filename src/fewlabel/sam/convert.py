"""Original checkpoints of SAM, SAM 2, SAM 2.1 and MobileSAM -> a folder with `config.json` and `model.safetensors`.

The authors' files are pickles. They are read with `weights_only=True`, which builds tensors and plain containers and
nothing else, and every tensor in them is accounted for: it is written under its new name, or it is known to have no
part in the image model.
"""

import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewlabel.core.errors import ModelError, first_line
from fewlabel.core.files import replace_folder, sha256_file, write_text
from fewlabel.sam.keys import SHARED, TIED, sam2_keys, sam_keys, some
from fewlabel.sam.sizes import decoder_config, hiera_variant, merged, sam2_config, sam_config, vit_variant

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SECTIONS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
COUNTER = "num_batches_tracked"  # of batch normalisation: read in training alone, absent from some files


@dataclass(frozen=True)
class Original:
    """What a state dict is.

    Attributes:
        family: "sam", "sam2" or "mobile_sam", and "sam_hq", which is recognised but not converted.
        variant: As the authors name it: "vit_b", "vit_l", "vit_h", "sam2_hiera_tiny", ..., "sam2.1_hiera_large",
            "mobile_sam"; "custom" in place of the size for other sizes.
    """

    family: str
    variant: str


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        family: Model type of the written folder: "sam", "sam2" or "mobile_sam".
        variant: See `Original`.
        tensors: Number of tensors in `model.safetensors`.
        unused: Names in the original that have no part in the image model, in the file's order; entries beside its
            state dict, such as an optimizer's, come first.
        sha256: Of the original file.
        weights_sha256: Of `model.safetensors`.
        folder: Where the two files are.
    """

    family: str
    variant: str
    tensors: int
    unused: tuple[str, ...]
    sha256: str
    weights_sha256: str
    folder: Path


def convert(path: Path, out: Path, config: Mapping[str, Any] | None = None) -> Conversion:
    """Convert an original checkpoint; the folder is whole or, after an error, as it was before.

    Args:
        path: `.pth` or `.pt` as the authors of SAM, SAM 2, SAM 2.1 or MobileSAM published it.
        out: Folder to write; must not exist, or hold an earlier conversion alone.
        config: For sizes that were never published: sections of the `config.json` to be written, which take precedence
            over what the shapes tell.

    Returns:
        What was found and written.

    Raises:
        ModelError: The file cannot be read, is of another kind, lacks a tensor, has one too many or one of another
            shape, or `out` holds something else.
    """
    _check_free(out)
    tensors, beside = _read(path)
    try:
        kind = identify(tensors)
        model, keys = blueprint(tensors, kind, config)
        state = arrange(tensors, keys, model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    digest = sha256_file(path)
    model.config.architectures = [type(model).__name__]
    model.config.original = {"variant": kind.variant, "sha256": digest}  # in no header: there, order is random
    with replace_folder(out) as folder:
        write_text(folder / CONFIG, model.config.to_json_string(use_diff=False))
        try:
            save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise ModelError(f"{out / WEIGHTS} cannot be written ({first_line(error)}); check the disk.") from None
    unused = (*beside, *(name for name, new in keys.items() if new is None))
    return Conversion(kind.family, kind.variant, len(state), unused, digest, sha256_file(out / WEIGHTS), out)


def read_original(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an original checkpoint.

    Args:
        path: A `.pth` or `.pt` file with a state dict, or one under "model" (as SAM 2's) or "state_dict"; or the same
            tensors stored again as `.safetensors`.

    Returns:
        Name to tensor, on the CPU, in the file's order and precision.

    Raises:
        ModelError: There is no such file, it is damaged, holds objects that could run code, or no state dict.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of an original checkpoint, and the names of what stands beside its state dict."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; give the authors' checkpoint, a .pth or .pt file.")
    held = _unpickle(path) if path.suffix != ".safetensors" else _load_safetensors(path)
    beside: tuple[str, ...] = ()
    for entry in ("model", "state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(entry), Mapping):
            beside = tuple(str(name) for name in held if name != entry)
            held = held[entry]
            break
    if not isinstance(held, Mapping) or not held:
        raise ModelError(f"{path} holds no named tensors but a {type(held).__name__}; give the authors' checkpoint.")
    if foreign := [str(name) for name, value in held.items() if not (isinstance(name, str) and _dense(value))]:
        raise ModelError(
            f"{path} holds entries that are no dense tensors ({some(foreign)}); give the authors' checkpoint."
        )
    return {name: value.detach() for name, value in held.items()}, beside


def _unpickle(path: Path) -> object:
    """What a file of PyTorch holds, tensors on the CPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, of no use to the reader of one sentence
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found or _calls(path):
            what = found[1] if found else "calls of functions"
            raise ModelError(
                f"{path} holds more than tensors ({what}), which could run code, and was not opened; get the "
                "authors' own checkpoint."
            ) from None
        raise ModelError(_damaged(path, str(error).rpartition("WeightsUnpickler error:")[2])) from None
    except OSError as error:
        if error.filename is not None:  # of the file system; without a name, of the reader
            raise
        raise ModelError(_damaged(path, error)) from None
    except Exception as error:  # the reader of a damaged file fails with whatever its bytes happen to ask for
        raise ModelError(_damaged(path, error)) from None


def _calls(path: Path) -> bool:
    """Whether a bare pickle calls functions; PyTorch's reader stops at newer protocols before it comes to them."""
    try:
        with path.open("rb") as file:
            return any(code.name == "REDUCE" for code, _, _ in pickletools.genops(file))
    except ValueError:  # no pickle to its end
        return False


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of an original that was stored again as safetensors."""
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ModelError(_damaged(path, error)) from None


def identify(tensors: Mapping[str, Tensor]) -> Original:
    """Family and variant of a state dict, from names and shapes alone.

    Args:
        tensors: State dict in its authors' names.

    Returns:
        What it is; that it is complete is checked by `convert`.

    Raises:
        ModelError: No original of the SAM families.
    """
    if any(name.startswith("image_encoder.trunk.") for name in tensors):
        new = any(name == "no_obj_embed_spatial" or name.startswith("obj_ptr_tpos_proj.") for name in tensors)
        return Original("sam2", f"{'sam2.1' if new else 'sam2'}_{hiera_variant(tensors)}")
    if any(name.startswith(("image_encoder.layers.", "image_encoder.patch_embed.seq.")) for name in tensors):
        return Original("mobile_sam", "mobile_sam")
    if any(name.startswith("image_encoder.blocks.") for name in tensors):
        hq = any(name.startswith(("mask_decoder.hf_", "mask_decoder.compress_vit_feat.")) for name in tensors)
        return Original("sam_hq" if hq else "sam", vit_variant(tensors))
    raise ModelError(
        f"its {len(tensors)} tensors ({some(list(tensors))}) are those of another model; give an original checkpoint "
        "of SAM, SAM 2, SAM 2.1 or MobileSAM."
    )


def blueprint(
    tensors: Mapping[str, Tensor], kind: Original, config: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, str | None]]:
    """The network that a state dict belongs to, without its weights, and the new names of the tensors.

    Args:
        tensors: State dict in its authors' names.
        kind: What `identify` said.
        config: See `convert`.

    Returns:
        The model on PyTorch's meta device, and for each original name the new one (`name[row]` for a row of a matrix)
        or None.

    Raises:
        ModelError: A family that is not converted, a name that belongs to no part of it, or sizes that contradict each
            other.
    """
    given = dict(config or {})
    if wrong := sorted(set(given) - set(SECTIONS)):
        raise ModelError(f"the configuration has no section {some(wrong)}; expected {', '.join(SECTIONS)}.")
    if kind.family == "sam_hq":
        raise ModelError(
            "it is an original of SAM-HQ, which is not converted; load SAM-HQ in transformers' format, such as "
            "syscv-community/sam-hq-vit-base."
        )
    from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

    if kind.family == "mobile_sam":
        from fewlabel.sam.mobile import build_mobile_sam, mobile_keys

        decoder = decoder_config(tensors, "", 1024, 16)["mask_decoder_config"]
        sizes = merged({"mask_decoder_config": decoder}, given)
        with torch.device("meta"):
            return build_mobile_sam(sizes), mobile_keys(tensors, sizes)
    keys = sam_keys(tensors) if kind.family == "sam" else sam2_keys(tensors)
    sizes = merged(sam_config(tensors) if kind.family == "sam" else sam2_config(tensors, given), given)
    try:
        with torch.device("meta"):
            return (SamModel(SamConfig(**sizes)) if kind.family == "sam" else Sam2Model(Sam2Config(**sizes))), keys
    except Exception as error:  # each part of transformers refuses impossible sizes with a class of its own
        raise ModelError(
            f"no network has the sizes that its tensors tell ({first_line(error)}); the file is damaged, download it "
            "again."
        ) from None


def arrange(tensors: Mapping[str, Tensor], keys: Mapping[str, str | None], model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model from that of its original.

    Args:
        tensors: State dict in its authors' names.
        keys: See `blueprint`.
        model: The network to be filled; its weights are not read.

    Returns:
        Every tensor of the model, tied ones once, contiguous and sharing no memory with another of them.

    Raises:
        ModelError: A tensor is missing, is one too many, or has another shape than the model's.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if TIED in getattr(model, "_tied_weights_keys", {}):
        del wanted[TIED]
    sources: dict[str, list[str]] = {}
    for name, new in sorted(keys.items()):  # rows of a matrix come in their order
        if new is not None:
            sources.setdefault(new.partition("[")[0], []).append(name)
    if TIED in wanted and SHARED in sources:
        sources[TIED] = sources[SHARED]
    if extra := [name for new, names in sources.items() if new not in wanted for name in names]:
        raise ModelError(
            f"{len(extra)} tensors have no place in a network of these sizes ({some(extra)}); give the authors' own "
            "checkpoint."
        )
    matrices = {new.partition("[")[0] for new in keys.values() if new is not None and new.endswith("]")}
    rows = [f"{name}[{row}]" for name in sorted(matrices) for row in range(wanted[name][0])]
    missing = [name for name in wanted if name not in sources and not name.endswith(COUNTER)]
    if missing := missing + [row for row in rows if row not in keys.values()]:
        raise ModelError(
            f"{len(missing)} tensors are missing (in transformers' names: {some(missing)}); the file is incomplete, "
            "download it again."
        )
    state: dict[str, Tensor] = {}
    wrong: list[str] = []
    storages: set[int] = set()
    for new, shape in wanted.items():
        parts = [tensors[name] for name in sources.get(new, [])]
        expected = (1, *shape[1:]) if new in matrices else shape
        bad = [name for name, part in zip(sources.get(new, []), parts, strict=True) if tuple(part.shape) != expected]
        wrong += [f"{name}: {tuple(tensors[name].shape)}, not {expected}" for name in bad]
        if not bad and parts:
            state[new] = torch.cat(parts) if new in matrices else _own(parts[0], storages)
        elif not parts:
            state[new] = torch.zeros(shape, dtype=torch.int64)  # a counter
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors have other shapes than a network of these sizes ({some(wrong)}); the file is "
            "damaged, download it again."
        )
    return state


def _own(value: Tensor, storages: set[int]) -> Tensor:
    """The tensor itself where it alone fills its storage, as safetensors wants it, else a copy.

    Args:
        value: Any dense tensor.
        storages: Addresses of storages in use; that of `value` is added.
    """
    storage = value.untyped_storage()
    if value.is_contiguous() and storage.nbytes() == value.nbytes and storage.data_ptr() not in storages:
        storages.add(storage.data_ptr())
        return value
    return value.clone(memory_format=torch.contiguous_format)


def _check_free(out: Path) -> None:
    """Refuse to replace anything but an earlier conversion."""
    if out.is_dir():
        other = sorted(entry.name for entry in out.iterdir() if entry.name not in (CONFIG, WEIGHTS))
        if other:
            raise ModelError(f"{out} holds other files ({some(other)}); choose a new folder.")
    elif out.exists():
        raise ModelError(f"{out} is a file; choose a new folder.")


def _dense(value: object) -> bool:
    """Whether a value is a dense tensor, as safetensors stores it."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _damaged(path: Path, error: object) -> str:
    """The sentence for a file that cannot be read."""
    return (
        f"{path} is not a checkpoint that can be read ({first_line(error)}): it is damaged or something else; give "
        "the authors' .pth or .pt, downloaded again if need be."
    )
